"""One demonstration. Recorded arrays and images → a checked `Episode`.

Every reader creates `Episode`s and every trainer uses them; arrays are checked once, here.
Legend: T frames, H and W image height and width, 8 joints in the order of `robot.JOINT_NAMES`; of
another robot as many as `joints` names.
Images may be lazy or encoded: `image(t)` decodes one frame, so episodes may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.images import PictureError, decode_picture
from crane_x7_vla_rl.prompt import clean_instruction
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import Image

Array = npt.NDArray[np.float32]


class DataError(ValueError):
    """Data on disk or in an episode is missing, truncated or invalid; says where."""


class EpisodeError(DataError):
    """One episode is invalid: names its source and the field."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One recorded attempt at a task, of the camera "base" and perhaps others."""

    images: Sequence[bytes | Image]
    """T frames, each (H, W, 3) uint8 RGB or such an image as JPEG or PNG; or (T, H, W, 3)."""
    state: Array
    """(T, 8) float32, rad: joints as measured when the frame was taken."""
    action: Array
    """(T, 8) float32, rad: absolute joint targets commanded after that frame."""
    instruction: str
    fps: float
    success: bool | None
    """None: not judged."""
    source: str
    """File and index, for messages."""
    seed: int | None = None
    """Seed of the simulated scene; None for recordings of a robot."""
    others: Mapping[str, Sequence[bytes | Image]] = field(default_factory=dict)
    """Name of each further camera → its T frames, as `images`."""
    intervention: npt.NDArray[np.bool_] | None = None
    """(T,) whether someone else acted while a policy was driving; None: not recorded."""
    joints: tuple[str, ...] = JOINT_NAMES
    """The columns of `state` and `action`; another robot's can be written only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", self._joints("state", self.state))
        object.__setattr__(self, "action", self._joints("action", self.action))
        if len(self.images) != len(self.state):
            raise self.error("images", f"holds {len(self.images)} frames, state {len(self.state)}")
        if len(self.action) != len(self.state):
            raise self.error("action", f"holds {len(self.action)} rows, state {len(self.state)}")
        for name, images in self.others.items():
            if len(images) != len(self.state):
                raise self.error(
                    f"camera {name}", f"holds {len(images)} frames, state {len(self.state)}"
                )
        if self.intervention is not None and self.intervention.shape != (len(self.state),):
            raise self.error(
                "intervention", f"has shape {self.intervention.shape}, expected ({len(self)},)"
            )
        if isinstance(self.images, np.ndarray):
            self._check_image(self.images[0], 0)
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise self.error("instruction", f"is {quoted(self.instruction)}, expected words")
        try:
            clean_instruction(self.instruction)
        except ValueError as error:
            raise self.error("instruction", str(error)) from error
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise self.error("fps", f"is {self.fps}, expected a positive number")

    def __len__(self) -> int:
        return len(self.state)

    def image(self, t: int) -> Image:
        """Return frame `t` as (H, W, 3) uint8 RGB; raises EpisodeError if it is broken."""
        if not 0 <= t < len(self):
            raise IndexError(f"{self.source}: frame {t} of {len(self)}")
        try:
            frame = self.images[t]
            image = decode_image(frame) if isinstance(frame, bytes | bytearray) else frame
        except EpisodeError:
            raise
        except DataError as error:
            raise self.error("images", f"frame {t}: {error}") from error
        self._check_image(image, t)
        return np.asarray(image)

    def seen_by(self, camera: str) -> Episode:
        """Return this episode with one of the `others` as its only camera."""
        source = f"{self.source} camera {camera}"
        return replace(self, images=self.others[camera], others={}, source=source)

    def error(self, field: str, what: str) -> EpisodeError:
        """Return the error that names this episode's source and `field`."""
        return EpisodeError(f"{self.source}: {field} {what}")

    def _check_image(self, image: Image, t: int) -> None:
        shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
            raise self.error("images", f"frame {t} is {shape} {dtype}, expected (H, W, 3) uint8")

    def _joints(self, field: str, values: npt.ArrayLike) -> Array:
        """Return a read-only float32 copy of (T, 8) floats."""
        array = np.asarray(values)
        if array.dtype.kind != "f":
            raise self.error(field, f"holds {array.dtype}, expected floats in rad")
        dof = len(self.joints)
        if array.ndim != 2 or array.shape[1] != dof or not len(array):
            raise self.error(field, f"has shape {array.shape}, expected (T, {dof}) with T ≥ 1")
        broken = np.argwhere(~np.isfinite(array))
        if len(broken):
            t, joint = broken[0]
            raise self.error(
                field, f"row {t} joint {joint} is {array[t, joint]}, expected a finite number"
            )
        array = np.array(array, dtype=np.float32)
        array.setflags(write=False)
        return array


def decode_image(content: bytes) -> Image:
    """Return (H, W, 3) uint8 RGB of a JPEG or PNG; raises DataError for a truncated one."""
    try:
        return decode_picture(content)
    except PictureError as error:
        raise DataError(str(error)) from error
