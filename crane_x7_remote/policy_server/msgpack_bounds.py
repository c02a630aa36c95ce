"""Check a msgpack message before anything is decoded. Bytes → nothing, or a BoundsError. Pure.

A header of five bytes may claim four billion values, and a decoder takes memory for them at once.
This file reads only headers: every claimed length must fit into the bytes that follow, and the
number of values and the depth are limited. The bodies of strings are skipped, so a message with an
image costs microseconds.

Source: the msgpack specification (github.com/msgpack/msgpack, spec.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class BoundsError(ValueError):
    """The bytes are not one complete msgpack value within the limits; names the byte."""


@dataclass(frozen=True)
class Limits:
    """What a message may contain."""

    max_bytes: int = 64 * 1024 * 1024
    """Of the whole message; eighteen uncompressed images of 1280×960."""
    max_values: int = 100_000
    """Values in all maps and lists together, keys included; an array counts as six."""
    max_depth: int = 16
    """Maps and lists inside each other."""
    max_dimensions: int = 8
    """Of an array."""


_LENGTH_BYTES: Final = {
    0xC4: 1, 0xC5: 2, 0xC6: 4,  # bin
    0xD9: 1, 0xDA: 2, 0xDB: 4,  # str
    0xDC: 2, 0xDD: 4,  # array
    0xDE: 2, 0xDF: 4,  # map
}  # fmt: skip
"""First byte → bytes of the length that follows it."""
_SCALAR_BYTES: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0,  # nil, false, true
    0xCA: 4, 0xCB: 8,  # float
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,  # unsigned
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,  # signed
}  # fmt: skip
"""First byte → bytes of the body."""


def check(message: bytes, limits: Limits) -> None:
    """Raise BoundsError unless `message` is exactly one msgpack value within `limits`."""
    if len(message) > limits.max_bytes:
        raise BoundsError(f"message of {len(message)} bytes, expected at most {limits.max_bytes}")
    at, values = 0, 0
    to_come = [1]  # for each open map or list: values that must still follow
    while to_come:
        if to_come[-1] == 0:
            to_come.pop()
            continue
        to_come[-1] -= 1
        values += 1
        start = at
        body, children, at = _header(message, at)
        at += body
        if at > len(message) or children > len(message) - at:
            raise BoundsError(
                f"byte {start}: {body or children} bytes or values are announced, but only"
                f" {max(len(message) - at + body, 0)} bytes follow; the message is cut off"
            )
        if values + children > limits.max_values:
            raise BoundsError(
                f"byte {start}: more than {limits.max_values} values; send numbers as arrays"
            )
        if children:
            to_come.append(children)
            if len(to_come) - 1 > limits.max_depth:
                raise BoundsError(
                    f"byte {start}: more than {limits.max_depth} maps or lists inside each other"
                )
    if at != len(message):
        raise BoundsError(f"{len(message) - at} bytes after the end of the value at byte {at}")


def _header(message: bytes, at: int) -> tuple[int, int, int]:
    """Read one header at byte `at`.

    Returns the bytes of its body, the number of values inside it, and where the body begins.
    """
    if at >= len(message):
        raise BoundsError(f"byte {at}: a value is expected; the message is cut off")
    kind = message[at]
    at += 1
    if kind <= 0x7F or kind >= 0xE0:  # small integers
        return 0, 0, at
    if kind <= 0x8F:
        return 0, 2 * (kind & 0x0F), at
    if kind <= 0x9F:
        return 0, kind & 0x0F, at
    if kind <= 0xBF:
        return kind & 0x1F, 0, at
    if kind in _SCALAR_BYTES:
        return _SCALAR_BYTES[kind], 0, at
    if kind not in _LENGTH_BYTES:
        what = "is not used in msgpack" if kind == 0xC1 else "is an extension type"
        raise BoundsError(f"byte {at - 1}: 0x{kind:02x} {what}; expected maps, lists, texts, ...")
    end = at + _LENGTH_BYTES[kind]
    if end > len(message):
        raise BoundsError(f"byte {at - 1}: the message is cut off in a length")
    length = int.from_bytes(message[at:end], "big")
    if kind >= 0xDE:
        return 0, 2 * length, end
    if kind >= 0xDC:
        return 0, length, end
    return length, 0, end
