"""The two tasks: `Lift-CRANE-X7` and `PickPlace-CRANE-X7`, registered with gymnasium.

Legend: N parallel scenes. Success ends an episode as `terminated`; the time limit ends it as
`truncated`. Rewards: "sparse" is 1 in the step of success, else 0; "dense" is the sum of the terms
in each task's docstring; "normalized_dense" divides that by its maximum; "none" is 0.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from mani_skill.utils.registration import register_env

from crane_x7_vla_rl.scenes import LIFT_ID, LIFT_WORDS, PICK_PLACE_ID, PLACE_WORDS
from crane_x7_vla_rl.sim.scene import LIFT_M, CubeScene

TASKS: Final = (LIFT_ID, PICK_PLACE_ID)

HOLD_S: Final = 0.5
"""A cube counts as held after it has been up for this long."""


@register_env(LIFT_ID, max_episode_steps=200)
class Lift(CubeScene):
    """Grasp the named cube, lift it by 10 cm, hold it for half a second.

    Dense reward, at most 4: nearness of the fingertips (0…1), grasped (1), height while grasped
    (0…1), success (1).
    """

    @property
    def instruction(self) -> list[str]:
        """See CubeScene."""
        return [LIFT_WORDS.format(colour) for colour in self.named_colours]

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Return (N,) tensors: success, grasped, height_m."""
        position = self._cube_positions()
        height_m = position[:, 2] - self.cube_half_m
        grasped = self._named_grasped(position)
        up = grasped & (height_m >= LIFT_M)
        self._count_held(up)
        held = self._held_steps >= HOLD_S * self.control_freq
        return {"success": held, "grasped": grasped, "height_m": height_m}

    def compute_dense_reward(
        self, obs: Any, action: torch.Tensor, info: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """See the class's docstring."""
        del obs, action
        distance = torch.linalg.vector_norm(self._cube_positions() - self.tool_position(), dim=-1)
        grasped = info["grasped"].float()
        height = (info["height_m"] / LIFT_M).clamp(0, 1)
        return 1 - torch.tanh(5 * distance) + grasped * (1 + height) + info["success"].float()

    def compute_normalized_dense_reward(
        self, obs: Any, action: torch.Tensor, info: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Dense reward in 0…1."""
        return self.compute_dense_reward(obs, action, info) / 4


@register_env(PICK_PLACE_ID, max_episode_steps=400)
class PickPlace(CubeScene):
    """Place the named cube at rest on the plate, with the gripper open and away.

    Dense reward: nearness of the fingertips (0…1), grasped (1), nearness of the cube to the plate
    while grasped (0…1); 5 on success.
    """

    @property
    def instruction(self) -> list[str]:
        """See CubeScene."""
        return [PLACE_WORDS.format(colour) for colour in self.named_colours]

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Return (N,) tensors: success, grasped, height_m."""
        position = self._cube_positions()
        placed = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        for index in sorted(set(self._named_list)):
            placed |= (self.named == index) & self._on_plate(self.cubes[self.colours[index]])
        grasped = self._named_grasped(position)
        height_m = position[:, 2] - self.cube_half_m
        self._count_held(placed)
        resting = self._held_steps >= HOLD_S * self.control_freq
        return {"success": resting, "grasped": grasped, "height_m": height_m}

    def compute_dense_reward(
        self, obs: Any, action: torch.Tensor, info: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """See the class's docstring."""
        del obs, action
        position = self._cube_positions()
        reach = torch.linalg.vector_norm(position - self.tool_position(), dim=-1)
        carry = torch.linalg.vector_norm(position - self.plate.pose.p, dim=-1)
        grasped = info["grasped"].float()
        near = 1 - torch.tanh(5 * reach)
        nearer = 1 - torch.tanh(5 * carry)
        return torch.where(info["success"], 5.0, near + grasped * (1 + nearer))

    def compute_normalized_dense_reward(
        self, obs: Any, action: torch.Tensor, info: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Dense reward in 0…1."""
        return self.compute_dense_reward(obs, action, info) / 5
