"""The simulated CRANE-X7: importing this registers the agent and the tasks with ManiSkill.

`make(task)` is the entry point; it selects the backends that the machine has.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium

from crane_x7_vla_rl.scenes import LIFT_ID, PICK_PLACE_ID, Render
from crane_x7_vla_rl.sim import render as renderers
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.tasks import TASKS

__all__ = ["LIFT_ID", "PICK_PLACE_ID", "TASKS", "SimError", "make"]


def make(
    task: str,
    *,
    backend: Literal["cpu", "gpu"] = "cpu",
    render: Render = "auto",
    num_envs: int = 1,
    obs_mode: str = "rgb",
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """Return the task, ready to reset.

    `options` are those of scene.CubeScene and of ManiSkill (control_mode, reward_mode, …). On a CPU
    there is one scene per environment, drawn on the device of `render`; `backend="gpu"` draws on
    its GPU. Raises SimError, with the remedy, if the machine cannot run the backend or render.
    """
    if task not in TASKS:
        raise SimError(f"task {task!r} is unknown; known: {', '.join(TASKS)}")
    if backend == "cpu" and num_envs != 1:
        raise SimError(f"num_envs is {num_envs}: the CPU backend has one scene per environment")

    def made(render_backend: str) -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(
            task,
            num_envs=num_envs,
            obs_mode=obs_mode,
            sim_backend="physx_cpu" if backend == "cpu" else "physx_cuda",
            render_backend=render_backend,
            **options,
        )
        if backend == "cpu" and render_backend == "gpu":
            _draw_once(env)
        return env

    if backend == "cpu":
        return renderers.build(render, made)
    try:
        return made("gpu")
    except renderers.FAILURES as error:
        raise SimError(
            f"GPU simulation cannot start ({error}). It needs an NVIDIA GPU, its Vulkan driver"
            " files and SAPIEN's GPU PhysX library in ~/.sapien/physx, where `python -m"
            " crane_x7_vla_rl.physx_library` installs it; without them use the cpu backend"
        ) from error


def _draw_once(env: Any) -> None:
    """Draw one image, so that a GPU that cannot is found here rather than in an episode."""
    scene = env.unwrapped.scene
    scene.update_render(update_sensors=True, update_human_render_cameras=False)
    camera = scene.sub_scenes[0].get_cameras()[0]
    camera.take_picture()
    camera.get_picture("Color")
