"""Short runs of `train` with a tiny policy in a small simulation."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import torch

from crane_x7_vla_rl.policies.openvla.builder import build
from crane_x7_vla_rl.policies.openvla.codec import Inputs
from crane_x7_vla_rl.training import rl_command
from tests import training_rig
from tests.training_rig import SIZES


@lru_cache(maxsize=1)
def base() -> Path:
    """Return a tiny model with random weights that acts 5 times a second."""
    inputs = Inputs(state_tokens=True, period_s=0.2, view=(0.25, 0.25, 0.75, 0.75))
    return build(training_rig.workplace() / "rl_base", SIZES, inputs=inputs)


def flags(output: Path, *more: str) -> list[str]:
    """Return the flags of a short run; its folder is `output`. `more` count more."""
    return [
        "--sft-checkpoint", str(base()), "--env-id", "Lift-CRANE-X7", "--backend", "cpu",
        "--num-parallel-envs", "2", "--env-processes", "1", "--camera-size", "48x48",
        "--device", "cpu", "--num-updates", "4", "--rollout-steps", "6", "--epochs", "1",
        "--minibatch-size", "6", "--micro-batch-size", "3", "--lora-rank", "4",
        "--lora-alpha", "8", "--rewards", "dense", "--evaluate-every", "0", "--save-every", "2",
        "--log-steps", "1", "--no-tensorboard", "--target-kl", "100",
        "--output-dir", str(output.parent), "--experiment-name", output.name, *more,
    ]  # fmt: skip


def train(output: Path, *more: str) -> None:
    """Train in this process."""
    again(*flags(output, *more))


def again(*argv: str) -> None:
    """Train with these flags alone, in this process."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    rl_command.add_arguments(parser)
    rl_command.run(parser.parse_args(argv))
