"""A policy drives first, and the expert takes over. A policy's folder → a world it has acted in.

What the policy does is not recorded, only the way back from there: demonstrations then begin where
that policy goes, mistakes included (DAgger with takeovers, https://arxiv.org/abs/1810.02890).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.kind import kind_of
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.timing import Pace, Playback
from crane_x7_vla_rl.types import ActionChunk, Array

MOST_TARGETS: Final = 8
"""Of a chunk, before the next image."""


class PolicyStart:
    """The policy of a checkpoint, for a random time at the start of each task."""

    def __init__(self, checkpoint: str, longest_s: float, late_s: float = 0.0) -> None:
        """`late_s`: longest time from an image to the first step that uses the answer.

        Raises PolicyLoadError.
        """
        self._policy = load_policy(kind_of(checkpoint), ModelOptions(path=checkpoint))
        self._longest_s, self._late_s = longest_s, late_s

    def reset(self) -> None:
        """Forget the episode before."""
        self._policy.reset()

    def drive(
        self, world: World, instruction: str, generator: np.random.Generator, rest_rad: Array
    ) -> None:
        """Let the policy drive for 0 to `longest_s`, each time with another rate and delay.

        `rest_rad`: (8,) the target until its first answer. Raises DataError where its targets
        do not fit the control rate.
        """
        steps, late = (
            round(generator.uniform(0, most_s) * world.config.control_hz)
            for most_s in (self._longest_s, self._late_s)
        )
        targets = 1 + int(generator.integers(MOST_TARGETS))
        if not steps:
            return
        chunk = self._predict(world, instruction)
        each = _steps_per_target(chunk.period_s, world.config.control_hz)
        playback = Playback(Pace(each, late, targets * each), rest_rad, seed=0)
        for step in range(steps):
            if playback.sees(step):
                if step:
                    chunk = self._predict(world, instruction)
                playback.answer(chunk.position_rad, step)
            world.step(playback.target(step))

    def _predict(self, world: World, instruction: str) -> ActionChunk:
        (chunk,) = self._policy.predict([world.observe(instruction)])
        return chunk


def _steps_per_target(period_s: float, control_hz: int) -> int:
    steps = period_s * control_hz
    if round(steps) < 1 or abs(steps - round(steps)) > 1e-3:
        raise DataError(
            f"--from: its targets are {period_s:g} s apart, which is not a number of steps at"
            f" --control-hz {control_hz}; set it to {1 / period_s:g} or a multiple"
        )
    return round(steps)
