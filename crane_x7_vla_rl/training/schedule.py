"""How the learning rate goes: a line up to its peak, then half a cosine down to nothing."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, warmup_ratio: float, peak: float) -> float:
    """Return the rate of update `step` (from 0) of `steps`; `peak` is reached after the warm-up.

    Update 0 has the first share of the peak, not zero, so that it is not wasted.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
