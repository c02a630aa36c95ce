"""Requirements of `--backend gpu`: a GPU, SAPIEN's PhysX library, a Vulkan device. → problems.

Heavy packages are not imported, so that a trainer can refuse before it loads a model. The library's
path depends on SAPIEN's version, which only SAPIEN knows; without a GPU any version is accepted.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PHYSX: Final = "PhysXGpu_64.dll" if platform.system() == "Windows" else "libPhysXGpu_64.so"
FOLDER: Final = Path(".sapien") / "physx"
"""In the home folder: one folder per version."""


@dataclass(frozen=True)
class Machine:
    """Requirements of GPU simulation, and whether this machine has them."""

    cuda: bool
    """Whether torch can use a GPU."""
    physx_library: Path
    """Path where SAPIEN looks for GPU PhysX."""
    vulkan: bool
    """Whether SAPIEN can render on that GPU."""

    def problems(self) -> list[str]:
        """Return what is missing, each with its remedy."""
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
                " it once, with Internet access: python -c 'import sapien.physx;"
                " sapien.physx.enable_gpu()'; or unpack linux-so.zip of release"
                f" {version} of sapien-sim/physx-precompiled into"
                f" {self.physx_library.parent}; or use --backend cpu"
            )
        if not self.vulkan:
            found.append(
                "--backend gpu: the GPU has no Vulkan device, so SAPIEN cannot render on it. Start"
                " the container with NVIDIA_DRIVER_CAPABILITIES=all, check that"
                " /usr/share/vulkan/icd.d/nvidia_icd.json exists and that `vulkaninfo --summary`"
                " lists the GPU; or use --backend cpu"
            )
        return found


def without_gpu() -> Machine:
    """Return a machine without a GPU, which cannot render; it may have the library."""
    folder = Path.home() / FOLDER
    library = next(iter(sorted(folder.glob(f"*/{PHYSX}"))), folder / "VERSION" / PHYSX)
    return Machine(False, library, False)
