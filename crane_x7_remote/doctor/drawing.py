"""Group `drawing`: Vulkan, EGL, one rendered image, and PhysX for simulation on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.doctor import child
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Stop,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_remote.doctor.gpu import has_gpu, need_gpu
from crane_x7_vla_rl import physx_library

SOFTWARE: Final = "llvmpipe"
"""Name of Mesa's renderer on the CPU."""
MESA: Final = "sudo apt-get install -y mesa-vulkan-drivers"
GRAPHICS: Final = (
    "docker run --rm --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all --entrypoint vulkaninfo"
    " crane-x7-remote --summary"
)
FEWEST: Final = 20
"""Different values in an image that shows something."""
SIMULATION: Final = ("sapien", "mani_skill", "torch")


def _need_simulation() -> None:
    if missing := [name for name in SIMULATION if find_spec(name) is None]:
        raise Stop(skipped(f"the simulation is not installed (no {', '.join(missing)})"))


def _renderer(context: Context) -> dict[str, Any]:
    try:
        return child.probe(context, "renderer")
    except ChildError as error:
        raise Stop(failure(f"SAPIEN cannot open Vulkan: {error}", MESA)) from error


def vulkan(context: Context) -> Finding:
    """Which devices Vulkan can draw on."""
    _need_simulation()
    found = _renderer(context)
    names = ", ".join(found["devices"])
    if not names:
        return failure("Vulkan has no device, so the simulation cannot draw", MESA)
    if found["gpu"]:
        return ok(f"draws on the GPU: {found['gpu']}")
    if has_gpu():
        return warning(
            f"Vulkan does not see the GPU, only {names}: rendering is slow; the container lacks the"
            " driver's graphics part",
            GRAPHICS,
        )
    return ok(f"draws in software, on the CPU: {names}")


def egl(context: Context) -> Finding:
    """Whether EGL opens a display, for Genesis alone."""
    if context.settings.lift_simulator != "genesis":
        return skipped("only the simulator Genesis uses EGL (LIFT_SIMULATOR)")
    try:
        found = child.probe(context, "egl")
    except ChildError as error:
        return failure(
            f"EGL opens no display: {error}", "sudo apt-get install -y libegl1 libegl-mesa0"
        )
    return ok(f"EGL {found['version']} of {found['vendor']}")


def frame(context: Context) -> Finding:
    """Whether the simulation draws one image that shows something."""
    _need_simulation()
    try:
        found = child.probe(context, "frame", context.settings.lift_render)
    except ChildError as error:
        return failure(f"the simulation draws no image: {error}", MESA)
    _, height, width, _ = found["shape"]
    said = f"{width}×{height} image of {found['camera']}; {found['said'] or 'device unknown'}"
    if found["values"] < FEWEST:
        return failure(f"the image is empty ({found['values']} values): {said}", MESA)
    return ok(said + (" (software: slower than a GPU)" if SOFTWARE in found["said"] else ""))


def physx(context: Context) -> Finding:
    """Whether SAPIEN's PhysX library for simulation on a GPU is there and whole."""
    need_gpu("PhysX simulates on the CPU, which needs no such library")
    _need_simulation()
    version = _renderer(context)["physx"]
    path = Path.home() / physx_library.FOLDER / version / physx_library.NAME
    wrong = physx_library.problem(path)
    if wrong is None:
        return ok(f"{path} is whole")
    cure = f"python -m crane_x7_vla_rl.physx_library {physx_library.PINNED.url}"
    if version != physx_library.PINNED.version:
        cure = "python -c 'import sapien.physx; sapien.physx.enable_gpu()'"
    return warning(f"`--backend gpu` cannot simulate: {wrong}", cure)


CHECKS = (
    Check("drawing", "vulkan", vulkan, needs_settings=False),
    Check("drawing", "egl", egl),
    Check("drawing", "frame", frame),
    Check("drawing", "physx", physx, needs_settings=False),
)
