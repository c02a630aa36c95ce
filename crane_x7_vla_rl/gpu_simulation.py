"""What `--backend gpu` needs of a machine: a GPU, SAPIEN's PhysX library, a Vulkan device. → texts.

Nothing heavy is imported, so that a trainer can refuse before it loads a model. The library's place
depends on SAPIEN's version, which only SAPIEN knows; here any version counts.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NVIDIA: Final = 0x10DE
"""PCI vendor, as Vulkan gives it."""
LIBRARIES: Final = ("libvulkan.so.1", "libvulkan.so")
PHYSX: Final = "PhysXGpu_64.dll" if platform.system() == "Windows" else "libPhysXGpu_64.so"
FOLDER: Final = Path(".sapien") / "physx"
"""In the home folder: one folder per version."""


@dataclass(frozen=True)
class Machine:
    """What GPU simulation needs, and whether this machine has it."""

    cuda: bool
    """There is a GPU that torch can use."""
    physx_library: Path
    """Where SAPIEN looks for GPU PhysX."""
    vulkan: bool
    """SAPIEN can draw on that GPU."""

    def problems(self) -> list[str]:
        """Return what is missing, each with its cure."""
        found = []
        if not self.cuda:
            found.append(
                "--backend gpu: torch sees no CUDA GPU. Check `nvidia-smi`, start the container"
                " with --gpus all, and install a CUDA build of torch; or use --backend cpu"
            )
        if not self.physx_library.exists():
            version = self.physx_library.parent.name
            found.append(
                f"--backend gpu: SAPIEN's GPU PhysX library {self.physx_library} is missing. Fetch"
                " it once, where the network allows: python -c 'import sapien.physx;"
                " sapien.physx.enable_gpu()'; or unpack linux-so.zip of release"
                f" {version} of sapien-sim/physx-precompiled into"
                f" {self.physx_library.parent}; or use --backend cpu"
            )
        if not self.vulkan:
            found.append(
                "--backend gpu: the GPU offers no Vulkan device, so SAPIEN cannot draw on it. Start"
                " the container with NVIDIA_DRIVER_CAPABILITIES=all, check that"
                " /usr/share/vulkan/icd.d/nvidia_icd.json is there and that `vulkaninfo --summary`"
                " lists the GPU; or use --backend cpu"
            )
        return found


def glance(gpus: int | None) -> Machine:
    """Return what a quick look at this machine finds; `gpus` are counted already, None: unknown."""
    folder = Path.home() / FOLDER
    library = next(iter(sorted(folder.glob(f"*/{PHYSX}"))), folder / "VERSION" / PHYSX)
    return Machine(gpus != 0, library, gpus is None or has_vulkan_device(NVIDIA))


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo, without layers and extensions."""

    _fields_ = (
        ("kind", ctypes.c_uint32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p), ("layers", ctypes.c_uint32),
        ("layer_names", ctypes.c_void_p), ("extensions", ctypes.c_uint32),
        ("extension_names", ctypes.c_void_p),
    )  # fmt: skip


def has_vulkan_device(vendor: int) -> bool:
    """Whether Vulkan lists a device of this PCI vendor."""
    library = _vulkan()
    instance, info = ctypes.c_void_p(), _InstanceInfo(kind=1)
    if library is None or library.vkCreateInstance(
        ctypes.byref(info), None, ctypes.byref(instance)
    ):
        return False
    try:
        number = ctypes.c_uint32(0)
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(number), None)
        devices = (ctypes.c_void_p * number.value)()
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(number), devices)
        # VkPhysicalDeviceProperties takes 824 bytes; its third number is the vendor.
        properties = (ctypes.c_uint32 * 1024)()
        for device in devices[: number.value]:
            library.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
            if properties[2] == vendor:
                return True
        return False
    finally:
        library.vkDestroyInstance(instance, None)


def _vulkan() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
