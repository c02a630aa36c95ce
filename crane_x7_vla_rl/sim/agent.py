"""The CRANE-X7 as a ManiSkill agent: drives, gripper, hand camera.

Actions are (N, 8), seven arm joints and the gripper, in the order of `robot.JOINT_NAMES`:
`pd_joint_pos` takes absolute targets in rad; `pd_joint_delta_pos` takes −1…1, scaled by DELTA_RAD
and added to the previous *target*, so that small steps add up. Finger B is driven with finger A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent, Keyframe
from mani_skill.agents.controllers import (
    PDJointPosController,
    PDJointPosControllerConfig,
    PDJointPosMimicControllerConfig,
)
from mani_skill.agents.registration import register_agent

from crane_x7_vla_rl.robot import (
    ACCELERATION_RAD_S2,
    ARM_DOF,
    ARM_JOINT_NAMES,
    ARM_JOINTS,
    FINGER_A,
    FINGER_B,
    HOME_RAD,
    LOWER_RAD,
    UPPER_RAD,
    VELOCITY_RAD_S,
)
from crane_x7_vla_rl.scenes import Variation
from crane_x7_vla_rl.sim import model

DELTA_RAD: Final = (0.1, 0.2)
"""Largest change of an arm joint's target, and of the gripper's, in one control step."""

ARM_STIFFNESS, ARM_DAMPING = 1000.0, 60.0
"""Position loop of the servos: the arm follows a target with a lag of about 60 ms."""
FINGER_STIFFNESS, FINGER_DAMPING, FINGER_FORCE_NM = 4.0, 0.4, 10.0
"""Soft and never saturated: with a saturated drive the stronger finger pushes the other to its
stop, as only the shared target couples them."""
FINGER_ARMATURE_KG_M2 = 1e-3
"""Rotor inertia of the servo behind its gears, at the finger. Without it the solver lets the
fingers push a cube aside (0.35 and 0.04 rad) instead of holding it (0.19 and 0.19 rad): 0 of 8
lifts instead of 8 of 8, the same from 3e-4 to 1e-2."""
FINGER_FRICTION: Final = 1.5
LOOP_VELOCITY: Final = 0.9 * VELOCITY_RAD_S[:ARM_DOF]
LOOP_ACCELERATION: Final = 0.8 * ACCELERATION_RAD_S2[:ARM_DOF]
"""(7,) limits that the inference loop keeps, in rad/s and rad/s²: a little under the arm's."""


class ArmController(PDJointPosController):
    """Position targets, followed at once or, after `limit`, within velocity and acceleration.

    Within limits each joint moves as a trajectory controller moves it: it speeds up, and slows
    down in time to stop at its target, 80 times a second or more.
    """

    _share: float | None = None
    _path_rad: torch.Tensor
    """(N, 7) where the servos' targets are now."""
    _path_rad_s: torch.Tensor

    def limit(self, share: float) -> None:
        """Keep this share of the limits from the next reset on."""
        self._share = share

    def reset(self) -> None:
        """Start from the measured position, at rest."""
        super().reset()
        start_rad = self.qpos.clone()
        if not hasattr(self, "_path_rad"):
            self._path_rad, self._path_rad_s = start_rad, torch.zeros_like(start_rad)
        again = self.scene._reset_mask
        self._path_rad[again], self._path_rad_s[again] = start_rad[again], 0.0

    def set_drive_targets(self, targets: torch.Tensor) -> None:
        """Set the servos' targets, unless the way there has limits."""
        if self._share is None:
            super().set_drive_targets(targets)

    def before_simulation_step(self) -> None:
        """Move the servos' targets on by one step of the physics."""
        super().before_simulation_step()
        if self._share is None:
            return
        period_s = 1 / (self._sim_steps * self._control_freq)
        fastest = self._share * torch.as_tensor(LOOP_VELOCITY).to(self._path_rad)
        most = self._share * torch.as_tensor(LOOP_ACCELERATION).to(self._path_rad)
        away = self._target_qpos - self._path_rad
        # The speed from which braking at `most`, in whole steps, ends at the target.
        part = most * period_s / 2
        braking = (part**2 + 2 * most * away.abs()).sqrt() - part
        wanted = away.sign() * torch.minimum(braking, fastest)
        change = (wanted - self._path_rad_s).clamp(-most * period_s, most * period_s)
        self._path_rad_s = self._path_rad_s + change
        self._path_rad = self._path_rad + self._path_rad_s * period_s
        super().set_drive_targets(self._path_rad)


@dataclass
class ArmControllerConfig(PDJointPosControllerConfig):
    """Of ArmController."""

    controller_cls = ArmController


@register_agent()
class CraneX7(BaseAgent):
    """See the module's docstring."""

    uid = "crane_x7"
    disable_self_collisions = True  # adjacent boxes overlap, which displaced joints by 0.2 rad
    urdf_config = {  # noqa: RUF012 - ManiSkill's own form
        "_materials": {
            "pad": {
                "static_friction": FINGER_FRICTION,
                "dynamic_friction": FINGER_FRICTION,
                "restitution": 0.0,
            }
        },
        "link": {
            name: {"material": "pad", "patch_radius": 0.05, "min_patch_radius": 0.05}
            for name in model.FINGER_LINKS
        },
    }
    keyframes = {  # noqa: RUF012
        "home": Keyframe(qpos=np.append(HOME_RAD, HOME_RAD[-1]), pose=sapien.Pose())
    }

    @property
    def urdf_path(self) -> str:
        """Path of the generated model."""
        return str(model.urdf_path())

    @property
    def _controller_configs(self) -> dict[str, Any]:
        efforts = [joint.effort_nm for joint in ARM_JOINTS]
        arm = {
            "joint_names": list(ARM_JOINT_NAMES),
            "stiffness": ARM_STIFFNESS,
            "damping": ARM_DAMPING,
            "force_limit": efforts,
        }
        finger = {
            "joint_names": [FINGER_A.name, FINGER_B.name],
            "stiffness": FINGER_STIFFNESS,
            "damping": FINGER_DAMPING,
            "force_limit": FINGER_FORCE_NM,
            "mimic": {FINGER_B.name: {"joint": FINGER_A.name}},
        }
        absolute = {"normalize_action": False}
        delta = {"use_delta": True, "use_target": True, "normalize_action": True}
        arm_delta, finger_delta = DELTA_RAD
        return {
            "pd_joint_pos": {
                "arm": ArmControllerConfig(
                    lower=LOWER_RAD[:-1], upper=UPPER_RAD[:-1], **arm, **absolute
                ),
                "gripper": PDJointPosMimicControllerConfig(
                    lower=FINGER_A.lower_rad, upper=FINGER_A.upper_rad, **finger, **absolute
                ),
            },
            "pd_joint_delta_pos": {
                "arm": PDJointPosControllerConfig(
                    lower=-arm_delta, upper=arm_delta, **arm, **delta
                ),
                "gripper": PDJointPosMimicControllerConfig(
                    lower=-finger_delta, upper=finger_delta, **finger, **delta
                ),
            },
        }

    def vary(self, variation: Variation) -> None:
        """Change the fingers' friction and the arm's speed."""
        if variation.friction != 1:
            for shape in self._finger_shapes():
                material = shape.physical_material
                material.static_friction = FINGER_FRICTION * variation.friction
                material.dynamic_friction = FINGER_FRICTION * variation.friction
        if variation.arm_speed is not None:
            self.controller.controllers["arm"].limit(variation.arm_speed)

    def _finger_shapes(self) -> list[Any]:
        return [
            shape
            for finger in self.fingers
            for body in finger._objs
            for shape in body.collision_shapes
        ]

    def _after_loading_articulation(self) -> None:
        armature = np.array([FINGER_ARMATURE_KG_M2], dtype=np.float32)
        for name in (FINGER_A.name, FINGER_B.name):
            for joint in self.robot.joints_map[name]._objs:
                joint.set_armature(armature)

    def _after_init(self) -> None:
        links = self.robot.links_map
        self.gripper_base = links[model.GRIPPER_BASE_LINK]
        self.fingers = [links[name] for name in model.FINGER_LINKS]
