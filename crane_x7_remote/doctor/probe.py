"""One probe of a heavy library, run as a child of doctor: its name → a line of JSON.

    python -m crane_x7_remote.doctor.probe NAME [WORD …]

What a probe cannot do is an exception, whose last line doctor shows.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any, Final

from crane_x7_remote.doctor.child import MARK
from crane_x7_vla_rl import secret_text

FRAME_SIZE: Final = (96, 72)
EGL_SURFACELESS: Final = 0x31DD
"""EGL_PLATFORM_SURFACELESS_MESA."""
EGL_VENDOR: Final = 0x3053


def torch_build() -> dict[str, Any]:
    """Return torch's version, its CUDA and a product computed on each device."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        one = torch.ones(64, 64, device=f"cuda:{number}")
        major, minor = torch.cuda.get_device_capability(number)
        devices.append(
            {
                "name": torch.cuda.get_device_name(number),
                "capability": f"{major}.{minor}",
                "is_right": bool((one @ one == 64).all()),
            }
        )
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "available": torch.cuda.is_available(),
        "devices": devices,
        "is_right": bool((torch.ones(64, 64) @ torch.ones(64, 64) == 64).all()),
    }


def triton() -> dict[str, Any]:
    """Compile a kernel on the GPU, launch it, and return whether its result is right."""
    import torch
    import triton as library

    from crane_x7_remote.doctor import kernel

    values = torch.arange(64.0, device="cuda")
    kernel.double[(1,)](values, 64, BLOCK=64)
    right = bool((values == 2 * torch.arange(64.0, device="cuda")).all())
    return {"version": library.__version__, "is_right": right}


def renderer() -> dict[str, Any]:
    """Return Vulkan's devices as SAPIEN sees them, its GPU, and the PhysX that it needs."""
    import sapien

    lines = str(sapien.render.get_device_summary()).splitlines()
    try:
        device = sapien.Device("cuda")
        gpu = str(device.name) if device.can_render() else None
    except RuntimeError:  # no CUDA device
        gpu = None
    return {
        "devices": [line.partition(": ")[2] for line in lines if line.startswith("GPU: ")],
        "gpu": gpu,
        "physx": str(sapien.physx.version()),
    }


def frame(choice: str = "auto") -> dict[str, Any]:
    """Render one image of the lift task; return the number of different values in it."""
    import logging

    import numpy as np

    from crane_x7_vla_rl import sim

    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("crane_x7_vla_rl.sim.render")
    logger.addHandler(Keep())
    logger.setLevel(logging.INFO)
    env = sim.make(sim.LIFT_ID, image_size=FRAME_SIZE, render=choice)  # type: ignore[arg-type]
    try:
        observation, _ = env.reset(seed=0)
        pictures = observation["sensor_data"]
        name, picture = next(iter(pictures.items()))
        values = np.asarray(picture["rgb"].cpu())
        shape = [int(length) for length in values.shape]
        return {
            "camera": name,
            "shape": shape,
            "values": len(np.unique(values)),
            "said": said[-1] if said else "",
        }
    finally:
        env.close()


def egl() -> dict[str, Any]:
    """Open an EGL display without a screen, and return its version and vendor."""
    library = ctypes.CDLL("libEGL.so.1")
    library.eglGetProcAddress.restype = ctypes.c_void_p
    library.eglGetDisplay.restype = ctypes.c_void_p
    library.eglQueryString.restype = ctypes.c_char_p
    library.eglQueryString.argtypes = (ctypes.c_void_p, ctypes.c_int)
    address = library.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    displays = [ctypes.c_void_p(library.eglGetDisplay(None))]
    if address:
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
        displays.insert(0, ctypes.c_void_p(kind(address)(EGL_SURFACELESS, None, None)))
    major, minor = ctypes.c_int(), ctypes.c_int()
    for display in displays:
        if library.eglInitialize(display, ctypes.byref(major), ctypes.byref(minor)):
            vendor = library.eglQueryString(display, EGL_VENDOR) or b"?"
            version = f"{major.value}.{minor.value}"
            return {"version": version, "vendor": vendor.decode(errors="replace")}
    raise RuntimeError(f"eglInitialize failed with error {library.eglGetError():#x}")


PROBES: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "torch": torch_build, "triton": triton, "renderer": renderer, "frame": frame, "egl": egl,
}  # fmt: skip


def main(name: str, *words: str) -> int:
    """Run one probe and print its result."""
    print(MARK + secret_text.mask(json.dumps(PROBES[name](*words))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
