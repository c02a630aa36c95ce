"""Loop settings from a checkpoint. Settings → settings with its rate and temperature.

Default < checkpoint < variable or flag. The checkpoint's files are read by policies/about.py; one
log line lists the values in use, one warning the contradictions. A checkpoint is not trusted: its
files can widen the loop's limits up to `MOST` only; variables and flags can widen them further.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, Final

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import PolicyLoadError

logger = logging.getLogger(__name__)

NAMES: Final = {
    "rate_hz": "vla_inference_rate", "temperature": "vla_temperature", "max_jump_rad": "max_jump",
}  # fmt: skip
"""Name in a checkpoint → field of Settings."""
MOST: Final = {"max_jump": 2.0, "trajectory_validity": 2.0}
"""Largest values that a checkpoint's files can set, rad and s. The shipped policy needs 1.6 rad and
1.25 s; a rate below 1 Hz would need a longer validity."""
TICKS_PER_TRAJECTORY: Final = 2
"""A trajectory is valid for at least N ticks, so that the arm does not stop between two of them."""


def lasting_s(rate_hz: float) -> float:
    """Return how long a trajectory must stay valid at this rate, s."""
    return TICKS_PER_TRAJECTORY / rate_hz


def apply(settings: Settings) -> Settings:
    """Return the settings with the checkpoint's values; raises PolicyError for a broken file."""
    assert settings.vla_model_path is not None
    token = None if settings.hf_token is None else settings.hf_token.get_secret_value()
    try:
        said = about.said_by(settings.vla_model_path, token)
    except ModuleNotFoundError:
        return settings  # loading the policy lists every missing package
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error
    given = {
        name: getattr(settings, field)
        for name, field in NAMES.items()
        if field in settings.model_fields_set
    }
    defaults = {name: Settings.model_fields[field].default for name, field in NAMES.items()}
    variables = {name: field.upper() for name, field in NAMES.items()}
    chosen = about.choose(given, said, defaults, variables)
    if chosen.contradictions:
        logger.warning("%s", "; ".join(chosen.contradictions))
    values = {NAMES[name]: value for name, value in chosen.values.items()}
    if "trajectory_validity" not in settings.model_fields_set:
        needed_s = lasting_s(chosen.values["rate_hz"])
        values["trajectory_validity"] = max(settings.trajectory_validity, needed_s)
    values |= _capped(values, settings.model_fields_set)
    words = [f"{variables[name]} {about.shown(values[field])} ({chosen.sources[name]})"
             for name, field in NAMES.items()]  # fmt: skip
    logger.info(
        "%s: %s, TRAJECTORY_VALIDITY %.3g s",
        settings.vla_model_path, ", ".join(words),
        values.get("trajectory_validity", settings.trajectory_validity),
    )  # fmt: skip
    return settings.model_copy(update=values)


def _capped(values: Mapping[str, Any], given: Collection[str]) -> dict[str, float]:
    """Return the limits that a checkpoint sets too wide, capped at MOST; logs each one."""
    cut = {}
    for field, most in MOST.items():
        if field not in given and values.get(field, 0.0) > most:
            variable = field.upper()
            logger.warning(
                "%s: the checkpoint needs %.3g, but its files can set at most %g; using %g. If the"
                " arm is safe with the larger value, set %s=%.3g",
                variable, values[field], most, most, variable, values[field],
            )  # fmt: skip
            cut[field] = most
    return cut
