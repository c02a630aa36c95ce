"""openpi's messages: what passes unchanged, and what is refused with which words."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest

from crane_x7_remote.policy_server import wire
from crane_x7_remote.policy_server.msgpack_bounds import Limits
from crane_x7_remote.policy_server.wire import WireError

RNG = np.random.default_rng(16)
OBSERVATION = {
    "observation/image": RNG.integers(0, 255, (48, 64, 3), dtype=np.uint8),
    "observation/state": np.linspace(-1, 1, 8, dtype=np.float32),
    "prompt": "pick up the red cube",
    "rtc/delay_steps": 3,
}


def array_map(**changes: Any) -> bytes:
    """An array as openpi packs it, with some fields changed."""
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return bytes(msgpack.packb({name.encode(): value for name, value in fields.items()}))


def test_an_observation_comes_back_as_it_went() -> None:
    back = wire.unpack(wire.pack(OBSERVATION))
    assert list(back) == list(OBSERVATION)
    for key, value in OBSERVATION.items():
        np.testing.assert_array_equal(back[key], value)
        assert getattr(back[key], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize(
    "array",
    [
        np.array(0.5),
        np.zeros((0, 8), np.float32),
        np.array([True, False]),
        np.array(["pick", "löffel 匙"]),
        np.array("a prompt as a 0-d array"),
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.asfortranarray(np.arange(6, dtype=np.uint64).reshape(2, 3)),
        np.arange(3, dtype=">f8"),
        np.array([np.nan, np.inf], np.float16),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_every_allowed_kind_of_array_comes_back(array: np.ndarray) -> None:
    back = wire.unpack(wire.pack({"a": array}))["a"]
    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    assert not back.flags.writeable


@pytest.mark.parametrize(
    "scalar", [np.float32(0.25), np.int64(-7), np.uint8(255), np.bool_(True), np.str_("text")]
)
def test_numpy_scalars_keep_their_type(scalar: np.generic) -> None:
    back = wire.unpack(wire.pack([scalar]))[0]
    assert back == scalar
    assert type(back) is type(scalar)


def test_the_bytes_are_those_of_openpi() -> None:
    assert wire.pack({"actions": np.zeros((1, 2), np.float32)}) == msgpack.packb(
        {
            "actions": {
                b"__ndarray__": True,
                b"data": bytes(8),
                b"dtype": "<f4",
                b"shape": (1, 2),
            }
        }
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [np.array([object()])]}, "a/0: dtype object cannot be sent"),
        ({"a": np.zeros(2, complex)}, "a: dtype complex128"),
        ({"a": np.zeros(2, "M8[s]")}, "a: dtype datetime64"),
        ({"a": np.zeros(2, "S3")}, r"a: dtype \|S3"),
        ({"a": np.zeros(2, np.longdouble)}, "a: dtype float128"),
        ({"a": {1, 2}}, "a: a set cannot be sent"),
        ({3: "x"}, "key 3 is no text"),
        (2**64, "cannot be packed"),
    ],
)
def test_what_openpi_cannot_read_is_not_sent(value: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.pack(value)


def test_a_value_inside_itself_is_not_sent() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(WireError, match="inside others"):
        wire.pack(circle)


@pytest.mark.parametrize("dtype", ["|O", "O", "object", "<c8", "|V4", "|S4", "<M8[s]", "<f16", "x"])
def test_object_pointers_and_other_kinds_are_refused(dtype: str) -> None:
    with pytest.raises(WireError, match="is not allowed"):
        wire.unpack(array_map(dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": bytes(7)}, "needs 8 bytes, got 7"),
        ({"data": "text"}, "data is a str"),
        ({"shape": [-1]}, "whole numbers"),
        ({"shape": [True, 2]}, "whole numbers"),
        ({"shape": 2}, "whole numbers"),
        ({"shape": [2**40, 2**40, 0], "data": b""}, "not allowed"),
        ({"shape": [1] * 9}, "9 dimensions"),
        ({"dtype": "<U0", "shape": [2**30], "data": b""}, "not allowed"),
        ({"dtype": ["<f4"]}, "not allowed"),
        ({"dtype": "|b1", "shape": [8], "data": b"\2" * 8}, "booleans"),
        ({"dtype": "<U1", "data": b"\xff" * 8}, "no Unicode"),
        ({"dtype": "<U1", "data": struct.pack("<2I", 65, 0xD800)}, "no Unicode"),
        ({"more": 1}, "has the keys"),
    ],
)
def test_an_array_that_lies_about_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.unpack(array_map(**changes))


@pytest.mark.parametrize(
    ("dtype", "value"), [("|u1", 300), ("<f4", "1"), ("|b1", 1), ("<i8", 1.5), ("<U2", 5)]
)
def test_a_scalar_of_another_type_is_refused(dtype: str, value: object) -> None:
    fields = {b"__npgeneric__": True, b"data": value, b"dtype": dtype}
    with pytest.raises(WireError):
        wire.unpack(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "cut off"),
        (b"\xc1", "not used in msgpack"),
        (msgpack.packb(msgpack.ExtType(1, b"x")), "extension type"),
        (msgpack.packb({"a": msgpack.Timestamp(1)}), "extension type"),
        (msgpack.packb({"a": 1}) + b"\0", "1 bytes after the end"),
        (b"\x81\xa1\xff\x01", "utf-8"),
        (b"\x81\x01\x01", "map key"),
        (b"\xdd\xff\xff\xff\xff", "only 0 bytes follow"),
        (b"\xc6\xff\xff\xff\xffxx", "only 2 bytes follow"),
        (b"\x91" * 17 + b"\0", "more than 16 maps or lists"),
        (wire.pack(list(range(200_000))), "more than 100000 values"),
        (bytes(65 << 20), "expected at most"),
    ],
)
def test_bytes_that_are_no_message_are_refused(message: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.unpack(message)


def test_a_claimed_length_takes_no_memory() -> None:
    """Lists inside lists, each claiming as many values as a decoder would believe."""
    size = 1 << 14
    claims = b"".join(b"\xdd" + struct.pack(">I", size) for _ in range(12)) + bytes(size)
    tracemalloc.start()
    with pytest.raises(WireError):
        wire.unpack(claims, Limits(max_values=1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size


@pytest.mark.parametrize("seed", range(4))
def test_no_damaged_message_does_more_than_raise_a_wire_error(seed: int) -> None:
    """Bytes changed, removed, doubled and cut, in messages with every kind of value."""
    rng = np.random.default_rng(seed)
    good = wire.pack(
        {
            "image": np.zeros((4, 4, 3), np.uint8),
            "state": np.ones(8, np.float32),
            "texts": np.array(["ab", "c"]),
            "flags": np.array([True, False]),
            "scalar": np.float64(0.5),
            "list": [1, -5, 2**40, 0.5, None, True, "x", b"y", [[]], {}],
        }
    )
    accepted = 0
    for _ in range(4000):
        damaged = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, len(damaged)))
            match rng.integers(0, 4):
                case 0:
                    damaged[at] = int(rng.integers(0, 256))
                case 1 if len(damaged) > 1:
                    del damaged[at]
                case 2:
                    damaged[at:at] = damaged[at : at + int(rng.integers(1, 9))]
                case _:
                    del damaged[at + 1 :]
        try:
            value = wire.unpack(bytes(damaged))
        except WireError:
            continue
        accepted += 1
        repr(value)
        wire.pack(value)
    assert 0 < accepted < 4000


@pytest.mark.parametrize("seed", range(4))
def test_no_random_bytes_do_more_than_raise_a_wire_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for length in rng.integers(0, 40, 4000):
        noise = rng.bytes(int(length))
        try:
            value = wire.unpack(noise)
        except WireError:
            continue
        repr(value)
