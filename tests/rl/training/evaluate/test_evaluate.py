"""`evaluate`: what a rate of success is made of, in the real simulation with a real checkpoint."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import training_rig

for package in ("torch", "pyarrow", "tokenizers", "av"):
    pytest.importorskip(package, reason="needs the train extra")

import av
import pyarrow.parquet as pq

from crane_x7_vla_rl.data.demos.command import generate
from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.recorder import DemoRecorder
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.openvla import builder
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.policy import OpenVLAPolicy, load
from crane_x7_vla_rl.policies.skills import Skills
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.sim.expert import Expert
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate import command
from crane_x7_vla_rl.training.evaluate.command import evaluate
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.ranks import Ranks, join
from crane_x7_vla_rl.training.evaluate.report import describe, wilson
from crane_x7_vla_rl.training.evaluate.rollout import roll_out
from crane_x7_vla_rl.types import ActionChunk, Observation

HZ = 5
WORLD = WorldConfig(control_hz=HZ, image_size=(64, 64), colours=("red", "blue"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, untrained, in chunks of 10."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes = builder.Sizes(image=32, patch=8, layers=1, dino_depth=2, siglip_depth=2)
    return builder.build(folder, sizes, inputs=PolicySpec(True, 10, 1 / HZ))


def config(checkpoint: Path, output: Path, **options: object) -> EvaluateConfig:
    settings = {
        "model": ModelOptions(str(checkpoint)),
        "output": output,
        "world": WORLD,
        "num_episodes": 5,
        "processes": 2,
        "slots": 2,
        "videos": 1,
    }
    return EvaluateConfig(**(settings | options))


def batched(policy: OpenVLAPolicy) -> Candidate:
    return Candidate(policy, policy.period_s, batched=True)


class Oracle(OpenVLAPolicy):
    """Knows the scenes by heart: for each first image and instruction, what the expert did."""

    def __init__(self, policy: OpenVLAPolicy, seeds: range) -> None:
        self.__dict__.update(policy.__dict__)
        self.told: list[str] = []
        self._answers: dict[tuple[bytes, str], np.ndarray] = {}
        world = World(WORLD)
        expert = Expert(world)
        for seed in seeds:
            world.reset(seed)
            expert.reset()
            key = (world.image().tobytes(), world.instruction)
            targets = []
            while not world.ended:
                targets.append(expert.act())
                world.step(targets[-1])
            self._answers[key] = np.array(targets)
        world.close()

    def predict(self, observations: object) -> list[ActionChunk]:
        assert isinstance(observations, list)
        return [self._answer(observation) for observation in observations]

    def _answer(self, seen: Observation) -> ActionChunk:
        self.told.append(seen.instruction)
        stay = seen.joints.position_rad[None]
        known = self._answers.get((seen.image.tobytes(), seen.instruction), stay)
        return ActionChunk(known, self.period_s)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 10), (10, 10), (120, 200), (1, 1), (3, 200), (199, 200)]
)
def test_wilson_bounds_are_the_rates_that_would_just_not_surprise(
    successes: int, trials: int
) -> None:
    """What defines them: the rate seen is 1.96 standard deviations of the bound away from it."""
    seen = successes / trials
    low, high = wilson(successes, trials)
    assert low <= seen <= high
    for bound in (low, high):
        if 0 < bound < 1:
            deviation = (bound * (1 - bound) / trials) ** 0.5
            assert abs(seen - bound) == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert (low == 0) == (successes == 0)
    assert (high == 1) == (successes == trials)


def test_wilson_refuses_what_is_no_rate() -> None:
    with pytest.raises(ValueError, match="0 successes in 0 trials"):
        wilson(0, 0)


def test_every_seed_counts_once_in_the_named_colour(checkpoint: Path, tmp_path: Path) -> None:
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + 6)
    settings = config(checkpoint, tmp_path, num_episodes=7, videos=2)
    oracle = Oracle(load(settings.model), seeds)
    rollouts = roll_out(batched(oracle), settings)
    assert [result.seed for result in rollouts.results] == [*seeds, seeds.stop]
    assert [result.success for result in rollouts.results] == [True] * 6 + [False]
    solved, unsolved = rollouts.results[0], rollouts.results[-1]
    assert solved.instruction == f"pick up the {solved.named} cube"
    assert solved.lifted == (solved.named,)
    assert solved.steps < unsolved.steps == replace(WORLD, control_hz=HZ).max_steps
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == [f"seed-{seed}-success.mp4" for seed in seeds[:2]]
    with av.open(str(tmp_path / "videos" / names[0])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == solved.steps + 1
    assert frames[0].shape == (256, 256, 3)


def test_swapped_the_policy_is_told_the_other_colour(checkpoint: Path, tmp_path: Path) -> None:
    settings = config(checkpoint, tmp_path, num_episodes=3, swapped=True, videos=0)
    oracle = Oracle(load(settings.model), range(EVALUATION_SEED, EVALUATION_SEED + 3))
    results = roll_out(batched(oracle), settings).results
    other = {"red": "blue", "blue": "red"}
    for result in results:
        assert result.instruction == f"pick up the {other[result.named]} cube"
        assert not result.success
    assert set(oracle.told) == {result.instruction for result in results}


def test_an_evaluation_leaves_everything_in_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "demos", tmp_path / "out"
    generate(DemosConfig(data, episodes=3, world=WORLD, processes=1))
    settings = config(checkpoint, output, data_root=str(data), offline_frames=10)
    results = evaluate(settings)
    assert json.loads((output / "results.json").read_text()) == results
    assert results["success"]["episodes"] == 5
    assert results["success"]["rate"] == 0.0
    assert sum(one["episodes"] for one in results["instructions"].values()) == 5
    assert results["world"]["control_hz"] == HZ
    assert len(list((output / "videos").iterdir())) == 1
    table = pq.read_table(output / "offline.parquet").to_pylist()
    assert {"episode", "frame", "step", "latency_ms", *JOINT_NAMES} <= set(table[0])
    assert len({(row["episode"], row["frame"]) for row in table}) == 10
    assert max(row["step"] for row in table) <= 9
    assert {row["episode"] for row in table} == {0, 1, 2}
    mean = results["offline"]["mean_error_rad"]
    assert all(0 <= mean[name] < 2 for name in JOINT_NAMES)
    assert "0 of 5 episodes" in describe(results)
    assert "10 recorded frames" in describe(results)


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "demos"
    generate(DemosConfig(data, episodes=2, world=WORLD, processes=1))
    argv = ["--checkpoint", str(checkpoint), "--device", "cpu", "--colours", "red", "blue"]
    argv += ["--image-size", "64x64", "--episode-s", "3", "--num-episodes", "3", "--videos", "2"]
    argv += ["--processes", "1", "--slots", "2", "--data-root", str(data), "--offline-frames", "5"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*argv, "--output", str(tmp_path / "one")]))
    words = [*argv, "--output", str(tmp_path / "two")]
    with training_rig.together(words, processes=2, command="evaluate") as ranks:
        said = [rank.communicate(timeout=training_rig.PATIENCE_S)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "of 3 episodes" in said[0]
    assert "episodes" not in said[1]
    alone, together = (_timeless(tmp_path / name) for name in ("one", "two"))
    assert alone == together
    films = [sorted(path.name for path in (tmp_path / name / "videos").iterdir())
             for name in ("one", "two")]  # fmt: skip
    assert films[0] == films[1]
    assert len(films[0]) == 2


def _timeless(folder: Path) -> list[object]:
    """Return what an evaluation found, without the times."""
    results = json.loads((folder / "results.json").read_text())
    for times in (results, results["offline"]):
        for name in ("wall_s", "policy_s", "latency_ms", "control_steps_per_s"):
            times.pop(name, None)
    rows = pq.read_table(folder / "offline.parquet").drop_columns("latency_ms").to_pylist()
    return [results, *rows]


def test_several_processes_refuse_the_name_of_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"--device cuda:1 .* 4 processes; use --device cuda:"):
        join("cuda:1")


def test_each_item_is_in_one_share() -> None:
    shares = [Ranks(rank, 3).share(range(7)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(7))


def test_offline_errors_are_the_policy_minus_the_recording(
    checkpoint: Path, tmp_path: Path
) -> None:
    from crane_x7_vla_rl.data.lerobot import LeRobotWriter
    from crane_x7_vla_rl.training.evaluate.offline import compare

    episode = DemoRecorder(DemosConfig(tmp_path, world=WORLD))(1)
    with LeRobotWriter(tmp_path / "d", HZ, (64, 64)) as writer:
        writer.add(episode)

    class Ahead(OpenVLAPolicy):
        """Says what was recorded, each joint 0.1 rad further."""

        def __init__(self) -> None:
            self.resets = 0

        def reset(self) -> None:
            self.resets += 1

        def predict(self, observations: object) -> list[ActionChunk]:
            assert isinstance(observations, list)
            (seen,) = observations
            at = int(np.abs(episode.state - seen.joints.position_rad).sum(1).argmin())
            return [ActionChunk(episode.action[at:] + 0.1, 1 / HZ)]

    settings = config(checkpoint, tmp_path, num_episodes=0, data_root=str(tmp_path / "d"))
    policy = Ahead()
    figures = compare(policy, settings)
    assert policy.resets == len(episode), "no frame is remembered while another is compared"
    assert figures["mean_error_rad"] == pytest.approx(dict.fromkeys(JOINT_NAMES, 0.1), abs=1e-3)
    assert figures["frames"] == len(episode)


def test_sampled_rollouts_repeat_with_their_seed(checkpoint: Path, tmp_path: Path) -> None:
    def targets(seed: int) -> list[float]:
        model = ModelOptions(str(checkpoint), temperature=2.0, seed=seed)
        settings = config(checkpoint, tmp_path, videos=0, model=model, num_episodes=2, processes=1)
        policy, told = load(model), []
        predict = policy.predict

        def watch(observations: list[Observation]) -> list[ActionChunk]:
            chunks = predict(observations)
            told.extend(round(float(chunk.position_rad.sum()), 3) for chunk in chunks)
            return chunks

        policy.predict = watch  # type: ignore[method-assign,assignment]
        roll_out(batched(policy), settings)
        return told

    first = targets(1)
    assert targets(1) == first
    assert targets(2) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_seed": 5}, "may be a training scene"),
        ({"swapped": True, "world": replace(WORLD, colours=("red",))}, "needs two colours"),
        ({"num_episodes": 0}, "nothing to do"),
    ],
)
def test_a_senseless_evaluation_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(Path("x"), Path("y"), **options)


def test_flags_make_the_configuration() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    argv = ["--checkpoint", "a/b/last", "--temperature", "0.5", "--seed", "7", "--swapped"]
    argv += ["--execute-steps", "2", "--colours", "red", "blue", "--image-size", "64x48"]
    read = command.read(parser.parse_args(argv))
    assert replace(read, sources={}) == EvaluateConfig(
        ModelOptions("a/b/last", device="auto", temperature=0.5, seed=7, more_cameras=("wrist",)),
        Path("outputs/evaluate/b-last-Lift-CRANE-X7-t0.5-swapped"),
        WorldConfig(colours=("red", "blue"), image_size=(64, 48)),
        swapped=True,
        execute_steps=2,
    )


def test_a_checkpoint_is_measured_on_what_it_was_trained_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skills = Skills("PickPlace-CRANE-X7", ("red",), 0.01, ("place it",), 5.0, 1.0)
    replace(skills, image_size="320x240").write(tmp_path)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    read = command.read(parser.parse_args(["--checkpoint", str(tmp_path)]))
    assert read.world == WorldConfig(
        "PickPlace-CRANE-X7", image_size=(320, 240), colours=("red",), spawn_range_m=0.01
    )
    assert read.model.temperature == 1.0
    assert read.sources["task"] == read.sources["temperature"] == "skills.json"
    assert not caplog.records
    words = ["--checkpoint", str(tmp_path), "--task", "Lift-CRANE-X7", "--temperature", "0"]
    read = command.read(parser.parse_args(words))
    assert (read.world.task, read.model.temperature) == ("Lift-CRANE-X7", 0.0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "--task Lift-CRANE-X7: the checkpoint was trained on PickPlace" in record.message
    assert "--temperature 0: the checkpoint says 1 (skills.json)" in record.message


def test_a_fine_tuned_checkpoint_is_measured_on_what_its_demonstrations_show(
    tmp_path: Path,
) -> None:
    """`sft` keeps demos.json and a configuration without a scene."""
    made = WorldConfig("PickPlace-CRANE-X7", image_size=(320, 240), colours=("red", "blue"))
    (tmp_path / "demos.json").write_text(json.dumps({"world": made.as_dict()}))
    (tmp_path / "train_config.yaml").write_text("backend: openvla\n")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    read = command.read(parser.parse_args(["--checkpoint", str(tmp_path)]))
    assert read.world == made
    assert read.sources["image_size"] == "demos.json"


@pytest.mark.parametrize("flag", ["--videos", "--num-episodes", "--processes", "--temperature"])
def test_what_cannot_be_below_0_is_a_usage_error(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--checkpoint", "a", flag, "-1"])
    assert f"evaluate: {flag}: '-1', expected 0 or more" in capsys.readouterr().err


def test_a_rate_that_the_simulation_cannot_keep_is_named(tmp_path: Path) -> None:
    from crane_x7_vla_rl.sim.errors import SimError

    folder = builder.build(
        tmp_path / "odd", builder.Sizes(image=32, patch=8), inputs=PolicySpec(False, 1, 0.3)
    )
    settings = config(folder, tmp_path)
    with pytest.raises(SimError, match=r"period_s of 0\.3 makes 3\.333 steps/s"):
        roll_out(batched(load(settings.model)), settings)


def test_a_checkpoint_that_is_not_there_is_one_line_and_code_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "none")]) == 5
    said = capsys.readouterr().err
    assert "crane-x7-vla-rl evaluate:" in said
    assert "Traceback" not in said
