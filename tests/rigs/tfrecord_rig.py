"""TFRecord files for tests, by an encoder that shares nothing with the reader: own protobuf wire
format, own CRC32C."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg

Value = Sequence[float] | Sequence[int] | Sequence[bytes] | npt.NDArray[np.float32]


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def varint(number: int) -> bytes:
    number %= 2**64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(value: Value) -> bytes:
    if len(value) and isinstance(value[0], bytes):
        return field(1, b"".join(field(1, item) for item in value))
    if len(value) and isinstance(value[0], int):
        return field(3, field(1, b"".join(varint(item) for item in value)))
    return field(2, field(1, np.asarray(value, "<f4").tobytes()))


def features(values: Mapping[str, Value]) -> bytes:
    return b"".join(
        field(1, field(1, name.encode()) + field(2, feature(value)))
        for name, value in values.items()
    )


def example(values: Mapping[str, Value]) -> bytes:
    return field(1, features(values))


def sequence_example(context: Mapping[str, Value], lists: Mapping[str, Sequence[Value]]) -> bytes:
    encoded = b"".join(
        field(
            1,
            field(1, name.encode()) + field(2, b"".join(field(1, feature(step)) for step in steps)),
        )
        for name, steps in lists.items()
    )
    return field(1, features(context)) + field(2, encoded)


def write(path: Path, records: Iterable[bytes], *, zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(framed(record) for record in records)
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def picture(shade: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """A JPEG, (height, width), red above blue, whose green tells `shade`."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, :, 0], pixels[size[0] // 2 :, :, 2] = 200, 200
    pixels[:, :, 1] = shade
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444")
    return encoded


def walk(steps: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(T + 1, 8) joints within their limits, moving slowly; row t + 1 is step t's action."""
    rest = np.array([0, 0.4, 0, -1.9, 0, -0.8, 1.5, 0.1])
    drift = np.random.default_rng(seed).uniform(-0.01, 0.01, (steps + 1, 8)).cumsum(axis=0)
    return (rest + drift).astype(np.float32)


def logger_steps(
    steps: int = 6, seed: int = 0, instruction: str = "pick up the red cube"
) -> list[dict[str, Value]]:
    """Features of each step as the teleop logger names them."""
    joints = walk(steps, seed)
    return [
        {
            "observation/proprio": joints[step],
            "observation/timestep": [step],
            "observation/image_primary": [picture(10 * step)],
            "action": joints[step + 1],
            "task/language_instruction": [instruction.encode()],
            "dataset_name": [b"crane_x7"],
        }
        for step in range(steps)
    ]


def write_log(folder: Path, number: int, steps: Sequence[Mapping[str, Value]]) -> Path:
    """One episode where the teleop logger puts it."""
    file = folder / f"episode_{number:04d}_20260131_1200{number:02d}" / "episode_data.tfrecord"
    return write(file, [example(step) for step in steps])


def rlds_episode(steps: int = 5, seed: int = 0, **more: Value) -> bytes:
    """One episode as tfds serialises it: every step's values strung together."""
    joints = walk(steps, seed)
    values: dict[str, Value] = {
        "steps/observation/image": [picture(10 * step) for step in range(steps)],
        "steps/observation/state": joints[:-1].ravel(),
        "steps/action": joints[1:].ravel(),
        "steps/language_instruction": [b"lift the blue cube"] * steps,
        "steps/is_first": [int(step == 0) for step in range(steps)],
        "steps/reward": [float(step == steps - 1) for step in range(steps)],
        "episode_metadata/file_path": [b"a.npz"],
        "episode_metadata/success": [1],
        "episode_metadata/seed": [40 + seed],
    }
    return example(values | more)
