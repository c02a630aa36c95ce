"""Temporal ensembling against ACT's own formula, and what ends it."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.policy_server.ensemble import TemporalEnsemble
from crane_x7_vla_rl.types import ActionChunk

PERIOD_S = 0.1


def _chunk(values: list[float]) -> ActionChunk:
    return ActionChunk(np.tile(np.array(values)[:, None], (1, 8)), PERIOD_S)


def test_each_step_is_acts_weighted_mean_of_all_predictions_for_its_time() -> None:
    rng = np.random.default_rng(3)
    steps, coefficient = 6, 0.3
    chunks = rng.normal(size=(10, steps))
    ensemble = TemporalEnsemble(coefficient)
    for now, values in enumerate(chunks):
        made = ensemble.add(now * PERIOD_S, _chunk(list(values))).position_rad[:, 0]
        for step in range(steps):
            when = now + step  # the step of an episode that this one is for
            covering = [c for c in range(now + 1) if 0 <= when - c < steps and now - c < steps]
            predictions = [chunks[c][when - c] for c in covering]
            weights = np.exp(-coefficient * np.arange(len(covering)))
            # Chunks that are over by the first step of this one no longer count for the weights.
            expected = np.average(predictions, weights=weights)
            assert made[step] == pytest.approx(expected, rel=1e-9), (now, step)


def test_chunks_between_the_steps_of_others_are_interpolated() -> None:
    ensemble = TemporalEnsemble(0.0)
    ramp = [0.0, 1.0, 2.0, 3.0, 4.0]
    ensemble.add(0.0, _chunk(ramp))
    made = ensemble.add(0.05, _chunk([value + 0.5 for value in ramp])).position_rad[:, 0]
    # The same ramp in time; the last step is covered by the newer chunk alone.
    assert made == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5])


def test_what_is_over_does_not_count_and_reset_forgets() -> None:
    ensemble = TemporalEnsemble(0.01)
    ensemble.add(0.0, _chunk([9.0, 9.0]))
    late = ensemble.add(5.0, _chunk([1.0, 1.0]))
    assert late.position_rad == pytest.approx(np.ones((2, 8)))
    ensemble.reset()
    fresh = ensemble.add(5.0, _chunk([3.0, 3.0]))
    assert fresh.position_rad == pytest.approx(np.full((2, 8), 3.0))


def test_the_memory_is_bounded_by_the_chunks_length() -> None:
    ensemble = TemporalEnsemble(0.01)
    for tick in range(1000):
        ensemble.add(tick * PERIOD_S, _chunk([0.0] * 20))
    assert len(ensemble._chunks) == 20
