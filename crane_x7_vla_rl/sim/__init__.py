"""The simulated CRANE-X7: importing this registers the agent and the tasks with ManiSkill.

`make(task)` is the entry point; it selects the backends that the machine has.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium

from crane_x7_vla_rl.scenes import LIFT_ID, PICK_PLACE_ID
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.tasks import TASKS

__all__ = ["LIFT_ID", "PICK_PLACE_ID", "TASKS", "SimError", "make"]


def make(
    task: str,
    *,
    backend: Literal["cpu", "gpu"] = "cpu",
    num_envs: int = 1,
    obs_mode: str = "rgb",
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """Return the task, ready to reset.

    `options` are those of scene.CubeScene and of ManiSkill (control_mode, reward_mode, …). On a CPU
    there is one scene per environment. Raises SimError, with the remedy, if the machine cannot run
    the backend.
    """
    if task not in TASKS:
        raise SimError(f"task {task!r} is unknown; known: {', '.join(TASKS)}")
    if backend == "cpu" and num_envs != 1:
        raise SimError(f"num_envs is {num_envs}: the CPU backend has one scene per environment")
    sim_backend, render_backend = (
        ("physx_cpu", "cpu") if backend == "cpu" else ("physx_cuda", "gpu")
    )
    try:
        return gymnasium.make(
            task,
            num_envs=num_envs,
            obs_mode=obs_mode,
            sim_backend=sim_backend,
            render_backend=render_backend,
            **options,
        )
    except (RuntimeError, OSError) as error:
        raise SimError(_cure(str(error), backend)) from error


def _cure(error: str, backend: str) -> str:
    """Return an error that explains a failure of SAPIEN, and what to do."""
    if backend == "gpu":
        return (
            f"GPU simulation cannot start ({error}). It needs an NVIDIA GPU, its Vulkan driver"
            " files and SAPIEN's GPU PhysX library, which SAPIEN downloads at first use into"
            " ~/.sapien/physx; without them use the cpu backend"
        )
    return (
        f"the simulation cannot render ({error}). It needs a Vulkan device: on a machine without a"
        " GPU install mesa-vulkan-drivers 24.3 or newer (scripts/setup does this; Debian 12 has it"
        " in backports) and check with `vulkaninfo --summary`"
    )
