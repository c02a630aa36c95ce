"""What a policy takes and gives. Observation → request; answer → `ActionChunk`.

`PolicyIO` is the description: keys, images, joints in order, units, what an action is. It comes
from a YAML file, a preset or a server's metadata (see policy_io_file); nothing in it is guessed.

Legend: T steps of a chunk; D columns of a vector; 8 joints in the order of `robot.JOINT_NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg

from crane_x7_vla_rl.image_geometry import ImageForm
from crane_x7_vla_rl.robot import ARM_DOF, DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import WRIST, ActionChunk, Array, Image, JointState, Observation

Key = tuple[str, ...]
"""Key of a message; several texts are keys of maps in maps."""
Unit = Literal["rad", "deg", "percent"]
ActionKind = Literal["joint_target", "joint_delta", "delta_from_first"]
Source = Literal["camera", "wrist", "black"]

GRIPPER: Final = ARM_DOF
"""Place of the gripper in JOINT_NAMES."""
ALL_PLACES: Final = tuple(range(DOF))
ARM_PLACES: Final = tuple(range(ARM_DOF))
MOST_STEPS: Final = 1000
TOOL_COLUMNS: Final = 7
"""Three of a position, three of a rotation, one of the gripper: actions in a tool's space."""
TOOL_HINT: Final = (
    "movements of a tool, as of openpi's released LIBERO policies, are not mapped to joints: use a"
    " policy that was fine-tuned on this arm's joints (docs/policy-server.md)"
)


class AnswerError(ValueError):
    """A server's answer is not what `PolicyIO` says; names the key, what came and what may come."""


@dataclass(frozen=True)
class Gripper:
    """The gripper's own scale: two of its values, and the angles that they mean."""

    closed: float
    open: float
    closed_rad: float
    open_rad: float

    def to_rad(self, values: Array) -> Array:
        """Return angles; values beyond `closed` and `open` mean those."""
        share = (values - self.closed) / (self.open - self.closed)
        share = np.where(np.isnan(share), share, np.clip(share, 0.0, 1.0))
        return np.asarray(self.closed_rad + share * (self.open_rad - self.closed_rad))

    def from_rad(self, angle_rad: float) -> float:
        """Return the value of an angle; angles beyond both mean the nearer one."""
        share = (angle_rad - self.closed_rad) / (self.open_rad - self.closed_rad)
        return float(self.closed + np.clip(share, 0.0, 1.0) * (self.open - self.closed))


@dataclass(frozen=True)
class JointColumns:
    """Which joint each column of a vector is, and its unit."""

    places: tuple[int | None, ...]
    """(D,) places in JOINT_NAMES; None: a column that means nothing on this arm."""
    unit: Unit
    gripper: Gripper | None = None
    """None: the gripper has the unit of the others."""

    def from_rad(self, position_rad: Array) -> npt.NDArray[np.float32]:
        """Return (D,) float32 for joints (8,); columns without a joint are 0."""
        values = _from_rad(position_rad, self.unit)
        if self.gripper is not None:
            values[GRIPPER] = self.gripper.from_rad(position_rad[GRIPPER])
        found = [0.0 if place is None else values[place] for place in self.places]
        return np.array(found, np.float32)


@dataclass(frozen=True)
class ImageInput:
    """One picture of a request."""

    key: Key
    source: Source
    form: ImageForm


@dataclass(frozen=True)
class StateInput:
    """One vector of measured joints in a request."""

    key: Key
    columns: JointColumns


@dataclass(frozen=True)
class ActionOutput:
    """The chunk in an answer."""

    key: Key
    kind: ActionKind
    columns: JointColumns
    period_s: float
    scale: float = 1.0
    """Factor of the arm's columns, of deltas."""
    chunk_steps: int | None = None
    """Steps of every answer; None: not stated."""


@dataclass(frozen=True)
class PolicyIO:
    """Inputs and outputs of one policy."""

    images: tuple[ImageInput, ...]
    state: tuple[StateInput, ...]
    prompt: Key
    action: ActionOutput
    source: str
    """Where it was read, for messages."""

    @property
    def more_cameras(self) -> tuple[str, ...]:
        """Cameras besides the base camera whose pictures it wants."""
        return (WRIST,) if any(image.source == WRIST for image in self.images) else ()

    def with_steps(self, steps: int) -> PolicyIO:
        """Return it with this number of steps in every answer."""
        return replace(self, action=replace(self.action, chunk_steps=steps))


def to_request(
    observation: Observation, io: PolicyIO, jpeg_quality: int | None = None
) -> dict[str, Any]:
    """Return the map that the server expects.

    `jpeg_quality`: pictures of plain form are JPEG files, as bytes, of this quality.
    """
    request: dict[str, Any] = {}
    for image in io.images:
        content: Any = image.form.apply(_picture(observation, image))
        if jpeg_quality is not None and image.form.is_plain:
            content = _jpeg(content, jpeg_quality)
        _put(request, image.key, content)
    for state in io.state:
        _put(request, state.key, state.columns.from_rad(observation.joints.position_rad))
    _put(request, io.prompt, observation.instruction)
    return request


def to_chunk(answer: object, io: PolicyIO, joints: JointState) -> ActionChunk:
    """Return the joint targets in a server's answer; `joints` are those of the observation.

    Joints without a column stay where they were measured. Limits are not checked here, and NaN
    passes: the loop's safety check refuses both and names joint and step. Raises AnswerError.
    """
    columns = io.action.columns
    actions = actions_of(answer, io)
    targets = np.tile(joints.position_rad, (len(actions), 1))  # (T, 8)
    for column, place in enumerate(columns.places):
        if place is None:
            continue
        values = actions[:, column]
        if place == GRIPPER and columns.gripper is not None:
            targets[:, place] = columns.gripper.to_rad(values)
        elif io.action.kind == "joint_target":
            targets[:, place] = _to_rad(values, columns.unit, place)
        else:
            step = _span_to_rad(values * io.action.scale, columns.unit, place)
            moved = np.cumsum(step) if io.action.kind == "joint_delta" else step
            targets[:, place] = joints.position_rad[place] + moved
    return ActionChunk(targets, io.action.period_s)


def actions_of(answer: object, io: PolicyIO) -> Array:
    """Return the actions (T, D) float64 in a server's answer, in its own units; raises
    AnswerError."""
    name, wide = "/".join(io.action.key), len(io.action.columns.places)
    found: object = answer
    for key in io.action.key:
        if not isinstance(found, Mapping) or key not in found:
            there = ", ".join(map(str, found))[:200] if isinstance(found, Mapping) else "no map"
            raise AnswerError(f"the answer has no {name} (action.key of {io.source}); got {there}")
        found = found[key]
    if isinstance(found, list):
        try:
            found = np.array(found, np.float64)
        except (ValueError, TypeError) as error:
            raise AnswerError(f"{name} is a list, expected numbers (T, {wide}): {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise AnswerError(f"{name} is {kind}, expected numbers of shape (T, {wide})")
    if found.ndim != 2 or found.shape[1] != wide or not 0 < len(found) <= MOST_STEPS:
        hint = (
            f"; if they are of a tool: {TOOL_HINT}" if found.shape[-1:] == (TOOL_COLUMNS,) else ""
        )
        raise AnswerError(
            f"{name} has shape {found.shape}, expected (T, {wide}) with 1 to {MOST_STEPS} steps:"
            f" action.joints of {io.source} names {wide} columns{hint}"
        )
    if io.action.chunk_steps not in (None, len(found)):
        raise AnswerError(
            f"{name} has {len(found)} steps, expected {io.action.chunk_steps}: the server answers"
            " with another policy than at the start; start the loop again"
        )
    return found.astype(np.float64)


def _picture(observation: Observation, wanted: ImageInput) -> Image:
    if wanted.source == "camera":
        return observation.image
    if wanted.source == "wrist":
        image = observation.more_images.get(WRIST)
        if image is None:
            raise ValueError(
                f"the observation has no image of the wrist camera, which {'/'.join(wanted.key)}"
                " wants"
            )
        return image
    assert wanted.form.size is not None  # policy_io_file refuses a black picture without a size
    width, height = wanted.form.size
    return np.zeros((height, width, 3), np.uint8)


def _jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB")
    return content


def _put(request: dict[str, Any], key: Key, value: object) -> None:
    inside = request
    for name in key[:-1]:
        inside = inside.setdefault(name, {})
    inside[key[-1]] = value


def _from_rad(position_rad: Array, unit: Unit) -> Array:
    """Return (8,) in `unit`."""
    if unit == "deg":
        return np.asarray(np.rad2deg(position_rad))
    if unit == "percent":
        return np.asarray(200 * (position_rad - LOWER_RAD) / (UPPER_RAD - LOWER_RAD) - 100)
    return position_rad.copy()


def _to_rad(values: Array, unit: Unit, place: int) -> Array:
    """Return positions in rad."""
    if unit == "percent":
        return np.asarray(LOWER_RAD[place] + _span_to_rad(values + 100, unit, place))
    return _span_to_rad(values, unit, place)


def _span_to_rad(values: Array, unit: Unit, place: int) -> Array:
    """Return differences in rad; −100 to 100 percent is the joint's whole range."""
    if unit == "deg":
        return np.asarray(np.deg2rad(values))
    if unit == "percent":
        return np.asarray(values * (UPPER_RAD[place] - LOWER_RAD[place]) / 200)
    return values
