"""Memory that processes share: images, joints and targets of all environments, never pickled.

It is one anonymous file that every process maps. A `SharedPlan` goes to the workers, which open the
file through the process that created it. When the last one exits, for any reason, the kernel frees
the memory: no name stays in /dev/shm, and its size, 64 MB in a container, is not a limit.

Legend: N environments, H × W pixels, S numbers of a scene's true state.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.true_state import TRUE_STATE
from crane_x7_vla_rl.vector_config import LONGEST_CHUNK


@dataclass(frozen=True, eq=False)
class SharedArrays:
    """Views of the memory; it lives as long as one of them does."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3) of the running episodes."""
    state_rad: npt.NDArray[np.float32]
    """(N, 8) measured joints."""
    final_images: npt.NDArray[np.uint8]
    """(N, H, W, 3) the last view of an episode that was truncated."""
    final_state_rad: npt.NDArray[np.float32]
    """(N, 8)."""
    true_state: npt.NDArray[np.float32]
    """(N, S) of `true_state`; zeros where it is not wanted."""
    final_true_state: npt.NDArray[np.float32]
    """(N, S)."""
    targets_rad: npt.NDArray[np.float32]
    """(N, LONGEST_CHUNK, 8) to execute."""


@dataclass(frozen=True)
class SharedPlan:
    """Description that a process needs to map the memory."""

    num_envs: int
    image_size: tuple[int, int]
    """(width, height)."""
    file: int
    """File descriptor, in the process that created it."""
    owner: int = field(default_factory=os.getpid)
    """That process's id."""

    @property
    def shapes(self) -> dict[str, tuple[type[Any], tuple[int, ...]]]:
        """Type and shape of each array, in order; types of four bytes first."""
        width, height = self.image_size
        images = (np.uint8, (self.num_envs, height, width, 3))
        joints = (np.float32, (self.num_envs, DOF))
        true_state = (np.float32, (self.num_envs, TRUE_STATE))
        return {
            "targets_rad": (np.float32, (self.num_envs, LONGEST_CHUNK, DOF)),
            "state_rad": joints,
            "final_state_rad": joints,
            "true_state": true_state,
            "final_true_state": true_state,
            "images": images,
            "final_images": images,
        }

    @property
    def size(self) -> int:
        """Total number of bytes."""
        return sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in self.shapes.values()
        )

    def map(self) -> SharedArrays:
        """Return the arrays; raises SimError if the process that created them has ended."""
        try:
            file = os.open(f"/proc/{self.owner}/fd/{self.file}", os.O_RDWR)
        except OSError as error:
            raise SimError(
                f"the shared memory of process {self.owner} cannot be opened ({error}): the process"
                " has ended, or /proc is hidden from this user"
            ) from error
        try:
            memory = mmap.mmap(file, self.size)
        finally:
            os.close(file)
        arrays, offset = {}, 0
        for name, (dtype, shape) in self.shapes.items():
            array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
            arrays[name] = array
            offset += array.nbytes
        return SharedArrays(**arrays)


def reserve(num_envs: int, image_size: tuple[int, int]) -> SharedPlan:
    """Return the plan of new memory, zeroed. Its file stays open until `release`."""
    plan = SharedPlan(num_envs, image_size, os.memfd_create("crane_x7_views", os.MFD_CLOEXEC))
    os.ftruncate(plan.file, plan.size)
    return plan


def release(plan: SharedPlan) -> None:
    """Close the file; mapped arrays stay."""
    os.close(plan.file)
