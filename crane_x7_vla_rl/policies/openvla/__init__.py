"""OpenVLA, native: loads the published checkpoints as they are and runs no code of theirs."""

from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA

__all__ = ["OpenVLA", "OpenVLAConfig"]
