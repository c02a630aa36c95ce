"""Where a simulation draws: a GPU, where SAPIEN can draw on one, else Mesa on the CPU.

A choice and a function that builds for a ManiSkill backend → what it built, or a SimError with the
remedy. The device is logged once per process; after a GPU has failed, the process stays with Mesa.

SAPIEN's render device "cpu" means its best Vulkan device, which is a GPU where one can draw
(computeDevicePriority in svulkan2's src/core/physical_device.cpp). So Mesa's driver file is named
to the Vulkan loader, which reads these variables whenever SAPIEN opens Vulkan.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, TypeVar

import sapien

from crane_x7_vla_rl.scenes import Render
from crane_x7_vla_rl.sim.errors import SimError

logger = logging.getLogger(__name__)

T = TypeVar("T")
RenderBackend = Literal["gpu", "cpu"]
"""ManiSkill's names: a CUDA GPU, SAPIEN's best Vulkan device."""

FAILURES: Final = (RuntimeError, OSError)
"""Errors of SAPIEN and Vulkan."""
DRIVER_FOLDERS: Final = tuple(
    Path(prefix, "vulkan/icd.d")
    for prefix in ("/usr/share", "/usr/local/share", "/etc", "/usr/local/etc")
)
"""Folders in which the Vulkan loader looks for drivers."""
MESA_DRIVER: Final = "lvp_icd*.json"
LOADER_VARIABLES: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
"""The second is the name before Vulkan loader 1.3.207."""
MESA_REMEDY: Final = (
    "install mesa-vulkan-drivers 24.3 or newer (scripts/setup does this; Debian 12 has it in"
    " backports) and check with `vulkaninfo --summary`"
)
GPU_REMEDY: Final = (
    "Start the container with --gpus all and NVIDIA_DRIVER_CAPABILITIES=all, check that `vulkaninfo"
    " --summary` lists the GPU; or use --render auto"
)

_failed_gpus: list[str] = []
"""GPUs on which drawing failed in this process."""


def gpu_name() -> str | None:
    """Return the name of the CUDA GPU on which SAPIEN can draw; None if there is none."""
    try:
        device = sapien.Device("cuda")
    except FAILURES:  # SAPIEN's error for an unknown device
        return None
    return str(device.name) if device.can_render() else None


def mesa_drivers() -> list[Path]:
    """Return the driver files of Mesa's renderer on the CPU."""
    return sorted(file for folder in DRIVER_FOLDERS for file in folder.glob(MESA_DRIVER))


def build(choice: Render, make: Callable[[RenderBackend], T]) -> T:
    """Return what `make` builds for the backend of `choice`; raises SimError with the remedy.

    `auto` tries a GPU once per process, and uses Mesa if drawing on it fails.
    """
    name = None if choice == "cpu" or _failed_gpus else gpu_name()
    if name is not None:
        try:
            built = make("gpu")
        except FAILURES as error:
            if choice == "gpu":
                raise SimError(
                    f"--render gpu: SAPIEN cannot draw on {name} ({error}). {GPU_REMEDY}"
                ) from error
            reason = str(error)
        else:
            _say(logging.INFO, f"rendering on the GPU: {name}")
            return built
        _failed_gpus.append(name)
        _say(logging.WARNING, f"rendering on {name} failed ({reason}); using Mesa on the CPU")
    elif choice == "gpu":
        raise SimError(f"--render gpu: SAPIEN finds no GPU to draw on. {GPU_REMEDY}")
    if choice == "cpu" or _failed_gpus:
        return _with_mesa(make)
    return _on_the_best_device(make)


def _with_mesa(make: Callable[[RenderBackend], T]) -> T:
    """Build with Mesa, whatever other drivers there are."""
    drivers = mesa_drivers()
    if drivers:
        _name_to_the_loader(drivers)
    elif (name := gpu_name()) is not None:
        raise SimError(
            f"--render cpu: no driver file {MESA_DRIVER} in {DRIVER_FOLDERS[0]}, so SAPIEN would"
            f" draw on {name}: {MESA_REMEDY}"
        )
    return _built(make)


def _on_the_best_device(make: Callable[[RenderBackend], T]) -> T:
    """Build with the drivers that Vulkan finds, else with Mesa.

    SAPIEN's import hides Mesa from the loader on a machine with an NVIDIA driver and no driver file
    for Vulkan; then nothing could draw.
    """
    drivers = mesa_drivers()
    if not drivers:
        return _built(make)
    try:
        return _built(make)
    except SimError as error:
        reason = str(error.__cause__)
    _name_to_the_loader(drivers)
    built = _built(make)
    _say(logging.WARNING, f"the first Vulkan driver cannot render ({reason}); using Mesa")
    return built


def _built(make: Callable[[RenderBackend], T]) -> T:
    try:
        built = make("cpu")
    except FAILURES as error:
        raise SimError(
            f"the simulation cannot render ({error}). It needs a Vulkan device: on a machine"
            f" without a GPU {MESA_REMEDY}"
        ) from error
    _say(logging.INFO, f"rendering without a CUDA GPU: {', '.join(_vulkan_devices())}")
    return built


def _name_to_the_loader(drivers: list[Path]) -> None:
    """Make Vulkan use only these, from the next time that SAPIEN opens it."""
    gc.collect()  # a scene that failed may still hold SAPIEN's renderer
    for variable in LOADER_VARIABLES:
        os.putenv(variable, os.pathsep.join(map(str, drivers)))


def _vulkan_devices() -> list[str]:
    lines = str(sapien.render.get_device_summary()).splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("GPU: ")]


@lru_cache(maxsize=64)
def _say(level: int, text: str) -> None:
    """Log each text once per process."""
    logger.log(level, "%s", text)
