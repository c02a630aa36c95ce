"""Schedules. The number of an update → its learning rate, and how sharp its target is.

The rate rises linearly to its peak, then falls along half a cosine to 0.
"""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, warmup_ratio: float, peak: float) -> float:
    """Return the rate of update `step` (from 0) of `steps`; `peak` is reached after the warm-up.

    Update 0 has the first share of the peak, not 0, so that it has an effect.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def smoothing(step: int, steps: int, first: float) -> float:
    """Return the standard deviation of update `step`'s target, in bins.

    It falls linearly from `first` to 0 in the middle of the run: the policy first learns where bins
    are, then how certain to be of them.
    """
    return first * max(0.0, 1.0 - 2.0 * step / max(steps, 1))
