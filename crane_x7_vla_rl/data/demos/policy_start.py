"""A policy drives first, and the expert takes over. A policy's folder → a world it has acted in.

What the policy does is not recorded, only the way back from there: demonstrations then begin where
that policy goes, mistakes included (DAgger with takeovers, https://arxiv.org/abs/1810.02890).
"""

from __future__ import annotations

import numpy as np

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.kind import kind_of
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.sim.world import World


class PolicyStart:
    """The policy of a checkpoint, for a random time at the start of each task."""

    def __init__(self, checkpoint: str, longest_s: float) -> None:
        """Raises PolicyLoadError."""
        self._policy = load_policy(kind_of(checkpoint), ModelOptions(path=checkpoint))
        self._longest_s = longest_s

    def reset(self) -> None:
        """Forget the episode before."""
        self._policy.reset()

    def drive(self, world: World, instruction: str, generator: np.random.Generator) -> None:
        """Let the policy drive, a random part of each chunk, for 0 to `longest_s`."""
        steps = round(generator.uniform(0, self._longest_s) * world.config.control_hz)
        while steps > 0:
            (chunk,) = self._policy.predict([world.observe(instruction)])
            few = 1 + int(generator.integers(len(chunk.position_rad)))
            for target in chunk.position_rad[: min(few, steps)]:
                world.step(target)
            steps -= few
