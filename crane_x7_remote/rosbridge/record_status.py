"""Control and state of a recorder on /vla/record and /vla/record_status. Messages ↔ types. Pure.

A dashboard or another program publishes a word, the recorder its state; the guard passes only what
this file can parse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.rosbridge.topics import RECORD_STATUS_TOPIC, RECORD_TOPIC

Word = Literal["start", "stop", "discard"]
WORDS: Final[tuple[Word, ...]] = get_args(Word)
LONGEST_FOLDER: Final = 1024
"""Characters."""
MAX_BYTES: Final = 8192


@dataclass(frozen=True)
class RecordStatus:
    """The state of one recorder."""

    recording: bool
    episode: int
    """Number of the episode that is being recorded, or would be next."""
    frames: int
    """Frames of the current episode so far; 0 between episodes."""
    seconds: float
    """Its length so far."""
    kept: int
    """Episodes in the data set, including earlier runs: safe on disk."""
    folder: str

    def message(self) -> dict[str, str]:
        """Return the std_msgs/String."""
        values = asdict(self) | {"folder": self.folder[:LONGEST_FOLDER]}
        return {"data": json.dumps(values, ensure_ascii=False, allow_nan=False)}


def word(message: Mapping[str, Any]) -> Word:
    """Return the word in a std_msgs/String on RECORD_TOPIC; raises MessageError."""
    text = message.get("data")
    found = next((known for known in WORDS if known == text), None)
    if found is None or len(message) > 1:
        raise MessageError(
            f"{RECORD_TOPIC}: is {brief(dict(message))}, expected data with {' or '.join(WORDS)}"
        )
    return found


def read(message: Mapping[str, Any]) -> RecordStatus:
    """Return the state in a std_msgs/String on RECORD_STATUS_TOPIC; raises MessageError."""
    text = message.get("data")
    if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_BYTES:
        raise MessageError(f"{RECORD_STATUS_TOPIC}: data is {brief(text)}, expected a short text")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError(
            f"{RECORD_STATUS_TOPIC}: data is {brief(text)}, expected JSON"
        ) from error
    if not isinstance(values, dict):
        raise MessageError(f"{RECORD_STATUS_TOPIC}: data is {brief(values)}, expected an object")
    recording, folder = values.get("recording"), values.get("folder")
    if not isinstance(recording, bool):
        raise _wrong("recording", recording, "true or false")
    if not isinstance(folder, str) or len(folder) > LONGEST_FOLDER:
        raise _wrong("folder", folder, "a path")
    return RecordStatus(
        recording=recording,
        episode=_count(values, "episode"),
        frames=_count(values, "frames"),
        seconds=_seconds(values.get("seconds")),
        kept=_count(values, "kept"),
        folder=folder,
    )


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise _wrong(name, value, "a count")
    return value


def _seconds(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:  # type: ignore[operator]
        raise _wrong("seconds", value, "0 or more")
    return float(value)  # type: ignore[arg-type]


def _wrong(name: str, value: object, expected: str) -> MessageError:
    return MessageError(f"{RECORD_STATUS_TOPIC}: {name} is {brief(value)}, expected {expected}")
