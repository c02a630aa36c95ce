"""The table of policies by name. Name and `ModelOptions` → a ready `Policy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.policies import cuda_devices, preflight
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError
from crane_x7_vla_rl.policies.preflight import INFER, OptionNames

POLICY_NAMES: Final = ("color-servo", "openvla")
SHIPPED: Final = Path(__file__).parent / "tiny"
"""Folder of the checkpoint in this repository; see its README.md."""


def load_policy(
    name: str, options: ModelOptions | None = None, names: OptionNames = INFER
) -> Policy:
    """Load the policy called `name` (one of POLICY_NAMES).

    `options` matter only to policies with weights; `names` are the flags or variables that set
    them, for messages. Raises PolicyLoadError; cheap checks come before anything is loaded.
    """
    if name == "color-servo":
        from crane_x7_vla_rl.policies.color_servo.policy import ColorServo

        return ColorServo()
    if name == "openvla":
        return _load_openvla(options or ModelOptions(), names)
    raise PolicyLoadError(f"policy {name!r} is unknown; known: {', '.join(POLICY_NAMES)}")


def check(name: str, options: ModelOptions, names: OptionNames = INFER) -> None:
    """Raise PolicyLoadError with all problems that are cheap to find; no weights are fetched."""
    if name == "openvla":
        _check_openvla(options, names)
    else:
        cuda_devices.check_name(options.device, names.device)


def _check_openvla(options: ModelOptions, names: OptionNames) -> None:
    if options.path is None:
        raise PolicyLoadError(
            f"policy 'openvla' needs a model: set {names.path} to a folder or to a Hub id"
        )
    preflight.check(options, names)


def _load_openvla(options: ModelOptions, names: OptionNames) -> Policy:
    _check_openvla(options, names)
    from crane_x7_vla_rl.policies.openvla import policy

    return policy.load(options)


def has_random_weights(model_path: str) -> bool:
    """Whether a local checkpoint is marked as untrained; see openvla.builder."""
    try:
        config = json.loads((Path(model_path).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False  # loading it reports the problem
    return isinstance(config, dict) and bool(config.get("random_weights"))
