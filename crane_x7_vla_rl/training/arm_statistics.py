"""Which statistics scale the actions of a run: a file's, the model's, or this arm's shipped ones.

A model's statistics by key → the same with an entry under the key that the run uses. A base model
such as openvla/openvla-7b has none for this arm; see `data.base_statistics`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from crane_x7_vla_rl.actions import Statistics, StatisticsError, find_statistics
from crane_x7_vla_rl.data.base_statistics import SHIPPED
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.data.statistics import KEY
from crane_x7_vla_rl.robot import DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.training.errors import ConfigError

logger = logging.getLogger(__name__)

BEYOND_RAD: Final = 0.5
"""Measured angles pass a limit by a little; values this far beyond are in another unit."""


def complete(
    model: str, known: Mapping[str, Any], key: str, file: Path | None = None
) -> dict[str, Any]:
    """Return the statistics of `model`, `known` by key, with those under `key` that the run uses.

    Precedence: `file`, the model's own, those shipped for this arm (key crane_x7 only).
    Raises ConfigError, which names the flag.
    """
    if file is not None:
        entry = read(file, key)
        logger.info("actions are scaled by %s (key %s)", file, key)
        if key in known:
            logger.warning("--statistics %s replaces the statistics %s of %s", file, key, model)
        return {**known, key: entry}
    if key in known:
        return dict(known)
    if key != KEY:
        raise ConfigError(
            f"start.unnorm_key is {key}, but {model} has no statistics under it; its keys:"
            f" {', '.join(sorted(known)) or 'none'}. Give one of them with --unnorm-key, a file"
            f" that has {key} with --statistics, or leave both out to train with those of this arm"
        )
    logger.info(
        "%s has no statistics for this arm (its keys: %s): actions are scaled by those shipped with"
        " the package (%s); --statistics FILE changes them",
        model, ", ".join(sorted(known)) or "none", SHIPPED.name,
    )  # fmt: skip
    return {**known, key: read(SHIPPED, key)}


def read(file: Path, key: str) -> dict[str, Any]:
    """Return the entry `key` of a file like dataset_statistics.json, checked.

    Raises ConfigError for another kind of file, an unknown key, and values out of this arm's range.
    """
    where = f"--statistics {file}"
    try:
        content = read_json(file)
    except DataError as error:
        raise ConfigError(f"--statistics {error}") from error
    if key not in content:
        found = ", ".join(sorted(content)) or "none"
        raise ConfigError(f"{where}: has no key {key}; its keys: {found}; choose by --unnorm-key")
    entry = content[key]
    for kind in ("action", "proprio"):
        if kind == "action" or (isinstance(entry, Mapping) and kind in entry):
            try:
                _check(find_statistics(content, key, kind, where), f"{where}: {key}.{kind}")
            except StatisticsError as error:
                raise ConfigError(str(error)) from error
    return dict(entry)


def _check(statistics: Statistics, where: str) -> None:
    if statistics.dimensions != DOF:
        raise ConfigError(
            f"{where} has {statistics.dimensions} dimensions, expected {DOF}: seven joints and the"
            " gripper"
        )
    beyond = np.maximum(LOWER_RAD - statistics.low, statistics.high - UPPER_RAD)
    joint = int(np.argmax(np.where(statistics.mask, beyond, -np.inf)))
    if statistics.mask[joint] and beyond[joint] > BEYOND_RAD:
        raise ConfigError(
            f"{where}: joint {joint + 1} reaches from {statistics.low[joint]:g} to"
            f" {statistics.high[joint]:g}, but its limits are {LOWER_RAD[joint]:g} to"
            f" {UPPER_RAD[joint]:g} rad; are the values in degrees?"
        )
