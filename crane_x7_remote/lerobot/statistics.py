"""The statistics in a checkpoint's processors. LeRobot's processing steps → checked, or mended.

LeRobot leaves a value as it is where its statistics are missing, and divides by almost nothing
where a joint never moved in training. The first is an error here; the second is mended: such a
joint's state counts as what it was in training, for deviations that are small beside RANGE.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

from crane_x7_remote.errors import PolicyError

logger = logging.getLogger(__name__)

STILL: Final = 1e-3
"""A joint whose training data span less than this (rad, degrees or percent) did not move."""
RANGE: Final = 1.0
"""Span that such a joint gets in the data's unit."""
NEEDED: Final = {
    "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"),
}  # fmt: skip
"""LeRobot's mode → the statistics that it needs."""


def check(before: Any, after: Any, action: str = "action") -> None:
    """Check and mend the pre- and postprocessor; raises PolicyError for missing statistics."""
    for step in _normalizers(before):
        for key, mode in _normalized(step, action, is_input=True):
            _require(step, key, mode)
            _mend(step, key, mode)
    for step in _normalizers(after):
        for key, mode in _normalized(step, action, is_input=False):
            _require(step, key, mode)


def _normalizers(pipeline: Any) -> Iterator[Any]:
    return (step for step in pipeline.steps if hasattr(step, "norm_map"))


def _normalized(step: Any, action: str, *, is_input: bool) -> Iterator[tuple[str, str]]:
    """Yield the features that a step normalizes, with the mode."""
    for key, feature in step.features.items():
        mode = step.norm_map.get(feature.type)
        named = None if mode is None else mode.name
        if named in NEEDED and (key == action) != is_input:
            yield key, named


def _require(step: Any, key: str, mode: str) -> None:
    found = (step.stats or {}).get(key, {})
    missing = [name for name in NEEDED[mode] if name not in found]
    if missing:
        raise PolicyError(
            f"the checkpoint's statistics of {key} lack {' and '.join(missing)}, which its"
            f" normalization {mode} needs; LeRobot would hand the values on as they are. Train with"
            " a data set whose statistics hold them"
        )


def _mend(step: Any, key: str, mode: str) -> None:
    """Widen the span of values that never changed, so that training's value keeps its place."""
    import numpy as np

    if "image" in key:
        return
    stats = step.stats[key]
    low, high = (np.array(stats[name], dtype=np.float64) for name in NEEDED[mode])
    span = high if mode == "MEAN_STD" else high - low
    still = np.abs(span) < STILL
    if not still.any():
        return
    logger.warning(
        "%s: value%s %s never moved in training; deviations from it count in units, not in spans",
        key, "s" * (still.sum() > 1), ", ".join(str(k) for k in np.flatnonzero(still)),
    )  # fmt: skip
    high = np.where(still, RANGE if mode == "MEAN_STD" else low + RANGE, high)
    stats[NEEDED[mode][1]] = high.astype(np.float32)
    step.to(device=step.device)
