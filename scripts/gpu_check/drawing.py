"""Drawing on the GPU, and Genesis on CUDA. What is installed → steps/s and a check of a picture."""

from __future__ import annotations

import ctypes
import time
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from sft_bench.figures import Figures

from gpu_check.parts import Options, Skipped

SIZES: Final = ((128, 128), (320, 240), (640, 480))
STEPS: Final = {False: 200, True: 5}
SCENES: Final = {False: 64, True: 2}
VULKAN: Final = "libvulkan.so.1"
FEWEST: Final = 50
"""Different values of a picture that is a picture."""


def _need(*names: str) -> None:
    if missing := [name for name in names if find_spec(name) is None]:
        raise Skipped(f"{', '.join(missing)} missing; see --bundle and --packages")


def device_name() -> str:
    """Return what SAPIEN draws on, in its own words."""
    import sapien

    try:
        found = sapien.Device("cuda")
        return f"{found.name}, can draw: {found.can_render()}"
    except RuntimeError as error:
        return f"none: {error}"


def run(figures: Figures, options: Options) -> None:
    """Step and draw the lift task."""
    _need("mani_skill", "sapien")
    try:
        ctypes.CDLL(VULKAN)
    except OSError:
        print(f"  {VULKAN} is not there; SAPIEN brings one, which may not find the driver")
    from crane_x7_vla_rl import sim

    print(f"  SAPIEN's CUDA device: {device_name()}")
    for size in SIZES[:1] if options.tiny else SIZES:
        env = sim.make(sim.LIFT_ID, image_size=size)
        picture = _picture(env.reset(seed=0)[0])
        name = f"{size[0]}×{size[1]}"
        figures.row(f"{name}: different values in the picture", len(np.unique(picture)), "",
                    at_least=FEWEST)  # fmt: skip
        figures.row(f"{name}: one process", _rate(env, STEPS[options.tiny]), "steps/s")
        backend = getattr(env.unwrapped, "backend", None)
        on = str(getattr(backend, "render_device", "unknown"))
        figures.row(f"{name}: drawn on the GPU ({on})", float("cuda" in on), "")
        env.close()


def _picture(observation: Any) -> np.ndarray[Any, Any]:
    """Return the first camera's RGB picture in an observation."""
    (camera, *_) = observation["sensor_data"].values()
    return np.asarray(camera["rgb"].cpu())


def _rate(env: Any, steps: int) -> float:
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]
    started_s = time.perf_counter()
    for action in actions:
        env.step(action)
    return steps / (time.perf_counter() - started_s)


def genesis(figures: Figures, options: Options) -> None:
    """Step Genesis scenes on this device."""
    _need("genesis")
    from crane_x7_vla_rl.robot import HOME_RAD
    from crane_x7_vla_rl.sim.vector.make import make
    from crane_x7_vla_rl.vector_config import VectorConfig

    count, steps = SCENES[options.tiny], STEPS[options.tiny]
    backend = "cpu" if options.tiny else "gpu"
    started_s = time.perf_counter()
    env = make(VectorConfig(num_envs=count, simulator="genesis", backend=backend))
    try:
        figures.row("built and compiled", time.perf_counter() - started_s, "s")
        targets = np.tile(HOME_RAD, (count, 1, 1))
        started_s = time.perf_counter()
        for _ in range(steps):
            env.send(0, targets)
            env.receive(0)
        rate = count * steps / (time.perf_counter() - started_s)
        figures.row(f"{count} scenes", rate, "steps/s")
    finally:
        env.close()
