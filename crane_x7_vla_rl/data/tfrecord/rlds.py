"""The feature names of RLDS and the teleop logger. Parsed records → `Episode`.

Three layouts hold the same columns: one Example per step (the logger's `episode_data.tfrecord`),
one Example per episode with `steps/` before each name (RLDS as tfds writes it, T steps
concatenated), one SequenceExample per episode (a list per name). T steps, 8 joints as in
`robot.JOINT_NAMES`.

Sources: the feature table of the teleop logger; RLDS, github.com/google-research/rlds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.reader_options import RecordingError
from crane_x7_vla_rl.data.tfrecord.example import Example, Values, strung
from crane_x7_vla_rl.fields import FinitePositive
from crane_x7_vla_rl.images import JPEG_START, PNG_SIGNATURE
from crane_x7_vla_rl.robot import DOF

STEPS: Final = "steps/"
IMAGE: Final = ("observation/image_primary", "observation/image", "image")
STATE: Final = ("observation/proprio", "observation/state", "state")
ACTION: Final = ("action",)
INSTRUCTION: Final = (
    "task/language_instruction", "language_instruction",
    "observation/natural_language_instruction", "prompt",
)  # fmt: skip
TIME: Final = ("observation/timestamp", "timestamp")
STEP_NUMBER: Final = ("observation/timestep", "timestep")
SUCCESS: Final = ("episode_metadata/success", "success")
SEED: Final = ("episode_metadata/seed", "seed")

LOGGER_FPS: Final = 30.0
"""`collection_rate` of the logger's configuration, whose logs contain no usable time."""


@dataclass(frozen=True)
class TfrecordOptions:
    """Options in `reader.yaml` for a folder of TFRecord files."""

    fps: FinitePositive | None = None
    """Frames per second; default: from the time stamps, otherwise the logger's 30."""
    split: str = "train"
    """Split of a tfds data set; files without a split in their name are always read."""
    image: str | None = None
    """Name of the camera's feature, without `steps/`; default: the first of the known names."""
    state: str | None = None
    """Name of the measured joints' feature."""
    action: str | None = None
    """Name of the commanded joints' feature."""
    swap_red_blue: bool = False
    """Exchange red and blue: for RGB images that were encoded by a library that expects BGR."""


class Columns:
    """Features of one episode by name, each over all its steps."""

    def __init__(self, examples: Sequence[Example], where: str) -> None:
        """`examples`: one per step, or a single one that holds an episode."""
        self.where = where
        self._examples = examples
        self._prefix = STEPS if any(name.startswith(STEPS) for name in examples[0].names) else ""

    @property
    def names(self) -> list[str]:
        """Names in the first record, as an error lists them."""
        return self._examples[0].names

    @property
    def contents(self) -> list[bytes]:
        """The records' bytes."""
        return [example.content for example in self._examples]

    def find(self, known: Sequence[str], chosen: str | None = None) -> tuple[str, Values] | None:
        """Return the first of the names that exists, with its values, or None.

        Raises RecordingError if `chosen` is missing, or if some steps lack the feature.
        """
        for name in (chosen,) if chosen else known:
            for full in dict.fromkeys((self._prefix + name, name)):
                parts = [example.values(full) for example in self._examples]
                held = [part for part in parts if part is not None]
                if held and len(held) < len(parts):
                    lacking = self._examples[[part is None for part in parts].index(True)]
                    raise RecordingError(
                        lacking.where, full, "is missing, though other steps of its file have it"
                    )
                if held:
                    return full, strung(held)
        if chosen:
            raise RecordingError(self.where, chosen, self._missing())
        return None

    def need(self, field: str, known: Sequence[str], chosen: str | None) -> tuple[str, Values]:
        """Do what `find` does; raises RecordingError if nothing is found."""
        found = self.find(known, chosen)
        if found is None:
            raise RecordingError(
                self.where, field, f"({' or '.join(known)}) {self._missing()}; reader.yaml can"
                " name another",
            )  # fmt: skip
        return found

    def _missing(self) -> str:
        return f"is missing; the record holds {', '.join(self.names)}"

    def expect_one_per_record(self, name: str, count: int) -> None:
        """Raise RecordingError if records are steps, but `name` has not one value in each."""
        if count != len(self._examples) > 1:
            wrong = next(example for example in self._examples if example.size(name) != 1)
            raise RecordingError(
                wrong.where, name, f"holds {wrong.size(name)} images, expected one per step"
            )

    def joints(
        self, field: str, known: Sequence[str], chosen: str | None, steps: int
    ) -> npt.NDArray[np.float32]:
        """Return (T, 8) float32; raises RecordingError naming a step that has not 8 values."""
        name, values = self.need(field, known, chosen)
        if isinstance(values, list) or values.dtype != np.float32:
            kind = "bytes" if isinstance(values, list) else "integers"
            raise RecordingError(self.where, name, f"holds {kind}, expected floats in rad")
        if len(self._examples) > 1:
            for example in self._examples:
                _expect_joints(example.where, name, example.size(name))
        if len(values) != steps * DOF:
            _expect_joints(self.where, name, len(values) / steps)
        return values.astype(np.float32).reshape(steps, DOF)


def _expect_joints(where: str, name: str, count: float) -> None:
    if count != DOF:
        raise RecordingError(
            where, name, f"has {count:g} values per step, expected {DOF}: 7 arm joints, gripper"
        )


def steps_of(example: Example, options: TfrecordOptions) -> int | None:
    """Return the number of steps in the record; None if it is itself a single step."""
    whole = bool(example.list_names) or any(name.startswith(STEPS) for name in example.names)
    if not whole:
        return None
    names = (options.image,) if options.image else IMAGE
    sizes = [example.size(prefix + name) for prefix in (STEPS, "") for name in names]
    steps = next((size for size in sizes if size), 0)
    if not steps:
        Columns([example], example.where).need("image", IMAGE, options.image)
    return steps


def build_episode(
    columns: Columns, options: TfrecordOptions, fps: float, instruction: str
) -> Episode:
    """Return the episode, its images encoded; `instruction` is used if records have none.

    Raises EpisodeError naming file, record and feature.
    """
    name, images = columns.need("image", IMAGE, options.image)
    if not isinstance(images, list):
        raise RecordingError(columns.where, name, "holds numbers, expected JPEG or PNG")
    columns.expect_one_per_record(name, len(images))
    for step, content in enumerate(images):
        if not content.startswith((JPEG_START, PNG_SIGNATURE)):
            raise RecordingError(
                columns.where, name,
                f"of step {step} begins with {content[:8]!r}, expected JPEG"
                " or PNG",
            )  # fmt: skip
    if options.fps is None and (own := recorded_fps(columns)) and abs(own / fps - 1) > 0.1:
        raise RecordingError(
            columns.where, "fps", f"is {own:g} by its time stamps, the first episode's {fps:g};"
            " keep recordings of different rates in different folders",
        )  # fmt: skip
    _check_numbers(columns)
    words = _text(columns) or instruction
    if not words.strip():
        raise RecordingError(
            columns.where, "instruction", "is missing in the records; set it with --instruction"
        )
    return Episode(
        images=images,
        state=columns.joints("state", STATE, options.state, len(images)),
        action=columns.joints("action", ACTION, options.action, len(images)),
        instruction=words,
        fps=fps,
        success=_one(columns, SUCCESS, bool),
        source=columns.where,
        seed=_one(columns, SEED, int),
    )


def recorded_fps(columns: Columns) -> float | None:
    """Return the rate of the time stamps, or None.

    Seconds since 1970 lose their precision in a float list, whose values are then 128 s apart: such
    stamps are useless.
    """
    found = columns.find(TIME)
    if found is None or isinstance(found[1], list) or len(found[1]) < 2:
        return None
    stamps = found[1].astype(np.float64)
    period = float(np.median(np.diff(stamps)))
    resolution = float(np.spacing(np.float32(np.abs(stamps).max())))
    if not np.isfinite(period) or period <= 10 * resolution:
        return None
    return round(1 / period, 1)  # The nominal rate: stamps have jitter, and float32's error.


def _check_numbers(columns: Columns) -> None:
    """Refuse a file of steps that is not one episode with consecutive step numbers."""
    found = columns.find(STEP_NUMBER)
    if found is None or isinstance(found[1], list):
        return
    numbers = found[1]
    wrong = np.flatnonzero(np.diff(numbers) != 1)
    if len(wrong):
        before, after = numbers[wrong[0]], numbers[wrong[0] + 1]
        raise RecordingError(
            columns.where, found[0], f"goes from {before} to {after} at step {wrong[0] + 1},"
            " expected one episode without gaps; write each into its own file",
        )  # fmt: skip


def _text(columns: Columns) -> str:
    """Return the episode's instruction, "" without one; all steps must agree."""
    found = columns.find(INSTRUCTION)
    if found is None or not isinstance(found[1], list):
        return ""
    texts = list(dict.fromkeys(found[1]))
    if len(texts) > 1:
        first, second = (text.decode(errors="replace") for text in texts[:2])
        raise RecordingError(
            columns.where, found[0], f'changes from "{first}" to "{second}", expected one'
        )
    try:
        return texts[0].decode().strip()
    except UnicodeDecodeError as error:
        raise RecordingError(columns.where, found[0], f"is not UTF-8: {texts[0]!r}") from error


def _one(columns: Columns, known: Sequence[str], kind: Callable[[Any], Any]) -> Any:
    found = columns.find(known)
    if found is None or isinstance(found[1], list) or len(found[1]) != 1:
        return None
    return kind(found[1][0])
