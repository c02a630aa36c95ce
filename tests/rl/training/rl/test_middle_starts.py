"""Runs whose episodes begin in the middle of demonstrations: which ones, how often, and resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rl_rig
import training_rig

from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.files import DemoFiles
from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult
from crane_x7_vla_rl.sim.vector.starts import STAGES
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import training_state
from crane_x7_vla_rl.training.errors import ExitCode
from crane_x7_vla_rl.training.rl import demonstration_starts
from crane_x7_vla_rl.training.rl.config import EnvConfig
from crane_x7_vla_rl.training.rl.episode_stats import Outcomes
from crane_x7_vla_rl.training.rl.run_state import Scenes
from crane_x7_vla_rl.training.rl.start_scores import LEAST, StartScores, by_stage

pytestmark = pytest.mark.timeout(training_rig.PATIENCE_S + 100)
LONG = ("--episode-s", "4", "--start-share", "0.8")
"""Twenty steps: an episode may begin after up to ten."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two demonstrations, recorded as `demos` does, but in this process."""
    folder = tmp_path_factory.mktemp("starts") / "demos"
    config = DemosConfig(folder, episodes=2, world=WorldConfig(control_hz=5, image_size=(32, 32)))
    record = DemoRecorder(config)
    with DemoFiles(config, resume=False) as files:
        for seed in range(2):
            files.add(seed, record(seed))
    return folder


def result(stage: int | None, success: bool) -> EpisodeResult:
    return EpisodeResult(0, 1, success, float(success), 3, stage)


# --- the weights of stages ------------------------------------------------------------------------


def test_stages_whose_outcome_is_open_weigh_most() -> None:
    scores = StartScores()
    assert scores.weights() == [0.25 + LEAST] * STAGES, "nothing is known yet"
    never, always, half = ([0, 40], [40, 40], [20, 40])
    others = [[0, 0]] * (STAGES - 3)
    successes, episodes = zip(*[never, always, half, *others], strict=True)
    scores.add([float(x) for x in episodes], [float(x) for x in successes])
    weights = scores.weights()
    assert weights[2] > 5 * weights[0]
    assert weights[2] > 5 * weights[1]
    assert min(weights) > LEAST, "none is forgotten"


def test_scores_forget_slowly_and_are_the_same_when_resumed() -> None:
    scores = StartScores()
    scores.add([10.0] * STAGES, [0.0] * STAGES)
    before = scores.weights()[0]
    again = StartScores(json.loads(json.dumps(scores.state())))
    assert again.weights() == scores.weights()
    for _ in range(20):
        again.add([0.0] * STAGES, [0.0] * STAGES)
    assert again.weights()[0] > 2 * before, "a stage that nobody tries becomes worth a try"


def test_only_episodes_from_the_middle_are_scores() -> None:
    counts = by_stage([result(None, True), result(2, True), result(2, False), result(9, True)])
    assert counts[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    assert counts[1].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_success_is_that_of_whole_episodes_alone() -> None:
    """Half-done episodes succeed more often: counted, they would feign progress."""

    class Found:
        episodes = (result(None, False), result(3, True), result(4, True))
        ended = (2, 2, 2)

    scenes = Scenes(rl_rig.Scripted({}), Outcomes(3, 1))
    assert scenes.add(Found(), 6) == (1, 0)  # type: ignore[arg-type]


# --- a run ----------------------------------------------------------------------------------------


def test_the_demonstrations_of_a_folder_are_read(demos: Path) -> None:
    env = EnvConfig(start_from=str(demos), backend="cpu", env_id="Lift-CRANE-X7", start_share=0.3)
    starts = demonstration_starts.read(env, 5)
    assert starts is not None
    assert (starts.share, [found.seed for found in starts.demonstrations]) == (0.3, [0, 1])
    for found in starts.demonstrations:
        assert found.targets_rad.shape == found.state_rad.shape
        assert found.targets_rad.shape[1] == 8
    assert demonstration_starts.read(replace(env, start_from=None), 5) is None


@pytest.mark.slow
def test_a_run_begins_some_episodes_there_and_resumes_bit_for_bit(
    demos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = (*LONG, "--start-from", str(demos), "--rollout-steps", "24", "--save-every", "1")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    caplog.set_level("INFO")
    rl_rig.train(whole, *more, "--num-updates", "2")
    assert "80 % of the episodes begin in the middle of one of 2 demonstrations" in caplog.text
    progress = training_state.read_progress(whole / "last")
    assert progress.position is not None
    episodes, _ = progress.position["starts"]
    assert sum(episodes) >= 1
    assert any(one["middle_success"] is not None for one in rl_rig.figures(whole))
    rl_rig.train(stopped, *more, "--num-updates", "1")
    rl_rig.again("--resume", str(stopped), "--num-updates", "2")
    rl_rig.assert_same(stopped, whole)


# --- what does not fit ----------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], output: Path, *more: str) -> str:
    assert cli.main(["train", *rl_rig.flags(output, *LONG, *more)]) == ExitCode.CONFIG
    return capsys.readouterr().err


def test_a_folder_that_is_no_data_set_of_demos_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, tmp_path / "run", "--start-from", str(tmp_path))
    assert "has no demos.json, expected the folder of a data set" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"joint_noise_rad": 0.05}, "joint_noise_rad is 0.05: the arm was moved by other targets"),
        ({"rearrange": 3}, "record without --rearrange"),
        ({"chain": True}, "later episodes begin where the ones before ended"),
        ({"from": "somewhere"}, "from is somewhere: episodes begin where that policy went"),
        ({"world": {"spawn_range_m": 0.01}}, "spawn_range_m is 0.01, but this run's scenes have"),
        ({"world": {"task": "PickPlace-CRANE-X7"}}, "record demonstrations of these scenes"),
    ],
)
def test_demonstrations_that_cannot_be_repeated_here_are_refused(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any, said: str
) -> None:
    other = tmp_path / "demos"
    shutil.copytree(demos, other)
    content = json.loads((other / "demos.json").read_text())
    world = content["world"] | changes.pop("world", {})
    (other / "demos.json").write_text(json.dumps(content | changes | {"world": world}))
    assert said in refused(capsys, tmp_path / "run", "--start-from", str(other))


def test_another_rate_is_refused(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "demos"
    shutil.copytree(demos, other)
    info = json.loads((other / "meta/info.json").read_text())
    (other / "meta/info.json").write_text(json.dumps(info | {"fps": 20}))
    said = refused(capsys, tmp_path / "run", "--start-from", str(other))
    assert "has 20 steps/s, but the policy makes 5; record with --control-hz 5" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--backend", "gpu"), "only scenes in processes can repeat a demonstration"),
        (("--algorithm", "grpo"), "grpo compares episodes that begin alike"),
        (("--start-share", "1.5"), "env.start_share is 1.5"),
    ],
)
def test_what_does_not_go_together_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, tmp_path / "run", "--start-from", "somewhere", *more)
