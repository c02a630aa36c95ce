"""What is true of a scene, for a critic that learns beside a policy: `CubeScene` → one vector.

No policy sees it: it travels beside the observations, as `Views.true_state`, and only where
`VectorConfig.true_state` is set. Numbers are scaled to a few units: lengths in dm, speeds in rad/s
and dm/s, shares from 0 to 1. Anything beyond `LIMIT` is cut to it: a cube that was flung off the
table falls on, and a critic that has never seen such a number answers with one as large.

Legend: N scenes, S numbers of a scene, C colours that a scene may have.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.scenes import COLOUR_NAMES

DM_PER_M: Final = 10.0
LIMIT: Final = 10.0
"""Largest number of a state: 1 m, 1 m/s, 10 rad/s. The arm reaches half as far."""
FIELDS: Final = {
    "joints": DOF,
    "joint_speeds": DOF,
    "tool": 3,
    "named_cube": 3,
    "named_cube_speed": 3,
    "tool_to_named_cube": 3,
    "plate": 3,
    "named_cube_to_plate": 3,
    "cubes": 3 * len(COLOUR_NAMES),
    "present": len(COLOUR_NAMES),
    "named": len(COLOUR_NAMES),
    "grasped": 1,
    "elapsed": 1,
}
"""Each part and its length, in this order. cubes: by COLOUR_NAMES, zeros where missing;
elapsed: share of the episode's time."""
TRUE_STATE: Final = sum(FIELDS.values())
"""S."""


def true_state(scene: Any, grasped: torch.Tensor, elapsed: torch.Tensor) -> torch.Tensor:
    """Return (N, S) float32 on the scene's device.

    `grasped` (N,) bool: whether both fingers press the named cube; `elapsed` (N,), 0 to 1.
    """
    positions, device = {name: cube.pose.p for name, cube in scene.cubes.items()}, scene.device
    rows = torch.arange(len(scene.named), device=device)
    nowhere = torch.zeros(len(rows), 3, device=device)
    every = torch.stack(list(positions.values()), 1)  # (N, cubes, 3)
    speeds = torch.stack([cube.linear_velocity for cube in scene.cubes.values()], 1)
    named, tool, plate = every[rows, scene.named], scene.tool_position(), scene.plate.pose.p
    colours = torch.tensor([COLOUR_NAMES.index(name) for name in positions], device=device)
    one_hot = torch.nn.functional.one_hot(colours[scene.named], len(COLOUR_NAMES))
    present = torch.zeros(len(COLOUR_NAMES), device=device).index_fill_(0, colours, 1.0)
    robot = scene.agent.robot
    parts = {
        "joints": robot.get_qpos()[:, :DOF],
        "joint_speeds": robot.get_qvel()[:, :DOF],
        "tool": DM_PER_M * tool,
        "named_cube": DM_PER_M * named,
        "named_cube_speed": DM_PER_M * speeds[rows, scene.named],
        "tool_to_named_cube": DM_PER_M * (named - tool),
        "plate": DM_PER_M * plate,
        "named_cube_to_plate": DM_PER_M * (plate - named),
        "cubes": DM_PER_M * torch.cat([positions.get(c, nowhere) for c in COLOUR_NAMES], 1),
        "present": present.expand(len(rows), -1),
        "named": one_hot,
        "grasped": grasped[:, None],
        "elapsed": elapsed[:, None],
    }
    whole = torch.cat([parts[name].to(torch.float32) for name in FIELDS], 1)
    return whole.clamp(-LIMIT, LIMIT)
