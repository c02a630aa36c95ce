"""A camera's pose, field of view and lens: a YAML file or a JSON text → `CameraPose` → `Camera`.

The file that CAMERA_POSE names and the message on /vla/camera_pose have the same keys. World frame
of `camera`: robot base at the origin, x forward, y left, z up. Every mistake is reported at once.
`crane-x7-remote calibrate` writes such a file, with the lens; then `rectified` turns the camera's
images into those of the pinhole camera that `camera` describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from crane_x7_vla_rl.camera import BASE_CAMERA, Camera, Point, horizontal_fov_rad
from crane_x7_vla_rl.lens import Lens
from crane_x7_vla_rl.log_text import cut
from crane_x7_vla_rl.suggest import did_you_mean
from crane_x7_vla_rl.types import Image

SIM: Final = "sim"
"""Setting for the pose of the simulated robot's camera."""
KEYS: Final = (
    "position_m", "target_m", "orientation_xyzw", "fov_deg", "horizontal_fov_deg", "width",
    "height", "lens",
)  # fmt: skip
LENS_KEYS: Final = {"focal_px": 2, "centre_px": 2, "distortion": 5}
"""Key → number of values."""
FARTHEST_M: Final = 10.0
"""A larger distance is a mistake of units, such as millimetres."""
FOV_DEG: Final = (5.0, 150.0)
"""Wider lenses do not fit the pinhole model."""
ASPECT_TOLERANCE: Final = 0.02
UNIT_TOLERANCE: Final = 0.01
"""How far the length of a quaternion may be from 1."""
MAX_BYTES: Final = 10_000


class CameraPoseError(ValueError):
    """A pose that cannot be used; one line for each mistake."""


@dataclass(frozen=True)
class CameraPose:
    """A camera at a fixed place; exactly one field of view is given."""

    position_m: Point
    target_m: Point
    up_m: Point = (0.0, 0.0, 1.0)
    vertical_fov_rad: float | None = None
    horizontal_fov_rad: float | None = None
    size_px: tuple[int, int] | None = None
    """(width, height) of the images that the field of view belongs to; None: any size."""
    lens: Lens | None = None
    """What `rectified` corrects; None: the images are rectified already."""

    def rectified(self, image: Image) -> Image:
        """Return the image as seen by `camera`; the same object without a lens."""
        if self.lens is None:
            return image
        height, width = image.shape[:2]
        fov_rad = self.camera(width, height).horizontal_fov_rad
        return self.lens.rectified(image, fov_rad)

    def camera(self, width: int, height: int) -> Camera:
        """Return the camera for images of this size; raises CameraPoseError, see `misfit`."""
        problem = self.misfit(width, height)
        if problem is not None:
            raise CameraPoseError(problem)
        return _camera(self, width, height)

    def misfit(self, width: int, height: int) -> str | None:
        """Return why images of this size cannot be this camera's; None if they can."""
        if self.size_px is None:
            return None
        aspect = self.size_px[0] / self.size_px[1]
        if abs(width / height / aspect - 1) <= ASPECT_TOLERANCE:
            return None
        return (
            f"the camera's pose is for images of {self.size_px[0]}x{self.size_px[1]}, got"
            f" {width}x{height}, another aspect ratio; set the pose of this camera"
        )

    def to_json(self) -> str:
        """Return the text that `parse_json` reads."""
        values: dict[str, Any] = {"position_m": self.position_m, "target_m": self.target_m}
        if self.up_m != CameraPose.up_m:
            x, y, z, w = _quaternion(_camera(self, 4, 3).rotation)
            values = {"position_m": self.position_m, "orientation_xyzw": (x, y, z, w)}
        if self.vertical_fov_rad is not None:
            values["fov_deg"] = math.degrees(self.vertical_fov_rad)
        if self.horizontal_fov_rad is not None:
            values["horizontal_fov_deg"] = math.degrees(self.horizontal_fov_rad)
        if self.size_px is not None:
            values["width"], values["height"] = self.size_px
        if self.lens is not None:
            values["lens"] = {key: getattr(self.lens, key) for key in LENS_KEYS}
        return json.dumps(values)


@lru_cache(maxsize=16)
def _camera(pose: CameraPose, width: int, height: int) -> Camera:
    fov_rad = pose.horizontal_fov_rad
    if fov_rad is None:
        assert pose.vertical_fov_rad is not None
        fov_rad = horizontal_fov_rad(pose.vertical_fov_rad, width, height)
    return Camera(pose.position_m, pose.target_m, fov_rad, pose.up_m)


SIM_POSE: Final = CameraPose(
    BASE_CAMERA.position_m,
    BASE_CAMERA.target_m,
    horizontal_fov_rad=BASE_CAMERA.horizontal_fov_rad,
)
"""Pose of the simulated robot's base camera, for images of any size."""


def read(value: str) -> CameraPose:
    """Return the pose that a setting names, `sim` or a file; raises CameraPoseError."""
    if value == SIM:
        return SIM_POSE
    from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

    path = Path(value).expanduser()
    try:
        values = read_yaml(path)
    except OSError as error:
        raise CameraPoseError(
            f"{value} cannot be read: {error.strerror}; expected a YAML file, or {SIM!r} for the"
            " simulated robot's camera"
        ) from error
    except YamlError as error:
        raise CameraPoseError(f"{value} {error}") from error
    return parse(values, value)


def parse_json(text: str) -> CameraPose:
    """Return the pose in a message; raises CameraPoseError."""
    if len(text) > MAX_BYTES:
        raise CameraPoseError(f"the pose has {len(text)} characters, expected at most {MAX_BYTES}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CameraPoseError(f"the pose is not JSON: {error}") from error
    return parse(values, "the pose")


def parse(values: object, where: str) -> CameraPose:
    """Return the pose in decoded YAML or JSON; raises CameraPoseError with every mistake."""
    if not isinstance(values, Mapping):
        raise CameraPoseError(
            f"{where} is {_said(values)}, expected the keys position_m, target_m and fov_deg"
        )
    reader = _Reader(values)
    pose = reader.pose()
    if pose is None:
        lines = "".join(f"\n  {problem}" for problem in reader.problems)
        count = "a mistake" if len(reader.problems) == 1 else f"{len(reader.problems)} mistakes"
        raise CameraPoseError(f"{where} holds {count}:{lines}")
    return pose


class _Reader:
    """Reads the keys one by one and collects their problems."""

    def __init__(self, values: Mapping[Any, Any]) -> None:
        self._values = values
        self.problems: list[str] = []

    def pose(self) -> CameraPose | None:
        """Return the pose; None if there are `problems`."""
        for key in self._values:
            if key not in KEYS:
                hint = did_you_mean(str(key), KEYS) or f"; expected {', '.join(KEYS)}"
                self.problems.append(f"{cut(str(key), 60)} is unknown{hint}")
        position = self._point("position_m")
        target, up = self._direction(position)
        fovs = self._fields_of_view()
        size = self._size()
        lens = self._lens(size)
        if self.problems or position is None or target is None:
            return None
        return CameraPose(position, target, up, *fovs, size, lens)

    def _direction(self, position: Point | None) -> tuple[Point | None, Point]:
        """Return a point on the optical axis, and the direction up."""
        level = CameraPose.up_m
        if not self._only_one("target_m", "orientation_xyzw"):
            return None, level
        if "orientation_xyzw" in self._values:
            return self._turned(position)
        target = self._point("target_m")
        if target is None or position is None:
            return target, level
        away_m = np.subtract(target, position)
        if np.linalg.norm(away_m) < 1e-3:
            self.problems.append("target_m is position_m; expected a point that the camera sees")
        elif np.hypot(away_m[0], away_m[1]) < 1e-3 * np.linalg.norm(away_m):
            self.problems.append(
                "target_m is straight above or below position_m, so the rotation of the image"
                " is undefined; set orientation_xyzw instead"
            )
        return target, level

    def _turned(self, position: Point | None) -> tuple[Point | None, Point]:
        level = CameraPose.up_m
        quaternion = self._numbers("orientation_xyzw", 4)
        if quaternion is None:
            return None, level
        length = float(np.linalg.norm(quaternion))
        if abs(length - 1) > UNIT_TOLERANCE:
            self.problems.append(
                f"orientation_xyzw has the length {length:.4g}, expected 1: a unit quaternion"
            )
            return None, level
        axes = _rotation(np.array(quaternion) / length)
        if position is None:
            return None, level
        x, y, z = (np.array(position) + axes[:, 2]).tolist()
        up_x, up_y, up_z = (-axes[:, 1]).tolist()
        return (x, y, z), (up_x, up_y, up_z)

    def _fields_of_view(self) -> tuple[float | None, float | None]:
        """Return the vertical and the horizontal one in rad; None for the missing one."""
        if not self._only_one("fov_deg", "horizontal_fov_deg"):
            return None, None
        return self._angle("fov_deg"), self._angle("horizontal_fov_deg")

    def _angle(self, key: str) -> float | None:
        if key not in self._values:
            return None
        value, (low, high) = self._values[key], FOV_DEG
        if not _is_number(value) or not low <= value <= high:
            self.problems.append(
                f"{key} is {_said(value)}, expected a field of view from {low:g} to {high:g}"
                " degrees"
            )
            return None
        return math.radians(value)

    def _size(self) -> tuple[int, int] | None:
        given = [key for key in ("width", "height") if key in self._values]
        if len(given) == 1:
            other = "height" if given == ["width"] else "width"
            self.problems.append(f"{given[0]} is set without {other}; set both or neither")
        for key in given:
            value = self._values[key]
            if isinstance(value, bool) or not isinstance(value, int) or not 16 <= value <= 16384:
                self.problems.append(f"{key} is {_said(value)}, expected 16 to 16384 pixels")
                return None
        return (self._values["width"], self._values["height"]) if len(given) == 2 else None

    def _lens(self, size: tuple[int, int] | None) -> Lens | None:
        values = self._values.get("lens")
        if "lens" not in self._values:
            return None
        if not isinstance(values, Mapping) or set(values) != set(LENS_KEYS):
            self.problems.append(
                f"lens is {_said(values)}, expected the keys {', '.join(LENS_KEYS)}, as"
                " `crane-x7-remote calibrate run` writes them; without lens: images are rectified"
            )
            return None
        if "width" not in self._values or "height" not in self._values:
            self.problems.append("lens is set without width and height, which it belongs to")
        focal, centre, distortion = (
            self._numbers(key, count, values, "lens.") for key, count in LENS_KEYS.items()
        )
        if size is None or focal is None or centre is None or distortion is None:
            return None
        (fx, fy), (cx, cy), (k1, k2, p1, p2, k3) = focal, centre, distortion
        if min(fx, fy) < size[0] / 20:
            self.problems.append(f"lens.focal_px is {_said([fx, fy])}, expected pixels")
        if not (0 < cx < size[0] and 0 < cy < size[1]):
            self.problems.append(f"lens.centre_px is {_said([cx, cy])}, expected a pixel inside")
        return Lens((fx, fy), (cx, cy), (k1, k2, p1, p2, k3), size)

    def _only_one(self, one: str, other: str) -> bool:
        found = [key for key in (one, other) if key in self._values]
        if not found:
            self.problems.append(f"{one} is missing (or {other} instead)")
        elif len(found) == 2:
            self.problems.append(f"{one} and {other} are both set; keep one")
        return len(found) == 1

    def _point(self, key: str) -> Point | None:
        if key not in self._values:
            self.problems.append(f"{key} is missing; expected [x, y, z] in metres")
            return None
        point = self._numbers(key, 3)
        if point is None:
            return None
        if max(abs(value) for value in point) > FARTHEST_M:
            self.problems.append(
                f"{key} is {_said(point)}, expected metres, at most {FARTHEST_M:g} from the robot"
            )
            return None
        x, y, z = point
        return x, y, z

    def _numbers(
        self, key: str, count: int, values: Mapping[Any, Any] | None = None, prefix: str = ""
    ) -> list[float] | None:
        value = (self._values if values is None else values)[key]
        if (
            isinstance(value, list | tuple)
            and len(value) == count
            and all(_is_number(item) for item in value)
        ):
            return [float(item) for item in value]
        self.problems.append(f"{prefix}{key} is {_said(value)}, expected {count} finite numbers")
        return None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9  # neither NaN nor infinite


def _said(value: object) -> str:
    """Return a value as in a file."""
    try:
        return cut(json.dumps(value, ensure_ascii=False), 60)
    except (TypeError, ValueError):
        return cut(str(value), 60)


def _rotation(quaternion: Any) -> Any:
    """Return the (3, 3) rotation of a unit quaternion (4,), x y z w."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _quaternion(rotation: Any) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation (3, 3): the eigenvector of Bar-Itzhack's matrix, which is
    exact for every angle."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a - e - i, b + d, c + g, h - f],
            [b + d, e - a - i, f + h, c - g],
            [c + g, f + h, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1].tolist()
    return x, y, z, w
