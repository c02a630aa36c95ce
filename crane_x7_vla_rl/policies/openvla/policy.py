"""OpenVLA as a `Policy`: observations in, joint targets of the CRANE-X7 out.

What an action means follows from its number of dimensions, which the statistics under the chosen
key decide:

- 8: absolute joint targets in rad, seven arm joints and the gripper (0 closed), as recorded on a
  CRANE-X7. The gripper is cut to its limits: where its mask leaves it raw, the model can only say
  −1…1.
- 7: a step of the tool, as in Bridge and most of Open X-Embodiment: x, y, z in m along the robot
  base's axes, roll, pitch, yaw in rad about them, and the gripper from 0 (closed) to 1 (open).
  Inverse kinematics from the measured joints turns it into targets; a step out of reach raises,
  and the loop holds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.actions import StatisticsError, find_statistics
from crane_x7_vla_rl.policies.openvla import loading
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.layout import TOKENIZER
from crane_x7_vla_rl.policies.openvla.loading import Loaded
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.robot import ARM_DOF, DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, JointState, Observation

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.1
"""When a single target is due: one step of the 10 Hz at which the loop asks by default."""
SMALL: Final = 50_000_000
"""Below so many parameters, one CPU thread is faster beside other work: several would wait for each
other at every operation. Measured with a tiny model on two busy cores: 38 ms against 1.2 s."""
TOOL_DIMENSIONS: Final = 7
GRIPPER_OPEN_RAD: Final = 0.6
"""What an end-effector data set's 1 means here: about 8 cm between the fingertips."""


class OpenVLAPolicy:
    """Greedy actions of one model, one target per observation."""

    def __init__(self, loaded: Loaded, unnorm_key: str) -> None:
        """Raises CheckpointError for an unknown key, other dimensions, or no tokenizer."""
        source = loaded.layout.folder
        try:
            statistics = find_statistics(loaded.model.norm_stats, unnorm_key)
        except StatisticsError as error:
            known = ", ".join(sorted(loaded.model.norm_stats)) or "none"
            raise CheckpointError(
                f"VLA_UNNORM_KEY={unnorm_key}: {source} has no statistics under this key; known:"
                f" {known}"
            ) from error
        if statistics.dimensions not in (TOOL_DIMENSIONS, DOF):
            raise CheckpointError(
                f"{source}: the statistics {unnorm_key!r} have {statistics.dimensions} dimensions,"
                f" expected {DOF} (joints and gripper) or {TOOL_DIMENSIONS} (tool step and gripper)"
            )
        path = loaded.layout.first(TOKENIZER)
        if path is None:
            raise CheckpointError(
                f"{loaded.layout.base / TOKENIZER} is missing; save the tokenizer of the"
                " model with save_pretrained there"
            )
        self._tokenizer = PromptTokenizer(path)
        self._model = loaded.model
        self._key = unnorm_key
        self._dimensions = statistics.dimensions
        if loaded.raw_config.get("random_weights"):
            logger.warning("%s has random weights: it cannot do any task", source)

    @torch.no_grad()
    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one target per observation; raises UnreachableError for a step out of reach."""
        pixels = self._model.preprocess([observation.image for observation in observations])
        ids = [self._tokenizer(observation.instruction) for observation in observations]
        tokens = self._model.generate(pixels, ids, self._dimensions)
        actions = self._model.decode_actions(tokens, self._key)  # (B, 7 or 8)
        to_target = _joint_target if self._dimensions == DOF else _tool_target
        return [
            ActionChunk(to_target(action, observation.joints)[None], PERIOD_S)
            for action, observation in zip(actions, observations, strict=True)
        ]

    def reset(self) -> None:
        """Nothing is remembered that would change an answer."""


def _joint_target(action: Array, measured: JointState) -> Array:
    """Return (8,) rad; the arm's joints as they are, for the safety check to judge."""
    del measured
    target = action.copy()
    target[ARM_DOF] = np.clip(target[ARM_DOF], LOWER_RAD[ARM_DOF], UPPER_RAD[ARM_DOF])
    return target


def _tool_target(action: Array, measured: JointState) -> Array:
    """Return (8,) rad for a step of the tool from where the measured joints have it."""
    frame = kinematics.tool_frame(measured.position_rad)
    frame[:3, 3] += action[:3]
    frame[:3, :3] = _rotation(*action[3:6]) @ frame[:3, :3]
    arm = kinematics.inverse(frame, measured.position_rad)
    gripper = np.clip(action[6], 0.0, 1.0) * GRIPPER_OPEN_RAD
    return np.append(arm, gripper)


def _rotation(roll: float, pitch: float, yaw: float) -> Array:
    """Return (3, 3): first roll about x, then pitch about y, then yaw about z, axes fixed."""
    (sr, sp, sy), (cr, cp, cy) = np.sin([roll, pitch, yaw]), np.cos([roll, pitch, yaw])
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def load(
    model_path: str | Path, *, unnorm_key: str, device: str, token: str | None
) -> OpenVLAPolicy:
    """Return the policy in a folder or on the Hub, in bfloat16 on CUDA, else float32.

    Raises PolicyLoadError for a device that is not there and for whatever is wrong with the model.
    """
    place = _device(device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    loaded = loading.load(model_path, device=place, dtype=dtype, token=token)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    if place.type == "cpu" and size < SMALL:
        torch.set_num_threads(1)
    return OpenVLAPolicy(loaded, unnorm_key)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"VLA_DEVICE={name}: expected cuda, cuda:1 or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(
            f"VLA_DEVICE={name}: this machine offers {torch.cuda.device_count()} CUDA devices; set"
            " VLA_DEVICE=cpu for a small model, or run where the GPU is"
        )
    return device
