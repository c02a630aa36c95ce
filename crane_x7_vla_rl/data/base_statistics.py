"""Scale of this arm's actions for a model that has never seen it. Demonstrations → one JSON file.

    python -m crane_x7_vla_rl.data.base_statistics FILE DATASET…     (scripts/base-statistics)

A base model such as openvla/openvla-7b holds the statistics of other robots only. To train it on
this arm, its 255 bins must be spread over angles that the arm takes. The package ships the result,
`configs/crane_x7_statistics.json`. Where each figure comes from:

- `min`, `max`, `mean`, `std`: of simulated demonstrations of both tasks, widest scene, in rad.
- `q01`, `q99`, what −1 and 1 stand for: `min` and `max`, widened by MARGIN_RAD on both sides and
  cut to the joint's limits (`robot.py`). The limits alone are 5.5 rad apart for most joints: a bin
  would be 21 mrad, 6 mm at the fingertips. This makes it 1 to 8 mrad. The margin is room to
  explore.
- the gripper is not widened: its two extremes, closed and open, must be the outermost bins.
- `proprio`: the same of the measured joints.

`--statistics FILE` of `train` and `sft` takes another file; `statistics.py` makes one of any data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import write_json
from crane_x7_vla_rl.data.source import EpisodeSource, open_source
from crane_x7_vla_rl.data.statistics import KEY, DataStatistics, compute_statistics
from crane_x7_vla_rl.robot import ARM_DOF, LOWER_RAD, UPPER_RAD

SHIPPED: Final = Path(__file__).parent / "crane_x7_statistics.json"
"""The file of this arm that comes with the package."""
MARGIN_RAD: Final = 0.15
"""Beyond what the demonstrations needed, per arm joint and side."""
SOURCE: Final = "simulated demonstrations of Lift and PickPlace, widened; see base_statistics.py"


def widened(statistics: DataStatistics) -> dict[str, Any]:
    """Return what the file holds for the statistics of demonstrations."""
    content = statistics.to_dict()
    for kind in ("action", "proprio"):
        summary = content[KEY][kind]
        summary["q01"], summary["q99"] = bounds(summary["min"], summary["max"])
    content[KEY]["source"] = SOURCE
    return content


def bounds(low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[list[float], list[float]]:
    """Return the angles (8,) that −1 and 1 stand for, given the least and largest ones, in rad."""
    margin = np.full(LOWER_RAD.shape, MARGIN_RAD)
    margin[ARM_DOF] = 0.0
    first = np.clip(np.asarray(low) - margin, LOWER_RAD, UPPER_RAD)
    last = np.clip(np.asarray(high) + margin, LOWER_RAD, UPPER_RAD)
    return np.round(first, 4).tolist(), np.round(last, 4).tolist()


class Joined:
    """Several data sets one after the other, as an EpisodeSource; their rates may differ."""

    def __init__(self, sources: Sequence[EpisodeSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources)

    def __getitem__(self, index: int) -> Episode:
        for source in self._sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    @property
    def fps(self) -> float:
        """Of the first one."""
        return self._sources[0].fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) frames of each episode."""
        return np.concatenate([source.lengths for source in self._sources])

    @property
    def name(self) -> str:
        """All names."""
        return ", ".join(source.name for source in self._sources)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla_rl.data.base_statistics", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folder of demonstrations")
    args = parser.parse_args(argv)
    try:
        source = Joined([open_source(folder) for folder in args.datasets])
        write_json(args.file, widened(compute_statistics(source)))
    except (DataError, OSError) as error:
        print(f"base_statistics: {error}", file=sys.stderr)
        return 4
    print(f"{args.file}: {len(source)} demonstrations of {source.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
