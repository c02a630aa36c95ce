"""Short runs of `train` with a tiny policy in a small simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_rig
from training_rig import SIZES

from crane_x7_vla_rl.policies.openvla.builder import build
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.weights import loading, oft_loading
from crane_x7_vla_rl.robot import DOF, HOME_RAD
from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult, Steps, Views
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.sim.vector.true_state import TRUE_STATE
from crane_x7_vla_rl.training.checkpoints import training_state
from crane_x7_vla_rl.training.rl import command as rl_command
from crane_x7_vla_rl.training.rl import figures as rl_figures

TIMES = {"env_steps_s", "simulate_s", "infer_s", "learn_s", "update_s"}


@lru_cache(maxsize=1)
def base() -> Path:
    """Return a tiny model with random weights that acts 5 times a second."""
    inputs = PolicySpec(state_tokens=True, period_s=0.2, view=(0.25, 0.25, 0.75, 0.75))
    return build(training_rig.workplace() / "rl_base", SIZES, inputs=inputs)


@lru_cache(maxsize=1)
def chunk_base() -> Path:
    """Return a tiny model with OpenVLA-OFT's head and FiLM, random, that predicts four steps."""
    inputs = PolicySpec(chunk_steps=4, period_s=0.2)
    folder = build(training_rig.workplace() / "rl_chunks", SIZES, inputs=inputs)
    torch.manual_seed(1)
    model = loading.load(folder).model
    hidden = model.config.text.hidden_size
    model.vision_backbone.add_film(hidden)
    _, film = oft_loading.without_film(model.state_dict())
    head, proprio = oft_loading.new_heads(hidden, DOF, DOF)
    files = {
        oft_loading.ACTION_HEAD: head.state_dict(), oft_loading.PROPRIO: proprio.state_dict(),
        oft_loading.FILM: film,
    }  # fmt: skip
    for kind, tensors in files.items():
        torch.save(tensors, folder / oft_loading.file_name(kind, 0))
    return folder


def flags(output: Path, *more: str) -> list[str]:
    """Return the flags of a short run; its folder is `output`. `more` override them."""
    return [
        "--sft-checkpoint", str(base()), "--env-id", "Lift-CRANE-X7", "--backend", "cpu",
        "--num-parallel-envs", "2", "--env-processes", "1", "--camera-size", "48x48",
        "--episode-s", "0.6",
        "--device", "cpu", "--num-updates", "4", "--rollout-steps", "6", "--epochs", "1",
        "--minibatch-size", "6", "--micro-batch-size", "3", "--lora-rank", "4",
        "--lora-alpha", "8", "--rewards", "dense", "--evaluate-every", "0", "--save-every", "2",
        "--log-steps", "1", "--no-tensorboard", "--target-kl", "100",
        "--output-dir", str(output.parent), "--experiment-name", output.name, *more,
    ]  # fmt: skip


def train(output: Path, *more: str, curves: bool = False) -> None:
    """Train in this process."""
    again(*flags(output, *more), curves=curves)


def again(*argv: str, curves: bool = False) -> None:
    """Train with these flags alone, in this process; the picture of the curves takes a second."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    rl_command.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(rl_figures, "plot", empty_curves)
        rl_command.run(parser.parse_args(argv))


def empty_curves(run: Path) -> None:
    """Write the file of the curves as `plot` does, without drawing them."""
    (run / rl_figures.PLOT).write_bytes(b"")


WHOLE = ("--evaluate-every", "4", "--evaluate-episodes", "1", "--evaluate-videos", "1")


@lru_cache(maxsize=1)
def whole() -> Path:
    """Return the folder of a run of WHOLE that was never stopped, in a real simulation."""
    run = training_rig.workplace() / "rl_whole"
    train(run, *WHOLE, curves=True)
    return run


def figures(run: Path) -> list[dict[str, Any]]:
    """Return what was logged, times left out."""
    lines = training_rig.metrics(run)
    return [{name: one[name] for name in one.keys() - TIMES} for one in lines]


def assert_same(run: Path, whole: Path) -> None:
    """Assert that both runs did the same and ended with the same weights and counters."""
    assert figures(run) == figures(whole)
    one, other = (loading.load(each / "last").model.state_dict() for each in (run, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    head, same = ((each / "last/value_head.safetensors").read_bytes() for each in (run, whole))
    assert head == same
    optimizer, other_optimizer = (
        training_state.read_tensors(each / "last")[0]["state"] for each in (run, whole)
    )
    for name, state in optimizer.items():
        assert all(torch.equal(state[key], other_optimizer[name][key]) for key in state)
    progress, same_progress = (training_state.read_progress(each / "last") for each in (run, whole))
    assert progress == same_progress


Script = dict[tuple[int, int], str]


class Scripted:
    """A VectorEnv of four environments in two groups, in which what happens is written down."""

    num_envs, groups = 4, (range(2), range(2, 4))

    def __init__(
        self, script: dict[tuple[int, int], str], reward: float = 1.0, truth: float | None = None
    ) -> None:
        """`script`: what happens to an environment in its k-th step, by (k, environment); `truth`:
        a number that the true state depends on, None for views without one."""
        self.script, self.reward, self.truth = script, reward, truth
        self.done = [0, 0]
        self.log: list[str] = []

    def look(self, group: int) -> Views:
        self.log.append(f"look {group}")
        return self._views(group, np.arange(2), 0)

    def _views(self, group: int, rows: Any, final: int) -> Views:
        marks = [50 * self.groups[group][row] + self.done[group] + 20 * final for row in rows]
        images = np.stack([np.full((48, 64, 3), mark, np.uint8) for mark in marks])
        images[:, :24, :32] += np.arange(32, dtype=np.uint8)[None, None, :, None]
        state = np.tile(HOME_RAD, (len(rows), 1)).astype(np.float32)
        true_state = None
        if self.truth is not None:
            true_state = np.full((len(rows), TRUE_STATE), self.truth, np.float32)
            true_state[:, 0] = np.array(marks) / 50
        return Views(rows, images, state, ["lift the red cube"] * len(rows), true_state)

    def send(self, group: int, targets_rad: Any) -> None:
        self.log.append(f"send {group}")
        assert np.isfinite(targets_rad).all()

    def receive(self, group: int) -> Steps:
        self.log.append(f"receive {group}")
        step, envs = self.done[group], self.groups[group]
        self.done[group] += 1
        what = [self.script.get((step, env), "") for env in envs]
        cut = np.array([word == "truncated" for word in what])
        lost = np.array([word == "discarded" for word in what])
        ended = [env for env, word in zip(envs, what, strict=True) if word.endswith("ated")]
        return Steps(
            reward=np.where(lost, 0, self.reward).astype(np.float32),
            steps=np.array([{"": 2, "discarded": 0}.get(word, 1) for word in what]),
            terminated=np.array([word == "terminated" for word in what]),
            truncated=cut,
            final=self._views(group, np.flatnonzero(cut), 1) if cut.any() else None,
            discarded=lost,
            episodes=tuple(EpisodeResult(env, env, True, 1.0, step + 1) for env in ended),
        )

    def reset(self, seed: int | None = None) -> None:
        del seed
        self.done = [0, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0, "episodes": list(self.done)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
        self.done = [0, 0]

    def start_from(self, starts: Starts) -> None:
        del starts

    def close(self) -> None:
        """Nothing is open."""


def words(log: Sequence[str]) -> str:
    """Return a log as one line: l0 s0 for look 0, send 0."""
    return " ".join(entry[0] + entry[-1] for entry in log)
