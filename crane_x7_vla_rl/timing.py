"""When answers of a policy reach the arm: delay, rate and lost images, in steps of the simulation.

`Timing` → `Pace`; answers with the step of their image → the target of each step. As in the loop,
the arm keeps executing the earlier chunk by time until a new one arrives, steps of the new one
whose time has passed are skipped, and after its last step a chunk stays there. Before the first
chunk the arm holds its pose.

Legend: a step is one of the simulation. T targets of a chunk; target k is in force from k to k + 1
periods of the policy after its image.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np

from crane_x7_vla_rl.fields import FinitePositive, Index, Share, within
from crane_x7_vla_rl.types import Array

FINE_HZ: Final = 20
"""Least steps per second where delay or rate are set: 50 ms are the finest time."""
ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Timing:
    """How late, how often and how surely answers come; the defaults are lockstep."""

    delay_s: Annotated[float, within(0, 2, "s")] = 0.0
    """Time from an image to the first step that uses its answer, rounded up to whole steps."""
    answers_hz: FinitePositive | None = None
    """Answers per second, each for a new image; default: one when the steps to execute end. The
    time between two is rounded up to whole steps."""
    dropped: Share = 0.0
    """Share of images that are lost: the next one is taken instead."""
    step_hz: Index = 0
    """Least steps of the simulation per second, at which times are rounded and success is judged;
    0: the policy's rate, or 20 with a delay or --answers-hz."""

    @property
    def least_hz(self) -> int:
        """Least steps per second."""
        is_fine = self.delay_s > 0 or self.answers_hz is not None
        return max(self.step_hz, FINE_HZ if is_fine else 0)


@dataclass(frozen=True)
class Pace:
    """A `Timing` for one policy, in steps."""

    steps_per_target: int = 1
    """Steps for which one target of a chunk is in force."""
    delay: int = 0
    """Steps from an image to the first one that uses its answer."""
    interval: int | None = None
    """Steps between images; None: until the chunk ends."""
    is_rate: bool = False
    """The interval is a rate: after a lost image the next one is due an interval later. Otherwise
    it is due one target later."""
    dropped: float = 0.0


def pace(timing: Timing, policy_hz: int, execute_targets: int | None) -> tuple[int, Pace]:
    """Return the steps per second, a multiple of the policy's targets per second, and the pace.

    `execute_targets`: targets of each chunk to execute before the next image; None: all.
    """
    each = max(1, math.ceil(timing.least_hz / policy_hz))
    step_hz = each * policy_hz
    interval = None if execute_targets is None else execute_targets * each
    if timing.answers_hz is not None:
        interval = max(1, whole_steps(step_hz / timing.answers_hz))
    late = whole_steps(timing.delay_s * step_hz)
    return step_hz, Pace(each, late, interval, timing.answers_hz is not None, timing.dropped)


def whole_steps(steps: float) -> int:
    """Return steps rounded up, up to rounding errors."""
    return math.ceil(steps - ROUNDING)


class Playback:
    """What the arm executes in one episode."""

    def __init__(self, pace: Pace, rest_rad: Array, seed: int) -> None:
        """`rest_rad`: (8,) target before the first chunk; `seed` decides which images are lost."""
        self._pace, self._rest_rad = pace, rest_rad
        self._generator = np.random.default_rng([seed, 2])
        self._waiting: deque[tuple[int, Array]] = deque()
        self._playing: tuple[int, Array] | None = None
        self._next_image = 0
        self.dropped = 0
        """Images that were lost."""

    def sees(self, step: int) -> bool:
        """Whether an image is taken at this step, and not lost; call it once per step."""
        if step < self._next_image:
            return False
        if not self._pace.dropped or self._generator.random() >= self._pace.dropped:
            return True
        self.dropped += 1
        interval = self._pace.interval if self._pace.is_rate else self._pace.steps_per_target
        assert interval is not None  # a rate has one
        self._next_image = step + interval
        return False

    def answer(self, targets: Array, step: int) -> None:
        """Take the chunk (T, 8) for the image of this step."""
        self._waiting.append((step, targets))
        length, interval = len(targets) * self._pace.steps_per_target, self._pace.interval
        if interval is None or not self._pace.is_rate:
            interval = min(interval or length, length)
        self._next_image = step + interval

    def target(self, step: int) -> Array:
        """Return the (8,) joint targets of this step."""
        while self._waiting and self._waiting[0][0] + self._pace.delay <= step:
            self._playing = self._waiting.popleft()
        if self._playing is None:
            return self._rest_rad
        image_step, targets = self._playing
        index = (step - image_step) // self._pace.steps_per_target
        chosen: Array = targets[min(index, len(targets) - 1)]
        return chosen
