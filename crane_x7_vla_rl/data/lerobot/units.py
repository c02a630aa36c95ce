"""Joints in rad from the unit of a recording. Rows (T, 8) and a `Reading` → (T, 8) in rad.

A unit is stated, never guessed: values that cannot be what was stated are refused, with the
units that would fit. Legend: T rows; 8 joints in the order of JOINT_NAMES.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.reading import UNITS, Reading
from crane_x7_vla_rl.robot import ARM_DOF, JOINT_NAMES, LOWER_RAD, UPPER_RAD

Rows = npt.NDArray[Any]

BEYOND_RAD: Final = 0.5
"""How far beyond a joint's limit a value may be before its unit or its joint must be wrong. Play,
noise and the hand that guides a leader arm are smaller; `validate` reports from 0.1 rad."""
GRIPPER: Final = ARM_DOF
ARM_PART: Final = slice(0, GRIPPER)
GRIPPER_PART: Final = slice(GRIPPER, None)


def to_rad(rows: Rows, reading: Reading, where: str) -> npt.NDArray[np.float32]:
    """Return the joints (T, 8) in rad; raises DataError that names joint, row, value and unit."""
    unit = reading.unit or "rad"
    gripper_unit = reading.gripper_unit or unit
    values = rows.astype(np.float64)
    converted = np.concatenate(
        [
            _convert(values[:, ARM_PART], unit, ARM_PART),
            _convert(values[:, GRIPPER_PART], gripper_unit, GRIPPER_PART),
        ],
        axis=1,
    )
    _check(values, converted, reading, where)
    return rows.astype(np.float32) if {unit, gripper_unit} == {"rad"} else converted.astype("f4")


def _convert(values: Rows, unit: str, part: slice) -> Rows:
    if unit == "deg":
        return np.asarray(np.deg2rad(values))
    if unit == "percent":
        share = values / 100 if part == GRIPPER_PART else (values + 100) / 200
        low, high = LOWER_RAD[part], UPPER_RAD[part]
        return np.asarray(low + share * (high - low))
    return values


def _beyond(rad: Rows) -> Rows:
    """Return how far each value is beyond its joint's limits, (T, 8); NaN counts as inside."""
    return np.nan_to_num(np.maximum(LOWER_RAD - rad, rad - UPPER_RAD), nan=0.0)


def _check(values: Rows, rad: Rows, reading: Reading, where: str) -> None:
    beyond = _beyond(rad)
    if not beyond.size or beyond.max() <= BEYOND_RAD:
        return
    row, joint = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    of_gripper = beyond[:, :GRIPPER].max() <= BEYOND_RAD
    part, flag = (GRIPPER_PART, "--gripper-unit") if of_gripper else (ARM_PART, "--unit")
    unit = reading.unit or "rad"
    stated = (reading.gripper_unit or unit) if joint == GRIPPER else unit
    fits = [other for other in UNITS if other != stated and _fits(values, other, part)]
    hint = (
        f"; if the joints are in {' or '.join(fits)}, say {flag} {fits[0]}"
        if fits
        else "; are these columns other joints, or is the recording damaged?"
    )
    raise DataError(
        f"{where}: {JOINT_NAMES[joint]} is {values[row, joint]:.2f} {stated} in row {row}, expected"
        f" {LOWER_RAD[joint]:.2f} … {UPPER_RAD[joint]:.2f} rad"
        f" ({np.rad2deg(LOWER_RAD[joint]):.0f} … {np.rad2deg(UPPER_RAD[joint]):.0f} deg){hint}"
    )


def _fits(values: Rows, unit: str, part: slice) -> bool:
    """Whether the joints of `part` would be inside their limits in `unit`."""
    rad = np.zeros_like(values)
    rad[:, part] = _convert(values[:, part], unit, part)
    return bool(_beyond(rad)[:, part].max() <= BEYOND_RAD)
