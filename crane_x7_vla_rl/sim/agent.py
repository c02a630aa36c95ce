"""The CRANE-X7 as a ManiSkill agent: drives, gripper, hand camera.

Actions are (N, 8), seven arm joints and the gripper, in the order of `robot.JOINT_NAMES`:
`pd_joint_pos` takes absolute targets in rad; `pd_joint_delta_pos` takes −1…1, scaled by DELTA_RAD
and added to the previous *target*, so that small steps add up. Finger B is driven with finger A.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import sapien
from mani_skill.agents.base_agent import BaseAgent, Keyframe
from mani_skill.agents.controllers import (
    PDJointPosControllerConfig,
    PDJointPosMimicControllerConfig,
)
from mani_skill.agents.registration import register_agent

from crane_x7_vla_rl.robot import (
    ARM_JOINT_NAMES,
    ARM_JOINTS,
    FINGER_A,
    FINGER_B,
    HOME_RAD,
    LOWER_RAD,
    UPPER_RAD,
)
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
                "arm": PDJointPosControllerConfig(
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

    def _after_loading_articulation(self) -> None:
        armature = np.array([FINGER_ARMATURE_KG_M2], dtype=np.float32)
        for name in (FINGER_A.name, FINGER_B.name):
            for joint in self.robot.joints_map[name]._objs:
                joint.set_armature(armature)

    def _after_init(self) -> None:
        links = self.robot.links_map
        self.gripper_base = links[model.GRIPPER_BASE_LINK]
        self.fingers = [links[name] for name in model.FINGER_LINKS]
