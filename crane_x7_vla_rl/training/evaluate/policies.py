"""Which policy is evaluated, and how its predictions may be run. `EvaluateConfig` → `Candidate`.

OpenVLA predicts for many scenes at once and has no memory. Any other policy may remember what it
saw, or answers one observation at a time, so it gets one scene after another, as on a robot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

import numpy as np

from crane_x7_vla_rl.policies import kind, load
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError, more_cameras
from crane_x7_vla_rl.policies.preflight import OptionNames
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.types import JointState, Observation

NAMES: Final = OptionNames("--checkpoint", "--device", "--unnorm-key")
WITHOUT_CHECKPOINT: Final = ("color-servo", "remote")
LOOP_HZ: Final = 10.0
"""Rate at which the loop asks for predictions by default (VLA_INFERENCE_RATE)."""


@runtime_checkable
class Paced(Protocol):
    """A policy that says how far apart its targets are."""

    @property
    def period_s(self) -> float:
        """Time between the targets of a chunk."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A loaded policy, and how to run it."""

    policy: Policy
    period_s: float
    """Time between the targets of its chunks; the simulation runs at this rate."""
    batched: bool = False
    """Whether it predicts for many scenes at once, without a memory."""
    execute_steps: int | None = None
    """Steps of each chunk to execute, unless the user says; None: all."""


def name_of(checkpoint: str | None, policy: str | None, token: str | None = None) -> str:
    """Return the policy's name: the user's, else the checkpoint's kind.

    Raises PolicyLoadError if neither is known, or a checkpoint is missing.
    """
    if policy is None and checkpoint is None:
        raise PolicyLoadError(
            "no policy: set --checkpoint to a folder or Hub id, or --policy to one of"
            f" {', '.join(WITHOUT_CHECKPOINT)}"
        )
    if policy is None:
        assert checkpoint is not None
        return kind.kind_of(checkpoint, token)
    return policy


def problems(config: EvaluateConfig) -> Iterator[Exception]:
    """Yield what is cheap to find before a policy without batches is loaded."""
    try:
        load.check(config.policy, config.model, NAMES)
    except PolicyLoadError as error:
        yield error


def open_policy(config: EvaluateConfig, model: ModelOptions) -> Candidate:
    """Load the policy with `model`; raises PolicyLoadError."""
    policy = load.load_policy(config.policy, model, NAMES)
    if config.policy == kind.OPENVLA:
        assert isinstance(policy, Paced)
        return Candidate(policy, policy.period_s, batched=True)
    period_s = policy.period_s if isinstance(policy, Paced) else _observed_period_s(policy, config)
    few = round(1 / (LOOP_HZ * period_s)) if config.policy == "color-servo" else None
    return Candidate(policy, period_s, execute_steps=few)


def one_scene(config: EvaluateConfig, candidate: Candidate) -> EvaluateConfig:
    """Return the configuration with one scene at a time, unless the policy takes batches."""
    steps = config.execute_steps or candidate.execute_steps
    config = replace(config, execute_steps=steps)
    return config if candidate.batched else replace(config, processes=1, slots=1)


def _observed_period_s(policy: Policy, config: EvaluateConfig) -> float:
    """Return the period of the chunk for a grey image of an arm at home."""
    width, height = config.world.image_size
    image = np.full((height, width, 3), 128, np.uint8)
    joints = JointState(HOME_RAD, np.zeros_like(HOME_RAD))
    more = dict.fromkeys(more_cameras(policy), image)
    (chunk,) = policy.predict([Observation(image, joints, "pick up the red cube", 0.0, more)])
    policy.reset()
    return chunk.period_s
