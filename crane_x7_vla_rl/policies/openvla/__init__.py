"""OpenVLA, native: loads the published checkpoints as they are and runs no code of theirs."""

from crane_x7_vla_rl.policies.openvla.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model import OpenVLA

__all__ = ["OpenVLA", "OpenVLAConfig"]
