"""Whether a device exists, without torch, whose import takes a second. Its name → problems.

NVML answers in milliseconds and creates no CUDA context, so that processes may be forked
afterwards. The final check is torch's.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.policies.base import PolicyLoadError

DEVICE: Final = re.compile(r"auto|cpu(:\d+)?|cuda(:\d+)?|mps|xpu(:\d+)?")
LIBRARY: Final = "libnvidia-ml.so.1"
SIGNS: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/nvhost-ctrl"))
"""Device files of a driver: NVIDIA's, Windows' (WSL), a Jetson's."""


def count() -> int | None:
    """Return the number of NVIDIA GPUs; None if only torch can tell."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None if any(path.exists() for path in SIGNS) else 0
    number = ctypes.c_uint(0)
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(number)):
        return None if any(path.exists() for path in SIGNS) else 0
    library.nvmlShutdown()
    return number.value


def check_name(name: str, setting: str) -> None:
    """Raise PolicyLoadError if `name` is not a device on any machine."""
    if DEVICE.fullmatch(name) is None:
        raise PolicyLoadError(f"{setting}={name}: expected auto, cuda, cuda:1 or cpu")


def problems(name: str, setting: str) -> list[PolicyLoadError]:
    """Return the certain problems of a device."""
    try:
        check_name(name, setting)
    except PolicyLoadError as error:
        return [error]
    if not name.startswith("cuda"):
        return []
    there = count()
    if there is None or int(name.partition(":")[2] or 0) < there:
        return []
    return [PolicyLoadError(no_device(setting, name, there))]


def no_device(setting: str, name: str, there: int) -> str:
    """Return a message: too few GPUs, and what to do."""
    number = f"{there} CUDA device{'s' * (there != 1)}" if there else "no CUDA device"
    return (
        f"{setting}={name}: this machine has {number}; set {setting}=cpu for a small model, or"
        " use a machine with a GPU (check `nvidia-smi`; a container needs --gpus all)"
    )
