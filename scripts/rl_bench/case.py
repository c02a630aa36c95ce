"""The common case of all sides of bench_rl: a model with random weights, and configs/rl_tiny.yaml.

A size → a checkpoint folder, in a folder that the caller deletes, and the configuration of a run.
Random weights cost as much as trained ones, except that no episode ends early by success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crane_x7_vla_rl.policies.openvla import builder
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.rl.config import RlConfig

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "rl_tiny.yaml"
VIEW = (0.29, 0.45, 0.67, 0.85)
PERIOD_S = 0.2
"""Both as in scripts/teach-tiny."""


@dataclass(frozen=True)
class Scale:
    """Size of one run of the benchmark."""

    sizes: builder.Sizes
    rounds: int
    trained: int
    """Updates of the trainer's own run."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Changes to configs/rl_tiny.yaml."""


ENDING = 26
"""Steps of a rollout, so that an episode of 50 steps ends within two rollouts."""

SCALES = {
    "smallest": Scale(
        builder.Sizes(
            hidden=32, layers=2, heads=2, mlp=64, dino_dim=32, dino_depth=2, siglip_dim=32,
            siglip_depth=2, vision_heads=2, image=32, patch=8,
        ), rounds=2, trained=2, changes={
            "env.num_parallel_envs": 2, "env.processes": 1, "training.rollout_steps": ENDING,
            "ppo.epochs": 1, "ppo.minibatch_size": 26, "ppo.micro_batch_size": 13, "lora.rank": 4,
            "evaluation.every": 2, "evaluation.episodes": 1,
        },
    ),
    "tiny": Scale(
        builder.Sizes(image=96, patch=12, dino_depth=3, siglip_depth=3), rounds=3, trained=4
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Inputs of every side."""

    model: Path
    scale: Scale
    device: torch.device
    threads: int
    """Threads of torch in the plain loop; the trainer sets its own."""
    output: Path

    @property
    def halved(self) -> bool:
        """Whether products are in bfloat16."""
        return self.device.type == "cuda"

    def config(self, name: str, changes: Mapping[str, object] | None = None) -> RlConfig:
        """Return rl_tiny.yaml for this model, with complete updates; `name` is the run's."""
        here = {
            "start.sft_checkpoint": str(self.model),
            "training.device": self.device.type,
            "training.time_limit_minutes": None,
            "ppo.target_kl": None,
            "ppo.value.warmup": 0,
            "output.dir": str(self.output),
            "output.experiment_name": name,
        }
        layers = [self.scale.changes, here, changes or {}]
        return loader.build(
            RlConfig, [loader.read_file(RECIPE), *(Layer("bench_rl", each) for each in layers)]
        )

    def world(self) -> WorldConfig:
        """Return the scene that all sides simulate."""
        return self.config("world").env.world(round(1 / PERIOD_S))


def write_model(folder: Path, scale: Scale) -> Path:
    """Write a checkpoint with random weights, of the size that scripts/teach-tiny trains."""
    inputs = PolicySpec(state_tokens=True, period_s=PERIOD_S, view=VIEW)
    return builder.build(folder, scale.sizes, inputs=inputs)


@dataclass(frozen=True)
class Round:
    """Counts and times of one side in a rollout and its update."""

    decisions: int
    """Executed decisions of the policy."""
    env_steps: int
    """Control steps."""
    samples: int
    """Samples of the update, each counted once per epoch."""
    optimizer_steps: int
    simulate_s: float
    """Seconds of waiting for simulations."""
    rollout_s: float
    learn_s: float

    @property
    def rollout_rate(self) -> float:
        """Control steps/s of the rollout."""
        return self.env_steps / self.rollout_s

    @property
    def learn_rate(self) -> float:
        """Samples/s of the update."""
        return self.samples / self.learn_s

    @property
    def whole_rate(self) -> float:
        """Control steps/s of rollout and update together."""
        return self.env_steps / (self.rollout_s + self.learn_s)
