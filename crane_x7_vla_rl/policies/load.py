"""The one table from a policy's name to a policy. Name and `ModelOptions` → a ready `Policy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError

POLICY_NAMES: Final = ("color-servo", "openvla")
SHIPPED: Final = Path(__file__).parent / "tiny"
"""Folder of the checkpoint that comes with the project; see its README.md."""


def load_policy(name: str, options: ModelOptions | None = None) -> Policy:
    """Make the policy called `name` (one of POLICY_NAMES) ready to predict.

    `options` matter to policies with weights alone. Raises PolicyLoadError.
    """
    if name == "color-servo":
        from crane_x7_vla_rl.policies.color_servo.policy import ColorServo

        return ColorServo()
    if name == "openvla":
        return _load_openvla(options or ModelOptions())
    raise PolicyLoadError(f"policy {name!r} is unknown; known: {', '.join(POLICY_NAMES)}")


def _load_openvla(options: ModelOptions) -> Policy:
    if options.path is None:
        raise PolicyLoadError(
            "policy 'openvla' needs a model: set VLA_MODEL_PATH to a folder or to a Hub id"
        )
    try:
        from crane_x7_vla_rl.policies.openvla import policy
    except ModuleNotFoundError as error:
        raise PolicyLoadError(
            f"VLA_MODEL_PATH={options.path}: policy 'openvla' needs the package {error.name}: pip"
            " install 'crane-x7-remote[train]', or build the image without EXTRAS="
        ) from error
    return policy.load(options)


def has_random_weights(model_path: str) -> bool:
    """Whether a local checkpoint says that nobody has trained it; see openvla.builder."""
    try:
        config = json.loads((Path(model_path).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False  # loading it says what is wrong
    return isinstance(config, dict) and bool(config.get("random_weights"))
