"""`evaluate` of policies that are not OpenVLA: the colour servo, LeRobot checkpoints, servers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "pyarrow", "av"):
    pytest.importorskip(package, reason="needs the train extra")

import pyarrow.parquet as pq

from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter
from crane_x7_vla_rl.data.reading import Reading
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate import command, policies
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.offline import compare
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.rollout import roll_out
from crane_x7_vla_rl.types import ActionChunk, Image, Observation

HZ = 5
WORLD = WorldConfig(control_hz=HZ, image_size=(64, 64), colours=("red",), episode_s=2)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


class Remembers:
    """Stays where it is; notes how many observations it got since each reset."""

    def __init__(self) -> None:
        self.seen = [0]

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.seen[-1] += len(observations)
        (one,) = observations
        return [ActionChunk(one.joints.position_rad[None].repeat(4, 0), 1 / HZ)]

    def reset(self) -> None:
        self.seen.append(0)


def test_a_policy_with_a_memory_gets_one_scene_after_another(tmp_path: Path) -> None:
    policy = Remembers()
    settings = EvaluateConfig(
        ModelOptions(), tmp_path, WORLD, policy="remote", num_episodes=3, processes=2, slots=4,
        videos=0,
    )  # fmt: skip
    rollouts = roll_out(Candidate(policy, 1 / HZ), settings)
    seeds = [*range(EVALUATION_SEED, EVALUATION_SEED + 3)]
    assert [result.seed for result in rollouts.results] == seeds
    steps = WORLD.max_steps
    assert [count for count in policy.seen if count] == [-(-steps // 4)] * 3


def test_a_policy_that_names_no_period_is_asked_for_one_chunk() -> None:
    settings = EvaluateConfig(ModelOptions(), Path("x"), WORLD, policy="color-servo")
    candidate = policies.open_policy(settings, settings.model)
    assert candidate.period_s == 0.05
    assert not candidate.batched
    assert policies.one_scene(settings, candidate).execute_steps == 2
    assert policies.one_scene(replace(settings, execute_steps=7), candidate).execute_steps == 7


@pytest.mark.timeout(300)
def test_the_colour_servo_is_evaluated_without_a_checkpoint(tmp_path: Path) -> None:
    words = ["--policy", "color-servo", "--num-episodes", "2", "--videos", "0"]
    words += ["--image-size", "640x480", "--output", str(tmp_path / "out")]
    assert cli.main(["evaluate", *words]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["policy"], results["checkpoint"]) == ("color-servo", None)
    assert results["world"]["control_hz"] == 20
    assert results["success"]["successes"] == 2


class TwoCameras(Remembers):
    """Wants the wrist camera; notes what it got of both."""

    more_cameras = ("wrist",)

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Image, Image]] = []

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.pairs += [(each.image, each.more_images["wrist"]) for each in observations]
        return super().predict(observations)


def test_a_policy_of_two_cameras_gets_the_simulations_hand_camera(tmp_path: Path) -> None:
    policy = TwoCameras()
    settings = EvaluateConfig(
        ModelOptions(), tmp_path, WORLD, policy="remote", num_episodes=1, videos=0
    )
    roll_out(Candidate(policy, 1 / HZ), settings)
    assert len(policy.pairs) == -(-WORLD.max_steps // 4)
    for base, wrist in policy.pairs:
        assert base.shape == wrist.shape == (64, 64, 3)
        assert wrist.std() > 5, "it shows something"
        assert np.abs(base.astype(int) - wrist).mean() > 10, "and not what the base camera shows"


def test_every_policy_may_want_the_wrist_camera_and_no_flag_says_so() -> None:
    assert command.read(parsed("--policy", "color-servo")).model.more_cameras == ("wrist",)
    with pytest.raises(SystemExit):
        parsed("--policy", "color-servo", "--more-cameras", "wrist")


def test_no_policy_at_all_is_an_error_with_both_flags() -> None:
    with pytest.raises(PolicyLoadError, match=r"--checkpoint to a folder .* or --policy to one of"):
        command.read(parsed())


def test_a_server_and_its_key_come_from_flag_and_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICY_API_KEY", " 'secret-of-the-server' ")
    read = command.read(parsed("--policy", "remote", "--server", "ws://127.0.0.1:1"))
    assert (read.policy, read.model.server) == ("remote", "ws://127.0.0.1:1")
    assert read.model.api_key == "secret-of-the-server"
    assert "secret" not in repr(read)
    assert read.output == Path("outputs/evaluate/remote-Lift-CRANE-X7-greedy")


def lerobot_folder(folder: Path) -> Path:
    """A folder that says it is a LeRobot checkpoint; nothing loads it here."""
    image = {"type": "VISUAL", "shape": [3, 120, 160]}
    state = {"type": "STATE", "shape": [8]}
    features = {"observation.images.base": image, "observation.state": state}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "act", "input_features": features}))
    return folder


def test_a_lerobot_checkpoint_is_recognised_and_sets_the_size_of_the_camera(tmp_path: Path) -> None:
    lerobot_folder(tmp_path / "run/pretrained_model")
    read = command.read(parsed("--checkpoint", str(tmp_path / "run")))
    assert read.policy == "lerobot"
    assert read.world.image_size == (160, 120)
    assert read.sources["image_size"] == "config.json"


def test_a_lerobot_checkpoint_of_two_cameras_sets_no_size(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["input_features"]["observation.images.hand"] = {"type": "VISUAL", "shape": [3, 9, 9]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "image_size" not in about.said_by(folder)


# --- recorded episodes ---------------------------------------------------------------------------


class Ahead:
    """Says what was recorded, each joint 0.1 rad further."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._states = np.concatenate([each.state for each in episodes])
        self._actions = np.concatenate([each.action for each in episodes])

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        (seen,) = observations
        at = int(np.abs(self._states - seen.joints.position_rad).sum(1).argmin())
        return [ActionChunk(self._actions[at][None] + 0.1, 1 / HZ)]

    def reset(self) -> None:
        pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Episode]]:
    folder = tmp_path_factory.mktemp("recorded")
    record = DemoRecorder(DemosConfig(folder, world=replace(WORLD, episode_s=None)))
    episodes = [record(seed) for seed in range(3)]
    with LeRobotWriter(folder / "d", HZ, (64, 64)) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder / "d", episodes


def test_chosen_episodes_are_a_parquet_file_each_and_all_in_one(
    recorded: tuple[Path, list[Episode]], tmp_path: Path
) -> None:
    data, episodes = recorded
    settings = EvaluateConfig(
        ModelOptions(), tmp_path, num_episodes=0, data_root=str(data), offline_episodes=(2, 0)
    )
    figures = compare(Ahead(episodes), settings)
    assert figures["episodes"] == [0, 2]
    assert figures["episodes_mean_error_rad"] == pytest.approx(
        dict.fromkeys(JOINT_NAMES, 0.1), abs=1e-3
    )
    assert not (tmp_path / "episode_001.parquet").exists()
    whole = pq.read_table(tmp_path / "all_episodes.parquet").to_pylist()
    parts = [
        pq.read_table(tmp_path / f"episode_{number:03d}.parquet").to_pylist() for number in (0, 2)
    ]
    assert whole == parts[0] + parts[1]
    assert [row["frame"] for row in parts[1]] == [*range(len(episodes[2]))]
    row = parts[1][3]
    for joint, name in enumerate(JOINT_NAMES):
        assert row[f"joint_position_{name}"] == pytest.approx(episodes[2].state[3, joint])
        assert row[f"gt_action_{name}"] == pytest.approx(episodes[2].action[3, joint])
        assert row[f"predicted_action_{name}"] == pytest.approx(row[f"gt_action_{name}"] + 0.1)
        assert row[f"abs_error_{name}"] == pytest.approx(0.1)
    assert row["inference_time_s"] > 0


def test_a_policy_of_two_cameras_is_compared_with_recordings_of_two(
    recorded: tuple[Path, list[Episode]], tmp_path: Path
) -> None:
    one, episodes = recorded
    wrist = [np.full((48, 48, 3), 7 * t % 256, np.uint8) for t in range(len(episodes[0]))]
    with LeRobotWriter(
        tmp_path / "two", HZ, (64, 64), extras=Extras({"wrist": (48, 48)})
    ) as writer:
        writer.add(replace(episodes[0], others={"wrist": wrist}))
    settings = EvaluateConfig(
        ModelOptions(), tmp_path, num_episodes=0, data_root=str(tmp_path / "two"),
        offline_episodes=(0,),
    )  # fmt: skip
    policy = TwoCameras()
    compare(policy, settings)
    whole = policy.pairs[-len(episodes[0]) :]
    for t, (_, seen) in enumerate(whole):
        assert seen.shape == (48, 48, 3)
        assert abs(float(seen.mean()) - 7 * t % 256) < 8
    with pytest.raises(DataError, match="has no camera wrist, which the policy wants"):
        compare(policy, replace(settings, data_root=str(one)))


def test_recordings_in_degrees_are_read_with_a_unit(
    recorded: tuple[Path, list[Episode]], tmp_path: Path
) -> None:
    """The degrees of the recording are unknown to its files; the flag says it."""
    _, episodes = recorded
    with LeRobotWriter(tmp_path / "deg", HZ, (64, 64)) as writer:
        for episode in episodes:
            writer.add(
                replace(
                    episode,
                    state=np.rad2deg(episode.state).astype(np.float32),
                    action=np.rad2deg(episode.action).astype(np.float32),
                )
            )
    words = ["--policy", "color-servo", "--num-episodes", "0", "--unit", "deg"]
    words += ["--data-root", str(tmp_path / "deg"), "--output", str(tmp_path / "out")]
    read = command.read(parsed(*words))
    assert read.reading.unit == "deg"
    figures = compare(Ahead(episodes), read)
    assert figures["mean_error_rad"] == pytest.approx(dict.fromkeys(JOINT_NAMES, 0.1), abs=1e-3)
    with pytest.raises(DataError, match="--unit"):
        compare(Ahead(episodes), command.read(parsed(*words[:4], *words[6:])))


def test_an_episode_that_was_not_recorded_is_named(
    recorded: tuple[Path, list[Episode]], tmp_path: Path
) -> None:
    data, episodes = recorded
    settings = EvaluateConfig(
        ModelOptions(), tmp_path, num_episodes=0, data_root=str(data), offline_episodes=(3,)
    )
    with pytest.raises(
        DataError, match=r"--offline-episodes 3: it has 3 episodes, expected 0 to 2"
    ):
        compare(Ahead(episodes), settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offline_episodes": (0,)}, "set --data-root"),
        ({"reading": Reading(unit="deg")}, "--unit: nothing is read; set --data-root"),
        ({"offline_episodes": (-1,), "data_root": "d"}, "-1: expected numbers of episodes"),
    ],
)
def test_senseless_episodes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(ModelOptions(), Path("y"), **options)  # type: ignore[arg-type]
