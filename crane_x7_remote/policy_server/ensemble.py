"""Temporal ensembling: a chunk → the mean with the earlier chunks that cover the same times. Pure.

From ACT (Zhao et al. 2023, https://arxiv.org/abs/2304.13705, algorithm 2): every prediction for a
moment counts, with weight exp(−coefficient · i), i = 0 for the oldest chunk. A policy that predicts
often then keeps to its plan, instead of hesitating where two plans look equally good. Two
departures: predictions are matched by time, not by step, as the loop's ticks and the chunk's steps
differ; and a whole chunk comes out, not its first step, because the loop must bridge its delays.

Shapes: T steps, 8 joints in rad.
"""

from __future__ import annotations

import numpy as np

from crane_x7_vla_rl.types import ActionChunk, Array

ROUNDING_S = 1e-6


class TemporalEnsemble:
    """The chunks of one task that are not over yet."""

    def __init__(self, coefficient: float) -> None:
        """`coefficient` is LeRobot's `temporal_ensemble_coeff`; 0 weighs all alike."""
        self._coefficient = coefficient
        self._chunks: list[tuple[Array, Array]] = []
        """(due_s (T,), targets (T, 8)), the oldest first."""

    def reset(self) -> None:
        """Forget the earlier chunks: another task, or another robot."""
        self._chunks.clear()

    def add(self, taken_s: float, chunk: ActionChunk) -> ActionChunk:
        """Return the mean chunk for an image taken at `taken_s`, with the same T and period."""
        steps = np.arange(1, len(chunk.position_rad) + 1, dtype=np.float64)
        due_s: Array = taken_s + chunk.period_s * steps  # (T,)
        kept = [each for each in self._chunks if each[0][-1] >= due_s[0] - ROUNDING_S]
        self._chunks = [*kept, (due_s, chunk.position_rad)]
        total, weights = np.zeros_like(chunk.position_rad), np.zeros((len(due_s), 1))
        for age, (times_s, targets) in enumerate(self._chunks):
            covers = (due_s >= times_s[0] - ROUNDING_S) & (due_s <= times_s[-1] + ROUNDING_S)
            weight = np.exp(-self._coefficient * age) * covers[:, None]  # (T, 1)
            total += weight * np.column_stack(
                [np.interp(due_s, times_s, joint) for joint in targets.T]
            )
            weights += weight
        return ActionChunk(total / weights, chunk.period_s)
