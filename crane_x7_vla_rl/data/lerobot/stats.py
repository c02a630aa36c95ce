"""The statistics that LeRobot stores. Arrays of one episode → {feature: {min, max, mean, std, …}}.

float64; images scaled to 0 … 1 with shape (3, 1, 1). Means and deviations combine exactly;
quantiles combine as in LeRobot, as means weighted by count. This project's training normalises with
the exact figures of `data.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import Episode

Array = npt.NDArray[np.float64]
Stats = dict[str, dict[str, Array]]

QUANTILES: Final = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES: Final = ("min", "max", "mean", "std", "count", *QUANTILES)
SAMPLED_FRAMES: Final = 16
"""Frames of an episode that its image statistics use, evenly spread."""
SAMPLED_PIXELS: Final = 100_000


def vector_stats(values: npt.ArrayLike) -> dict[str, Array]:
    """Return the statistics of (n, D) numbers, each (D,); `count` is (1,)."""
    array = np.asarray(values, dtype=np.float64)
    quantiles = np.quantile(array, list(QUANTILES.values()), axis=0)
    return {
        "min": array.min(axis=0),
        "max": array.max(axis=0),
        "mean": array.mean(axis=0),
        "std": array.std(axis=0),
        "count": np.array([len(array)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def image_stats(episode: Episode) -> dict[str, Array]:
    """Return the statistics of a sample of the episode's frames, per channel, (3, 1, 1)."""
    count = min(SAMPLED_FRAMES, len(episode))
    chosen = np.linspace(0, len(episode) - 1, count).round().astype(int)
    pixels = np.concatenate([episode.image(int(t)).reshape(-1, 3) for t in chosen])
    stats = vector_stats(pixels[:: 1 + len(pixels) // SAMPLED_PIXELS] / 255.0)
    shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items() if name != "count"}
    return {**shaped, "count": np.array([count])}


def combine(parts: Iterable[Stats]) -> Stats:
    """Return the combined statistics of parts that have the same features."""
    total: Stats = {}
    for part in parts:
        total = {
            name: _pair(total[name], stats) if name in total else dict(stats)
            for name, stats in part.items()
        }
    return total


def _pair(one: Mapping[str, Array], two: Mapping[str, Array]) -> dict[str, Array]:
    count = one["count"] + two["count"]
    share = two["count"][0] / count[0]
    step = two["mean"] - one["mean"]
    variance = (1 - share) * one["std"] ** 2 + share * two["std"] ** 2
    return {
        "min": np.minimum(one["min"], two["min"]),
        "max": np.maximum(one["max"], two["max"]),
        "mean": one["mean"] + share * step,
        "std": np.sqrt(variance + share * (1 - share) * step**2),
        "count": count,
        **{name: (1 - share) * one[name] + share * two[name] for name in QUANTILES},
    }
