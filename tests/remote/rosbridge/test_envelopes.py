"""Fragments and png operations: what is put together, and what is given up with which words."""

from __future__ import annotations

import base64
import json
import math
import random
from typing import Any

import cv2
import numpy as np
import pytest

from crane_x7_remote.rosbridge.envelopes import MAX_AGE_S, MAX_OPEN, Fragments, unpack_png
from crane_x7_remote.rosbridge.protocol import ProtocolError

TEXT = json.dumps({"op": "publish", "topic": "/camera", "msg": {"data": "0123456789" * 20}})


def fragment(data: str, num: object, total: object, name: object = 0) -> dict[str, Any]:
    return {"op": "fragment", "id": name, "data": data, "num": num, "total": total}


def cut(text: str, size: int = 40, name: object = 0) -> list[dict[str, Any]]:
    """As rosbridge's Fragmentation does it under Python 3: the total has decimals."""
    total = (len(text) - 1) / size + 1
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return [fragment(piece, num, total, name) for num, piece in enumerate(pieces)]


class Rig:
    def __init__(self, max_bytes: int = 10_000) -> None:
        self.lost: list[str] = []
        self.now_s = 0.0
        self.fragments = Fragments(max_bytes, lambda why, _: self.lost.append(why))

    def add(self, *operations: dict[str, Any]) -> list[str]:
        answers = [self.fragments.add(operation, self.now_s) for operation in operations]
        return [answer for answer in answers if answer is not None]


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("seed", range(5))
def test_fragments_become_the_text_in_whatever_order_they_come(rig: Rig, seed: int) -> None:
    pieces = cut(TEXT)
    if seed:
        random.Random(seed).shuffle(pieces)
    assert rig.add(*pieces) == [TEXT]
    assert not rig.lost


def test_the_same_id_is_used_for_one_message_after_another(rig: Rig) -> None:
    texts = [TEXT + " " * count for count in range(20)]
    assert rig.add(*(piece for text in texts for piece in cut(text))) == texts
    assert not rig.lost


def test_messages_that_interleave_are_told_apart_by_id_or_length(rig: Rig) -> None:
    longer = TEXT + "x" * 100
    first, second, third = cut(TEXT), cut(longer), cut(TEXT + "y", name="other")
    mixed: list[dict[str, Any]] = []
    for row in zip(first, second, third, strict=False):
        mixed += row
    mixed += second[len(first) :]
    assert sorted(rig.add(*mixed), key=len) == [TEXT, TEXT + "y", longer]


def test_a_fragment_that_comes_again_changes_nothing(rig: Rig) -> None:
    pieces = cut(TEXT)
    assert rig.add(*pieces[:3], *pieces[:3], *pieces[3:]) == [TEXT]
    assert not rig.lost


def test_two_messages_under_one_id_are_never_mixed(rig: Rig) -> None:
    first, second = cut("a" * 400), cut("b" * 400)
    interleaved = [piece for pair in zip(first, second, strict=True) for piece in pair]
    for text in rig.add(*interleaved, *cut("c" * 400), *cut("d" * 400)):
        assert len(set(text)) == 1
    assert "different content" in rig.lost[0]


def test_a_message_that_was_cut_off_does_not_spoil_the_next_one(rig: Rig) -> None:
    assert rig.add(*cut("a" * 400)[:4], *cut("b" * 400)) == ["b" * 400]
    assert len(rig.lost) == 1


def test_what_does_not_become_whole_is_given_up_and_told_once(rig: Rig) -> None:
    rig.add(*cut(TEXT)[:-1])
    rig.now_s = MAX_AGE_S + 0.1
    rig.fragments.expire(rig.now_s)
    rig.fragments.expire(rig.now_s)
    assert len(rig.lost) == 1
    assert "did not arrive within 5 s" in rig.lost[0]
    assert rig.add(*cut(TEXT)) == [TEXT]


def test_more_than_the_bound_is_given_up_and_told_once(rig: Rig) -> None:
    assert rig.add(*cut("x" * 20_000, 500)) == []
    assert len(rig.lost) == 1
    assert "more than 10000 bytes" in rig.lost[0]
    assert rig.add(*cut(TEXT)) == [TEXT]


def test_the_bound_counts_all_unfinished_messages_together(rig: Rig) -> None:
    for name in range(4):
        rig.add(*cut("x" * 4000, 500, name=name)[:-1])
    assert len(rig.lost) == 2
    assert rig.fragments._waiting <= 10_000


def test_of_too_many_unfinished_messages_the_oldest_goes(rig: Rig) -> None:
    last = [cut(TEXT, name=name) for name in range(MAX_OPEN + 1)]
    for pieces in last:
        rig.add(*pieces[:-1])
    assert len(rig.lost) == 1
    assert [bool(rig.add(pieces[-1])) for pieces in last[1:]] == [True] * MAX_OPEN


def test_memory_stays_bounded_under_a_flood_of_beginnings(rig: Rig) -> None:
    for name in range(5000):
        rig.add(fragment("x" * 100, 0, 2, name))
    assert len(rig.fragments._open) <= MAX_OPEN
    assert rig.fragments._waiting <= 10_000


def test_a_new_connection_forgets_the_beginnings(rig: Rig) -> None:
    pieces = cut(TEXT)
    rig.add(*pieces[:-1])
    rig.fragments.clear()
    assert rig.add(pieces[-1]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": ["a"]},
        {"id": True},
        {"id": 1.5},
        {"id": 10**6000},
        {"data": None},
        {"data": 7},
        {"num": -1},
        {"num": 3},
        {"num": "0"},
        {"num": 0.5},
        {"num": 10**6000},
        {"total": 0},
        {"total": 0.5},
        {"total": "3"},
        {"total": True},
        {"total": math.nan},
        {"total": math.inf},
        {"total": 10**9},
        {"total": 10**6000},
    ],
)
def test_what_is_no_fragment_is_refused(rig: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="fragment") as caught:
        rig.add(fragment("x", 0, 3) | changes)
    assert len(str(caught.value)) < 500
    assert not rig.fragments._open


def test_the_whole_part_of_a_total_with_decimals_counts(rig: Rig) -> None:
    with pytest.raises(ProtocolError, match="expected 0 up to the total"):
        rig.add(fragment("x", 3, 3.4))


# --- png -----------------------------------------------------------------------------------------


def png(text: str) -> dict[str, Any]:
    """As rosbridge's pngcompression.encode: RGB, filled up with line ends."""
    content = text.encode()
    width = max(math.floor(math.sqrt(len(content) / 3)), 1)
    height = math.ceil(len(content) / 3 / width)
    pixels = np.frombuffer(content.ljust(3 * width * height, b"\n"), np.uint8)
    return picture(pixels.reshape(height, width, 3)[:, :, ::-1])


def picture(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
    return {"op": "png", "data": base64.b64encode(encoded).decode()}


@pytest.mark.parametrize("text", ["{}", TEXT, json.dumps({"op": "x", "k": "赤い\n"}, indent=1)])
def test_the_pixels_of_a_png_spell_the_operation(text: str) -> None:
    assert json.loads(unpack_png(png(text))) == json.loads(text)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"op": "png"}, "expected a PNG"),
        ({"op": "png", "data": 7}, "expected a PNG"),
        ({"op": "png", "data": "no base64!"}, "expected a PNG"),
        ({"op": "png", "data": "/9j/4AAQ"}, "expected a PNG"),
        ({"op": "png", "data": png("{}")["data"][:40]}, "PNG|decoded|picture"),
        (picture(np.zeros((4, 4), np.uint16)), "16 bits, colour type 0"),
        (picture(np.zeros((4, 4), np.uint8)), "8 bits, colour type 0"),
        (picture(np.full((4, 4, 3), 255, np.uint8)), "UTF-8"),
        (picture(np.zeros((2000, 2000, 3), np.uint8)), "2000×2000.*at most 8388608 bytes"),
    ],
)
def test_what_is_no_text_in_a_png_is_refused(operation: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        unpack_png(operation)


def test_a_small_png_cannot_grow_beyond_the_bound() -> None:
    content = base64.b64decode(png(TEXT)["data"])
    huge = content[:16] + (10**6).to_bytes(4, "big") * 2 + content[24:]
    with pytest.raises(ProtocolError, match="1000000×1000000"):
        unpack_png({"op": "png", "data": base64.b64encode(huge).decode()})


def test_a_cut_off_png_is_refused_in_words() -> None:
    content = base64.b64decode(png(TEXT * 50)["data"])
    for kept in (30, 60, len(content) // 2):
        with pytest.raises(ProtocolError):
            unpack_png({"op": "png", "data": base64.b64encode(content[:kept]).decode()})
