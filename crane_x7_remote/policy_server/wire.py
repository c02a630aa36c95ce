"""openpi's messages. Python values with numpy arrays ↔ msgpack bytes; nothing is ever unpickled.

An array is the map `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [50, 8]}`, a
numpy scalar `{b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}`. Of dtypes only booleans,
integers, floats and texts pass: the stock decoder takes any, object pointers included.
Needs numpy and msgpack alone; it also runs in LeRobot's environment.

Source: openpi_client/msgpack_numpy.py of openpi-client 0.1.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.policy_server import msgpack_bounds
from crane_x7_remote.policy_server.msgpack_bounds import Limits

LIMITS: Final = Limits()
KINDS: Final = "biufU"
"""Kinds of dtype that pass; the others are complex, object, void, times and byte strings."""
_DTYPE: Final = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|U\d{1,7})")
_NAMES: Final = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_ARRAY_KEYS: Final = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS: Final = {b"__npgeneric__", b"data", b"dtype"}
_SCALARS: Final = {"b": (bool,), "i": (int,), "u": (int,), "f": (float, int), "U": (str,)}
"""Kind of dtype → Python types of a numpy scalar's value."""


class WireError(RemoteError):
    """A message is not what openpi's protocol allows; says where, what came and what may come."""


def pack(value: object) -> bytes:
    """Return `value` as msgpack.

    Maps, lists, tuples (they arrive as lists), texts, bytes, numbers, None, numpy arrays and
    scalars. Raises WireError for anything else, with its place in the message.
    """
    try:
        packed: bytes = msgpack.packb(_sendable(value, ()))
    except (ValueError, OverflowError, TypeError) as error:
        raise WireError(f"the message cannot be packed: {error}") from error
    return packed


def unpack(message: bytes, limits: Limits = LIMITS) -> Any:
    """Return the value in `message`; its arrays are read-only views into copied bytes.

    Lengths are checked before memory is taken. NaN and infinities pass: the code that uses a number
    checks it. Raises WireError.
    """
    try:
        msgpack_bounds.check(message, limits)
        value = msgpack.unpackb(message)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"expected a msgpack message, got {message[:24]!r}…: {error}") from error
    return _received(value, (), limits)


def _sendable(value: Any, path: tuple[object, ...]) -> Any:
    if isinstance(value, np.ndarray):
        _refuse_kind(value.dtype, path)
        return {
            b"__ndarray__": True,
            b"data": _content(value),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        _refuse_kind(value.dtype, path)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    if len(path) > LIMITS.max_depth:
        raise WireError(f"{_place(path)}: more than {LIMITS.max_depth} maps or lists inside others")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | bytes):
                raise WireError(f"{_place(path)}: key {key!r} is no text")
        return {key: _sendable(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sendable(item, (*path, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise WireError(
        f"{_place(path)}: a {type(value).__name__} cannot be sent; expected a map, list, text,"
        " bytes, number or numpy array"
    )


def _content(array: npt.NDArray[Any]) -> bytes | memoryview:
    """Return the bytes of an array. An image is not copied: two blocks of a megabyte at a time make
    the allocator give memory back and fetch it again at each call, 2 ms on a virtual machine."""
    if array.flags.c_contiguous and array.size and array.dtype.kind != "U" and array.dtype.isnative:
        return array.data.cast("B")
    return array.tobytes()


def _refuse_kind(dtype: np.dtype[Any], path: tuple[object, ...]) -> None:
    if dtype.kind not in KINDS or not _DTYPE.fullmatch(dtype.str):
        raise WireError(
            f"{_place(path)}: dtype {dtype} cannot be sent; expected booleans, integers, floats"
            " of at most 64 bits or text"
        )


def _received(value: Any, path: tuple[object, ...], limits: Limits) -> Any:
    if isinstance(value, list):
        return [_received(item, (*path, index), limits) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    try:
        if b"__ndarray__" in value:
            return _array(value, limits)
        if b"__npgeneric__" in value:
            return _scalar(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError(f"{_place(path)}: {error}") from error
    return {key: _received(item, (*path, key), limits) for key, item in value.items()}


def _array(fields: dict[Any, Any], limits: Limits) -> npt.NDArray[Any]:
    _check_keys(fields, _ARRAY_KEYS)
    content, shape = fields[b"data"], fields[b"shape"]
    dtype = _dtype(fields[b"dtype"])
    if not isinstance(content, bytes):
        raise ValueError(f"an array's data is a {type(content).__name__}, expected bytes")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array's shape is {str(shape)[:60]}, expected whole numbers >= 0")
    if len(shape) > limits.max_dimensions:
        raise ValueError(
            f"an array has {len(shape)} dimensions, expected at most {limits.max_dimensions}"
        )
    if dtype.itemsize == 0 or math.prod(max(n, 1) for n in shape) > limits.max_bytes:
        raise ValueError(f"an array of shape {shape} and dtype {dtype.str} is not allowed")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype.str} needs"
            f" {math.prod(shape) * dtype.itemsize} bytes, got {len(content)}"
        )
    array: npt.NDArray[Any] = np.frombuffer(content, dtype).reshape(shape)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
        array.setflags(write=False)
    _check_content(array)
    return array


def _check_content(array: npt.NDArray[Any]) -> None:
    """Raise ValueError for bytes that numpy would take and Python could not read later."""
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise ValueError("an array of booleans has bytes other than 0 and 1")
    if array.dtype.kind == "U" and array.size:
        codes = np.frombuffer(array.tobytes(), np.uint32)
        if codes.max() > 0x10FFFF or bool(((codes >= 0xD800) & (codes <= 0xDFFF)).any()):
            raise ValueError("an array of texts has bytes that are no Unicode characters")


def _scalar(fields: dict[Any, Any]) -> Any:
    _check_keys(fields, _SCALAR_KEYS)
    dtype, value = _dtype(fields[b"dtype"]), fields[b"data"]
    if type(value) not in _SCALARS[dtype.kind]:
        raise ValueError(f"a scalar of dtype {dtype.str} is {str(value)[:60]!r}")
    return dtype.type(value)


def _dtype(text: object) -> np.dtype[Any]:
    if not isinstance(text, str) or not (_DTYPE.fullmatch(text) or text in _NAMES):
        raise ValueError(
            f"dtype {str(text)[:40]!r} is not allowed; expected booleans, integers, floats of at"
            " most 64 bits or text"
        )
    return np.dtype(text)


def _check_keys(fields: dict[Any, Any], expected: set[bytes]) -> None:
    if fields.keys() != expected:
        names = sorted(str(key)[:20] for key in fields)[:8]
        raise ValueError(f"an array has the keys {names}, expected {sorted(map(str, expected))}")


def _place(path: tuple[object, ...]) -> str:
    if not path:
        return "the message"
    return "/".join(key.decode(errors="replace") if isinstance(key, bytes) else str(key)
                    for key in path)[:120]  # fmt: skip
