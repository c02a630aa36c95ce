"""OpenVLA, native: loads the published checkpoints unchanged and runs none of their code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
    from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA

__all__ = ["OpenVLA", "OpenVLAConfig"]

_MODULES: Final = {"OpenVLA": "model.openvla", "OpenVLAConfig": "model.config"}


def __getattr__(name: str) -> Any:
    """Import the network, and torch, at its first use: a checkpoint's files need neither."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
