"""Which frames are trained on, and how often. Marks of interventions → a `Selection` of frames.

Interventions are frames in which a person showed what a policy should have done. DAgger trains on
them together with the demonstrations, often with more weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.source import EpisodeSource, interventions

Interventions = Literal["with", "only", "without"]


@dataclass(frozen=True)
class Choice:
    """What to do with interventions."""

    interventions: Interventions = "with"
    """Train on all frames, on interventions alone, or on all others."""
    weight: float = 1.0
    """How often an intervention is used in an epoch; any other frame is used once."""


EVERY_FRAME: Final = Choice()


class Selection:
    """How often each frame of a data set is used in an epoch."""

    def __init__(self, weights: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> None:
        """`weights` (N,) has the frames of all episodes, one after another; 0: not used."""
        self.weights = weights
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        used = weights > 0
        ends = used & ~np.append(used[1:], False)
        ends[self._starts[1:] - 1] |= used[self._starts[1:] - 1]
        self._ends = np.flatnonzero(ends)
        """Last frames of all runs of used frames."""
        self._used = np.flatnonzero(used)

    def last(self, episode: int, frame: int) -> int:
        """Return the last frame of the run of used frames that `frame` is in: actions after it are
        not part of what is learned."""
        start = self._starts[episode]
        return int(self._ends[np.searchsorted(self._ends, start + frame)] - start)

    def stand_in(self, episode: int, frame: int) -> int | None:
        """Return a used frame of `episode` in place of one of another episode; None if it has
        none."""
        start, end = self._starts[episode : episode + 2]
        first, stop = np.searchsorted(self._used, (start, end))
        return int(self._used[first + frame % (stop - first)] - start) if stop > first else None


def select_frames(source: EpisodeSource, choice: Choice) -> Selection | None:
    """Return the frames of `choice`; None: every frame once.

    Raises DataError if the recordings do not say what is an intervention, or nothing is left.
    """
    if choice == EVERY_FRAME:
        return None
    marks = interventions(source)
    if marks is None:
        raise DataError(
            f"{source.name}: does not say which frames are interventions; `infer --record` and"
            " `trial --record` write that column. Leave --interventions and --intervention-weight"
            " out"
        )
    if choice.interventions == "with":
        weights = np.where(marks, choice.weight, 1.0)
    else:
        weights = np.where(marks == (choice.interventions == "only"), 1.0, 0.0)
    if not weights.any():
        kind = "is an intervention" if choice.interventions == "only" else "is anything else"
        raise DataError(
            f"{source.name}: none of its {len(marks)} frames {kind}; use --interventions with"
        )
    return Selection(weights, source.lengths)
