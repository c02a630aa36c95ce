"""Demonstrations of chains of tasks, from the real simulation, and from where a policy went."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mani_skill.utils.structs import Pose

pytest.importorskip("pyarrow", reason="needs the train extra")

from crane_x7_vla_rl.data.demos import chain, policy_start
from crane_x7_vla_rl.data.demos import recorder as recorder_module
from crane_x7_vla_rl.data.demos.chain import ChainRecorder, Stage
from crane_x7_vla_rl.data.demos.command import generate
from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import PICK_PLACE_ID, WorldConfig
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.types import ActionChunk, Observation

WORLD = WorldConfig(task=PICK_PLACE_ID, control_hz=10, image_size=(64, 64))


def config(folder: Path, **options: object) -> DemosConfig:
    usual = {"chain": True, "world": WORLD, "hold_s": 1.0, "processes": 1, "keep_wrist": True}
    return DemosConfig(folder, **(usual | options))


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> ChainRecorder:
    return ChainRecorder(config(tmp_path_factory.mktemp("chain")))


@pytest.fixture(scope="module")
def tasks(recorder: ChainRecorder) -> list[Episode]:
    found = recorder(3)
    assert len(found) == 3, "this seed begins with a lift"
    return found


def test_each_task_goes_on_where_the_one_before_it_ended(tasks: list[Episode]) -> None:
    lift, place, other = (episode.instruction.split() for episode in tasks)
    assert lift[0] == other[0] == "pick"
    assert place[0] == "place"
    assert lift[3] == place[2]
    assert other[3] != lift[3]
    assert all(episode.success for episode in tasks)
    assert {episode.seed for episode in tasks} == {3}
    np.testing.assert_allclose(tasks[0].state[0], HOME_RAD, atol=0.1)
    for before, after in itertools.pairwise(tasks):
        assert np.abs(before.state[-1] - after.state[0]).max() < 0.15, "one step, not a reset"
    assert tasks[1].state[0, 7] < 0.3, "the cube is still in the hand"
    assert tasks[2].state[0, 7] > 0.3, "the hand has let go"


def test_success_is_held_for_a_time_of_its_own(tasks: list[Episode], tmp_path: Path) -> None:
    short = ChainRecorder(config(tmp_path, hold_s=0.0))(3)
    for held, plain in zip(tasks, short, strict=False):
        assert 5 <= len(held) - len(plain) <= 15


def test_stages_are_of_two_cubes_and_some_begin_with_placing() -> None:
    draw = np.random.default_rng(0)
    drawn = [chain.draw(draw, ("red", "green", "blue")) for _ in range(200)]
    assert {len(stages) for stages in drawn} == {2, 3}
    assert 0.65 < np.mean([len(stages) == 3 for stages in drawn]) < 0.85
    for *_, placed, last in drawn:
        assert placed.places
        assert not last.places
        assert placed.colour != last.colour
    assert {stages[-1].colour for stages in drawn} == {"red", "green", "blue"}


def test_a_task_that_fails_ends_the_chain(
    recorder: ChainRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "limit_s", 0.5)
    (only,) = recorder(3)
    assert not only.success


class Sleeper:
    """A policy that closes the hand where the arm is."""

    def __init__(self) -> None:
        self.instructions: list[str] = []

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        (seen,) = observations
        self.instructions.append(seen.instruction)
        target = seen.joints.position_rad.copy()
        target[7] = 0.0
        return [ActionChunk(np.repeat(target[None], 4, axis=0), 0.1)]

    def reset(self) -> None:
        pass


def test_the_expert_takes_over_where_a_policy_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper()
    monkeypatch.setattr(policy_start, "load_policy", lambda *_: sleeper)
    monkeypatch.setattr(policy_start, "kind_of", lambda _: "openvla")
    shown = ChainRecorder(config(tmp_path, start="somewhere", start_s=3.0))(3)
    driven = [each for each in shown if each.instruction in sleeper.instructions]
    assert len(driven) >= 2
    for episode in driven:
        assert episode.state[0, 7] < 0.3, "what the policy did is not recorded, only where it led"
    lifts = [each for each in driven if each.instruction.startswith("pick")]
    assert lifts
    for episode in lifts:
        assert episode.action[:3, 7].max() > 0.3, "and the expert opens the hand again"
    assert all(episode.success for episode in shown)


def test_a_late_policy_holds_what_was_commanded_before() -> None:
    world = World(WORLD)
    world.reset(3)
    start = policy_start.PolicyStart.__new__(policy_start.PolicyStart)
    sleeper = Sleeper()
    start._policy, start._longest_s, start._late_s = sleeper, 6.0, 60.0  # type: ignore[assignment]
    rest = HOME_RAD.copy()
    rest[7] = 0.5
    targets: list[float] = []
    real = world.step

    def step(target: np.ndarray) -> None:
        targets.append(float(target[7]))
        real(target)

    world.step = step  # type: ignore[method-assign]
    start.drive(world, "pick up the red cube", np.random.default_rng(4), rest)
    assert len(targets) > 10
    assert sleeper.instructions
    assert set(targets) == {0.5}, "no answer came in time"


def test_a_policy_drives_at_its_own_speed_whatever_the_control_rate() -> None:
    """Targets 0.1 s apart are two steps each at 20 Hz."""
    world = World(replace(WORLD, control_hz=20))
    world.reset(3)
    start = policy_start.PolicyStart.__new__(policy_start.PolicyStart)
    start._longest_s, start._late_s = 2.0, 0.0

    class Counting(Sleeper):
        def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            (chunk,) = super().predict(observations)
            targets = chunk.position_rad.copy()
            targets[:, 7] = 0.1 * np.arange(1, 5)
            return [ActionChunk(targets, chunk.period_s)]

    start._policy = Counting()  # type: ignore[assignment]
    targets: list[float] = []
    world.step = lambda target: targets.append(float(target[7]))  # type: ignore[method-assign]
    start.drive(world, "pick up the red cube", np.random.default_rng(4), HOME_RAD)
    pairs = np.reshape(targets[: len(targets) // 2 * 2], (-1, 2))
    assert len(pairs) > 5
    assert np.array_equal(pairs[:, 0], pairs[:, 1])
    with pytest.raises(DataError, match="--control-hz 15; set it to 10 or a multiple"):
        start.drive(World(replace(WORLD, control_hz=15)), "x", np.random.default_rng(4), HOME_RAD)


def test_each_task_begins_from_the_last_target_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measured pose would loosen the fingers around a cube."""
    monkeypatch.setattr(policy_start, "load_policy", lambda *_: Sleeper())
    monkeypatch.setattr(policy_start, "kind_of", lambda _: "openvla")
    rests: list[np.ndarray] = []
    monkeypatch.setattr(
        policy_start.PolicyStart, "drive", lambda _, __, ___, ____, rest: rests.append(rest)
    )
    shown = ChainRecorder(config(tmp_path, start="somewhere"))(3)
    assert len(rests) == len(shown) == 3
    np.testing.assert_allclose(rests[0], HOME_RAD, atol=0.1)
    for rest, before in zip(rests[1:], shown[:-1], strict=True):
        np.testing.assert_array_equal(rest, before.action[-1])


@pytest.mark.parametrize("chained", [True, False])
def test_flags_say_how_long_and_how_late_the_policy_drives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chained: bool
) -> None:
    asked: list[tuple[str, float, float]] = []
    monkeypatch.setattr(recorder_module, "PolicyStart", lambda *given: asked.append(given))
    made = config(tmp_path, chain=chained, start="somewhere", start_s=2.0, start_late_s=0.3)
    (ChainRecorder if chained else DemoRecorder)(made)
    assert asked == [("somewhere", 2.0, 0.3)]
    assert made.content()["from_late_s"] == 0.3


def test_without_a_chain_the_expert_takes_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper()
    monkeypatch.setattr(policy_start, "load_policy", lambda *_: sleeper)
    monkeypatch.setattr(policy_start, "kind_of", lambda _: "openvla")
    world = replace(WORLD, task="Lift-CRANE-X7")
    record = DemoRecorder(config(tmp_path, chain=False, world=world, start="somewhere"))
    found = [record(seed) for seed in (1, 2, 3)]
    assert set(sleeper.instructions) <= {episode.instruction for episode in found}
    assert sum(episode.state[0, 7] < 0.3 for episode in found) >= 2
    assert all(episode.success for episode in found)


def test_what_a_policy_can_do_is_shown_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_start, "load_policy", lambda *_: Sleeper())
    monkeypatch.setattr(policy_start, "kind_of", lambda _: "openvla")
    monkeypatch.setattr(
        policy_start.PolicyStart, "drive", lambda _, world, *__: setattr(world, "success", True)
    )
    world = replace(WORLD, task="Lift-CRANE-X7")
    episode = DemoRecorder(config(tmp_path, chain=False, world=world, start="somewhere"))(1)
    assert episode.success
    assert len(episode) > 10
    np.testing.assert_allclose(episode.state[0], HOME_RAD, atol=0.1)


@pytest.mark.parametrize("is_chain", [True, False])
def test_a_cube_that_a_policy_pushed_out_of_reach_is_back_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_chain: bool
) -> None:
    def push(_: object, world: World, *__: object) -> None:
        for cube in world.scene.cubes.values():
            cube.set_pose(Pose.create_from_pq([0.65, -0.4, 0.015]))

    monkeypatch.setattr(policy_start, "load_policy", lambda *_: Sleeper())
    monkeypatch.setattr(policy_start, "kind_of", lambda _: "openvla")
    monkeypatch.setattr(policy_start.PolicyStart, "drive", push)
    world = WORLD if is_chain else replace(WORLD, task="Lift-CRANE-X7")
    options = config(tmp_path, chain=is_chain, world=world, start="somewhere")
    found = ChainRecorder(options)(1) if is_chain else [DemoRecorder(options)(1)]
    assert len(found) == 1, "the chain ends where the next cube is out of reach"
    assert found[0].success
    np.testing.assert_allclose(found[0].state[0], HOME_RAD, atol=0.1)


def test_the_data_set_holds_an_episode_per_task(tmp_path: Path) -> None:
    report = generate(config(tmp_path / "d", episodes=4))
    assert report.successes >= 4
    source = open_lerobot(tmp_path / "d")
    kinds = {source[index].instruction.split()[0] for index in range(len(source))}
    assert kinds == {"pick", "place"}
    about = read_json(tmp_path / "d/demos.json")
    assert (about["chain"], about["from"]) == (True, None)
    with pytest.raises(DataError, match="chain was true, now false"):
        generate(config(tmp_path / "d", chain=False), resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"world": replace(WORLD, task="Lift-CRANE-X7")}, "expected --task PickPlace-CRANE-X7"),
        ({"world": replace(WORLD, colours=("red",))}, "--colours red: expected .* two colours"),
        ({"rearrange": 3}, "--rearrange moves what a --chain has placed"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        config(tmp_path, **options)
