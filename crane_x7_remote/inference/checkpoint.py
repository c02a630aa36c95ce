"""What a checkpoint decides about the loop. Settings → settings with its rate and temperature.

Default < checkpoint < variable or flag. The checkpoint's files are read by policies/about.py; one
log line says what was taken, one warning what contradicts.
"""

from __future__ import annotations

import logging
from typing import Final

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import PolicyLoadError

logger = logging.getLogger(__name__)

NAMES: Final = {
    "rate_hz": "vla_inference_rate", "temperature": "vla_temperature", "max_jump_rad": "max_jump",
}  # fmt: skip
"""Name in a checkpoint → field of Settings."""
TICKS_PER_TRAJECTORY: Final = 2
"""A trajectory is valid for at least so many ticks: the arm must not stop between two of them."""


def lasting_s(rate_hz: float) -> float:
    """Return how long a trajectory must stay valid at this rate, s."""
    return TICKS_PER_TRAJECTORY / rate_hz


def apply(settings: Settings) -> Settings:
    """Return the settings with what the checkpoint says; raises PolicyError for a broken file."""
    assert settings.vla_model_path is not None
    token = None if settings.hf_token is None else settings.hf_token.get_secret_value()
    try:
        said = about.said_by(settings.vla_model_path, token)
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
    words = [f"{variables[name]} {about.shown(value)} ({chosen.sources[name]})"
             for name, value in chosen.values.items()]  # fmt: skip
    logger.info(
        "%s: %s, TRAJECTORY_VALIDITY %.3g s",
        settings.vla_model_path, ", ".join(words),
        values.get("trajectory_validity", settings.trajectory_validity),
    )  # fmt: skip
    return settings.model_copy(update=values)
