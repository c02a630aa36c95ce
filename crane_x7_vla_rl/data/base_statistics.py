"""Scale of this arm's actions for a model that has never seen it. Demonstrations → one JSON file.

    python -m crane_x7_vla_rl.data.base_statistics FILE DATASET…     (scripts/base-statistics)

A base model such as openvla/openvla-7b has only the statistics of other robots. To train it on this
arm, its 255 bins must cover the angles of the arm's motion. The package ships the result,
`configs/crane_x7_statistics.json`. Source of each figure:

- `min`, `max`, `mean`, `std`: simulated demonstrations of both tasks, widest scene, in rad.
- `q01`, `q99`, the values for −1 and 1: `min` and `max`, widened by MARGIN_RAD on both sides and
  clipped to the joint's limits (`robot.py`). The limits are 5.5 rad apart for most joints: their
  bins would be 21 mrad wide, 6 mm at the fingertips; these are 1 to 8 mrad. The margin leaves room
  to explore.
- the gripper is not widened: its two extremes, closed and open, must be the outermost bins.
- `proprio`: the same of the measured joints.

`--statistics FILE` of `train` and `sft` selects another file; `statistics.py` computes one from any
data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data import reading
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import write_json
from crane_x7_vla_rl.data.source import join, open_source
from crane_x7_vla_rl.data.statistics import KEY, DataStatistics, compute_statistics
from crane_x7_vla_rl.robot import ARM_DOF, LOWER_RAD, UPPER_RAD

SHIPPED: Final = Path(__file__).parent / "crane_x7_statistics.json"
"""This arm's file in the package."""
MARGIN_RAD: Final = 0.15
"""Added to the range of the demonstrations, per arm joint and side."""
SOURCE: Final = "simulated demonstrations of Lift and PickPlace, widened; see base_statistics.py"


def widened(statistics: DataStatistics) -> dict[str, Any]:
    """Return the file's content for the statistics of demonstrations."""
    content = statistics.to_dict()
    for kind in ("action", "proprio"):
        summary = content[KEY][kind]
        summary["q01"], summary["q99"] = bounds(summary["min"], summary["max"])
    content[KEY]["source"] = SOURCE
    return content


def bounds(low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[list[float], list[float]]:
    """Return the angles (8,) for −1 and 1, from the least and largest angles, in rad."""
    margin = np.full(LOWER_RAD.shape, MARGIN_RAD)
    margin[ARM_DOF] = 0.0
    first = np.clip(np.asarray(low) - margin, LOWER_RAD, UPPER_RAD)
    last = np.clip(np.asarray(high) + margin, LOWER_RAD, UPPER_RAD)
    return np.round(first, 4).tolist(), np.round(last, 4).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla_rl.data.base_statistics", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folder of demonstrations")
    reading.add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        stated = reading.from_args(args)
        source = join([open_source(folder, reading=stated) for folder in args.datasets])
        write_json(args.file, widened(compute_statistics(source)))
    except (DataError, OSError) as error:
        print(f"base_statistics: {error}", file=sys.stderr)
        return 4
    print(f"{args.file}: {len(source)} demonstrations of {source.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
