"""Requirements of `--backend gpu`: a GPU, SAPIEN's PhysX library, a Vulkan device. → problems.

Heavy packages are not imported, so that a trainer can refuse before it loads a model. The library's
path depends on SAPIEN's version, which only SAPIEN knows; without a GPU the pinned one is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crane_x7_vla_rl import physx_library


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
        if (wrong := physx_library.problem(self.physx_library)) is not None:
            version = self.physx_library.parent.name
            fetch = "python -c 'import sapien.physx; sapien.physx.enable_gpu()'"
            if version == physx_library.PINNED.version:
                fetch = f"python -m crane_x7_vla_rl.physx_library {physx_library.PINNED.url}"
            found.append(
                f"--backend gpu: SAPIEN's GPU PhysX library {wrong}. Fetch it once, with Internet"
                f" access: {fetch}; or unpack linux-so.zip of release {version} of"
                f" sapien-sim/physx-precompiled into {self.physx_library.parent}; or use"
                " --backend cpu"
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
    folder = Path.home() / physx_library.FOLDER / physx_library.PINNED.version
    return Machine(False, folder / physx_library.NAME, False)
