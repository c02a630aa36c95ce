"""How strongly a policy is held to the one it started from: KL of an update → the next coefficient.

A fixed `ppo.kl_coefficient` is too strong for one task and too weak for another. With
`ppo.ref_kl_target` it adapts after each update, as PPO's penalty does
(https://arxiv.org/abs/1707.06347, section 4), but to the starting policy.
"""

from __future__ import annotations

from typing import Final

FAR: Final = 1.5
"""Share of the target above which, or below whose inverse, the coefficient changes."""
STEP: Final = 2.0
LEAST, MOST = 1e-4, 10.0
"""Limits, so that no long quiet time lets the coefficient vanish or grow beyond return."""


def next_coefficient(now: float, ref_kl: float, target: float | None) -> float:
    """Return the coefficient of the next update; `ref_kl` in nats per prediction."""
    if target is None:
        return now
    if ref_kl > FAR * target:
        return min(now * STEP, max(MOST, now))
    if ref_kl < target / FAR:
        return max(now / STEP, min(LEAST, now))
    return now
