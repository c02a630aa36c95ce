"""Group `settings`: variables and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crane_x7_remote import settings as settings_module
from crane_x7_remote.doctor.finding import Check, Context, Finding, failure, ok, warning
from crane_x7_remote.errors import SettingsError
from crane_x7_remote.settings import Settings


def load(flags: Mapping[str, Any]) -> tuple[Settings, str | None]:
    """Return the settings, or the defaults and why they are refused."""
    try:
        return settings_module.load(flags), None
    except SettingsError as error:
        return settings_module.load({}, {}), str(error)


def settings(context: Context) -> Finding:
    """Whether every variable and flag has a value that it can have."""
    if context.problem is not None:
        lines = [line.strip() for line in context.problem.splitlines()]
        name = lines[-1].partition("=")[0].partition(" ")[0]
        cure = "crane-x7-remote doctor --help" if name.startswith("-") else f"unset {name}"
        return failure(" ".join(lines), cure)
    older = [*context.settings.notes, *settings_module.older_variables()]
    if older:
        return warning("; ".join(older), f"unset {older[0].partition(' ')[0].rstrip(':=')}")
    count = len(context.settings.model_fields_set)
    return ok(f"{count} variables and flags are set, the others have their defaults")


CHECKS = (Check("settings", "settings", settings, needs_settings=False),)
