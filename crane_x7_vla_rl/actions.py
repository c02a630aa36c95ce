"""Actions as tokens, bins, normalised values and radians, (…, D) numpy: one form → another.

A token is one of the last 256 ids of Llama's vocabulary: id 31999 is the lowest bin, 31744 the
highest. Values are the centres of the 255 bins between 256 edges over [−1, 1], so 31744 and 31745
mean the same. The statistics that scale actions come from a checkpoint; an unknown key raises,
since another robot's scale would move an arm to wrong positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.suggest import did_you_mean

Array = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

ACTION_BINS: Final = 256
VOCABULARY: Final = 32000
"""Number of Llama's tokens; OpenVLA's 64 rows beyond them are padding."""
FIRST_ACTION_TOKEN: Final = VOCABULARY - ACTION_BINS
NO_TOKEN: Final = -1
"""Marks a token that could not be chosen, because its logits were NaN or infinite."""
EDGES: Final = np.linspace(-1.0, 1.0, ACTION_BINS)
CENTRES: Final = (EDGES[:-1] + EDGES[1:]) / 2
"""(255,) normalised value of each bin."""


QUANTILES: Final = ("q01", "q99")
"""Entries of the statistics for −1 and 1."""


class StatisticsError(ValueError):
    """Statistics are missing for a key, or malformed; says which keys are known."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Scale of one data set's actions (or proprioception), per dimension."""

    low: Array
    """(D,) value for −1, in rad for joints: usually the 1st percentile."""
    high: Array
    """(D,) value for 1."""
    mask: npt.NDArray[np.bool_]
    """(D,) False for values that are not scaled, such as the gripper's."""

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], source: str, bounds: tuple[str, str] = QUANTILES
    ) -> Statistics:
        """Return the statistics in `{q01, q99, mask}`, mask optional; raises StatisticsError.

        `bounds` names the entries for −1 and 1 if training used others, such as min and max.
        """
        vectors = []
        for name in bounds:
            try:
                vectors.append(np.array(raw[name], dtype=np.float64))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise StatisticsError(
                    f"{source}: {name} is {quoted(raw.get(name))}, expected a list of numbers"
                ) from error
        low, high = vectors
        try:
            mask = np.array(raw.get("mask", np.ones(low.shape, bool)))
        except ValueError as error:  # lists of several lengths
            raise StatisticsError(
                f"{source}: mask is {quoted(raw['mask'])}, expected a list of true and false"
            ) from error
        if low.ndim != 1 or not low.size or low.shape != high.shape or mask.shape != low.shape:
            raise StatisticsError(
                f"{source}: {bounds[0]} has shape {low.shape}, {bounds[1]} {high.shape}, mask"
                f" {mask.shape}; expected three lists of one length"
            )
        if mask.dtype != np.bool_:
            raise StatisticsError(f"{source}: mask holds {mask.dtype}, expected true and false")
        if not np.isfinite([low, high]).all() or (high < low)[mask].any():
            names = " ≤ ".join(bounds)
            raise StatisticsError(f"{source}: {low} and {high}, expected finite {names}")
        return cls(low, high, mask)

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.low)

    def unnormalise(self, values: npt.ArrayLike) -> Array:
        """Return (…, D) in the robot's units for normalised (…, D)."""
        array = self._checked(values)
        scaled = 0.5 * (array + 1) * (self.high - self.low) + self.low
        return np.where(self.mask, scaled, array)

    def normalise(self, values: npt.ArrayLike) -> Array:
        """Return (…, D) in [−1, 1] for (…, D) in the robot's units; a span of 0 becomes 0."""
        array = self._checked(values)
        span = self.high - self.low
        scaled = 2 * (array - self.low) / np.where(span > 0, span, 1.0) - 1
        return np.where(self.mask, np.where(span > 0, np.clip(scaled, -1, 1), 0.0), array)

    def _checked(self, values: npt.ArrayLike) -> Array:
        array = np.asarray(values, dtype=np.float64)
        if array.shape[-1:] != self.low.shape:
            raise StatisticsError(
                f"values have shape {array.shape}, but the statistics have {self.dimensions}"
                " dimensions; use the statistics of this robot's data"
            )
        return array


def find_statistics(
    norm_stats: Mapping[str, Any],
    key: str,
    kind: str = "action",
    source: str = "norm_stats",
    bounds: tuple[str, str] = QUANTILES,
) -> Statistics:
    """Return the `kind` of statistics under `key`; raises StatisticsError that lists the keys."""
    if key not in norm_stats:
        known = sorted(norm_stats)
        hint = did_you_mean(repr(key), map(repr, known)) or ";"
        raise StatisticsError(
            f"{source}: key {key!r} is unknown{hint} known: {', '.join(known) or 'none'}"
        )
    entry = norm_stats[key]
    found = entry.get(kind) if isinstance(entry, Mapping) else None
    if not isinstance(found, Mapping):
        raise StatisticsError(f"{source}: {key} has no {kind!r} statistics")
    return Statistics.from_dict(found, f"{source}: {key}.{kind}", bounds)


def tokens_to_normalised(tokens: npt.ArrayLike) -> Array:
    """Return (…, D) in [−1, 1] for action tokens (…, D); ids beyond the bins take the nearest.

    Raises ValueError for NO_TOKEN and other negative values.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    if (ids < 0).any():
        raise ValueError(
            f"tokens contain {ids.min()}, which is not a token: the logits that it was chosen from"
            " were NaN or infinite"
        )
    bins = np.clip(VOCABULARY - ids - 1, 0, len(CENTRES) - 1)
    return np.asarray(CENTRES[bins], dtype=np.float64)


def normalised_to_tokens(values: npt.ArrayLike) -> Tokens:
    """Return tokens (…, D) for values (…, D), clipped to [−1, 1]; NaN raises ValueError.

    As in training: 1 and above is token 31744, which decodes to the last bin's centre.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError(f"actions contain NaN: {array}; expected finite numbers")
    return np.asarray(VOCABULARY - np.digitize(np.clip(array, -1, 1), EDGES), dtype=np.int64)
