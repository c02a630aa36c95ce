"""The table of policies by name. Name and `ModelOptions` → a ready `Policy`.

`remote` and `lerobot` need a socket or a process, which this package does not know: the package
that does announces them as entry points (see pyproject.toml).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.policies import cuda_devices, preflight
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError
from crane_x7_vla_rl.policies.preflight import INFER, OptionNames

POLICY_NAMES: Final = ("color-servo", "openvla", "remote", "lerobot")
ENTRY_POINTS: Final = "crane_x7_vla_rl.policies"
"""Group of the entry points that load the last two."""
SMALL: Final = Path(__file__).parent / "small"
"""Folder of the demo's checkpoint, which lifts and places; see its README.md."""
TINY: Final = Path(__file__).parent / "tiny"
"""Folder of a checkpoint of action tokens, which lifts; see its README.md."""


def load_policy(
    name: str, options: ModelOptions | None = None, names: OptionNames = INFER
) -> Policy:
    """Load the policy called `name` (one of POLICY_NAMES).

    `options` matter only to policies with weights; `names` are the flags or variables that set
    them, for messages. Raises PolicyLoadError; cheap checks come before anything is loaded.
    """
    options = options or ModelOptions()
    if name in POLICY_NAMES:
        check(name, options, names)
    if name == "color-servo":
        from crane_x7_vla_rl.policies.color_servo.policy import ColorServo

        return ColorServo()
    if name == "openvla":
        from crane_x7_vla_rl.policies.openvla import policy

        return policy.load(options)
    if name in ("remote", "lerobot"):
        return _announced(name)(options)
    raise PolicyLoadError(f"policy {name!r} is unknown; known: {', '.join(POLICY_NAMES)}")


def check(name: str, options: ModelOptions, names: OptionNames = INFER) -> None:
    """Raise PolicyLoadError with all problems that are cheap to find; no weights are fetched."""
    if name == "openvla":
        _check_path(name, options, names)
        preflight.check(options, names)
        return
    cuda_devices.check_name(options.device, names.device)
    if name == "lerobot":
        _check_path(name, options, names)
    if name == "remote" and options.server is None:
        raise PolicyLoadError(
            f"policy 'remote' needs a server: set {names.server} to its address, such as"
            " ws://192.168.1.20:8000"
        )


def _check_path(name: str, options: ModelOptions, names: OptionNames) -> None:
    if options.path is None:
        raise PolicyLoadError(
            f"policy {name!r} needs a model: set {names.path} to a folder or to a Hub id"
        )


def _announced(name: str) -> Callable[[ModelOptions], Policy]:
    """Return the function of an entry point; raises PolicyLoadError if its package is absent."""
    found = entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        raise PolicyLoadError(
            f"policy {name!r} needs the package crane_x7_remote, installed with its entry points:"
            " run scripts/setup in the checkout, or pip install the package again"
        )
    load: Callable[[ModelOptions], Policy] = next(iter(found)).load()
    return load


def has_random_weights(model_path: str) -> bool:
    """Whether a local checkpoint is marked as untrained; see openvla.builder."""
    try:
        config = json.loads((Path(model_path).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return False  # loading it reports the problem
    return isinstance(config, dict) and bool(config.get("random_weights"))
