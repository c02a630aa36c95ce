"""`evaluate --wordings`: each wording followed or refused, and the right cube raised first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "pyarrow", "mani_skill"):
    pytest.importorskip(package, reason="needs the train extra")

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.policies.skills import SKILLS
from crane_x7_vla_rl.policies.wordings import WordedPolicy, Wordings
from crane_x7_vla_rl.policies.words import Task, Verb
from crane_x7_vla_rl.reserved import EVALUATION_SEED, WORDINGS, Group, Wording
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.expert import Expert
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate import wordings, wordings_report
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.rollout import Result, Start
from crane_x7_vla_rl.training.evaluate.wordings import IN_TRAINING, Row
from crane_x7_vla_rl.types import ActionChunk, Observation

HZ = 5
WORLD = WorldConfig(control_hz=HZ, image_size=(64, 64), colours=("red", "blue"))
RED, BLUE = "pick up the red cube", "pick up the blue cube"
PLACE = "place the red cube on the plate"
LISTED = (
    Wording("grab the crimson block", Group.ENGLISH, RED),
    Wording("青いやつをつかんで", Group.JAPANESE, BLUE),
    Wording("pock up the red cube", Group.MISSPELT, RED),
    Wording("grab the purple block", Group.OTHER_COLOUR, None),
    Wording("put the red block on the dish", Group.ENGLISH, PLACE),
)


class Follower:
    """Does in one chunk what the expert did with the cube that its instruction names."""

    period_s = 1 / HZ

    def __init__(self, seeds: Sequence[int]) -> None:
        self._targets: dict[tuple[bytes, str], np.ndarray] = {}
        world = World(WORLD)
        expert = Expert(world)
        for seed in seeds:
            for colour in WORLD.colours:
                world.reset(seed, colour)
                expert.reset()
                key, targets = (world.image().tobytes(), world.instruction), []
                while not world.ended:
                    targets.append(expert.act())
                    world.step(targets[-1])
                self._targets[key] = np.array(targets)
        world.close()

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        found = []
        for seen in observations:
            stay = seen.joints.position_rad[None]
            key = (seen.image.tobytes(), seen.instruction)
            found.append(ActionChunk(self._targets.get(key, stay), self.period_s))
        return found

    def reset(self) -> None:
        """It keeps nothing."""


def config(output: Path, **changes: object) -> EvaluateConfig:
    settings: dict[str, object] = {
        "model": ModelOptions(), "output": output, "policy": "openvla", "world": WORLD,
        "wordings": True, "wording_episodes": 1, "processes": 1, "slots": 2,
    }  # fmt: skip
    return EvaluateConfig(**(settings | changes))  # type: ignore[arg-type]


def candidate() -> Candidate:
    policy = WordedPolicy(Follower((EVALUATION_SEED,)), Wordings((RED, BLUE), SKILLS))
    return Candidate(policy, policy.period_s, batched=True)


def test_each_wording_is_driven_in_scenes_of_its_own_cube(tmp_path: Path) -> None:
    listed = LISTED[:4]
    results = wordings.measure(candidate(), config(tmp_path), listed=listed)
    rows = {each["text"]: each for each in results["wordings"]}
    for text in (RED, BLUE, listed[0].text, listed[1].text):
        row = rows[text]
        assert row["answered"]
        assert row["right_first"] == row["success"] == row["episodes"] == 1
    misspelt, other = rows[listed[2].text], rows[listed[3].text]
    assert not misspelt["answered"]
    assert (misspelt["success"], misspelt["episodes"]) == (0, 1)
    assert other["answered"]
    assert other["episodes"] == 0
    unseen = results["summary"]["unseen"]
    assert unseen["followed"] == {"count": 2, "of": 3}
    assert unseen["refused"] == {"count": 1, "of": 1}
    assert unseen["right_first"]["rate"] == pytest.approx(2 / 3)
    assert results["summary"]["groups"][IN_TRAINING]["success"]["rate"] == 1
    wordings_report.write(tmp_path, results)
    sheet = (tmp_path / wordings_report.FILE).read_text()
    assert (
        "| pock up the red cube | pick up the red cube | **refused** | 0 of 1 | 0 of 1 |" in sheet
    )
    assert "| grab the purple block | must be refused | refused | – | – |" in sheet
    assert json.loads(json.dumps(results)) == results


def test_swapped_another_cube_is_counted_than_the_words_name(tmp_path: Path) -> None:
    rows = [Row("grab it", Group.ENGLISH, RED, None), Row("pock", Group.MISSPELT, RED, "why")]
    seeds = [EVALUATION_SEED, EVALUATION_SEED + 1]
    plain = list(wordings.starts(rows, config(tmp_path, wording_episodes=2)))
    assert plain == [Start(seed, "grab it", "red") for seed in seeds]
    swapped = list(wordings.starts(rows, config(tmp_path, wording_episodes=2, swapped=True)))
    assert swapped == [Start(seed, "grab it", "blue") for seed in seeds]


def test_a_task_that_the_policy_never_learned_must_be_refused() -> None:
    known = frozenset({Task(Verb.LIFT, "red")})
    policy = WordedPolicy(Follower(()), Wordings((RED,), SKILLS))
    rows = {row.text: row for row in wordings.asked(policy, known, (RED,), LISTED)}
    assert rows["put the red block on the dish"].task is None
    assert rows["put the red block on the dish"].answered
    assert rows["青いやつをつかんで"].task is None
    assert "has not learned to place" in (rows["put the red block on the dish"].refusal or "")


def test_a_policy_that_refuses_nothing_is_wrong_where_it_must_refuse() -> None:
    known = frozenset({Task(Verb.LIFT, "red"), Task(Verb.LIFT, "blue")})
    rows = {row.text: row for row in wordings.asked(Follower(()), known, (RED,), LISTED)}
    assert rows["pock up the red cube"].answered
    assert not rows["grab the purple block"].answered
    assert not rows["put the red block on the dish"].answered


def test_only_the_first_cube_raised_counts() -> None:
    row = Row("grab it", Group.ENGLISH, RED, None)
    result = Result(0, "grab it", "red", True, 9, ("red",), "done", 0.0)
    firsts = [replace(result, first=first) for first in ("red", "blue", None)]
    assert wordings.counted(row, firsts, 3) == replace(row, episodes=3, right_first=1, success=3)


def test_the_checkpoint_says_which_tasks_it_knows(tmp_path: Path) -> None:
    skills = json.loads((TINY / SKILLS).read_text())
    world = replace(WORLD, colours=tuple(skills["colours"]))
    shipped = config(tmp_path, model=ModelOptions(str(TINY)), world=world)
    assert wordings.tasks_of(shipped)[1] == tuple(skills["instructions"])
    every = config(tmp_path, world=replace(WORLD, colours=("red", "green", "blue")))
    assert len(wordings.tasks_of(every)[0]) == 6
    assert {each.task for each in WORDINGS} - {None} == set(wordings.tasks_of(every)[1])


def test_what_cannot_be_measured_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--wordings is measured alone"):
        config(tmp_path, data_root="demos")
    with pytest.raises(ConfigError, match="which a policy server tells only as errors"):
        config(tmp_path, policy="remote")
    policy = Follower(())
    with pytest.raises(ConfigError, match="none of the list's tasks"):
        wordings.measure(
            Candidate(policy, policy.period_s, batched=True),
            config(tmp_path, world=replace(WORLD, colours=("green",))),
            listed=LISTED,
        )
