"""An episode is checked where it is made: what is wrong is said with source and field."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg
from data_rig import episode

from crane_x7_vla_rl.data.episode import DataError, EpisodeError, decode_image

GOOD = episode(1, 4)
NAN = GOOD.state.copy()
NAN[2, 5] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": GOOD.state[:, :7]}, r"state has shape \(4, 7\), expected \(T, 8\)"),
        ({"state": GOOD.state[:0], "images": []}, r"state has shape \(0, 8\)"),
        ({"state": GOOD.state.astype(int)}, "state holds int64, expected floats in rad"),
        ({"state": NAN}, "state row 2 joint 5 is nan"),
        ({"action": NAN}, "action row 2 joint 5 is nan"),
        ({"action": GOOD.action[:3]}, "action holds 3 rows, state 4"),
        ({"images": GOOD.images[:3]}, "images holds 3 frames, state 4"),
        ({"images": np.zeros((4, 8, 8, 4), np.uint8)}, r"images frame 0 is \(8, 8, 4\) uint8"),
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, r"frame 0 is \(8, 8, 3\) float32"),
        ({"instruction": " "}, "instruction is ' ', expected words"),
        ({"fps": 0.0}, "fps is 0.0, expected a positive number"),
        ({"fps": float("nan")}, "fps is nan"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EpisodeError, match=f"^rig episode 1: .*{message}"):
        replace(GOOD, **changes)


def test_joints_are_copied_and_closed() -> None:
    state = GOOD.state.astype(np.float64)
    made = replace(GOOD, state=state)
    state[:] = 0
    np.testing.assert_array_equal(made.state, GOOD.state)
    assert made.state.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        made.state[0, 0] = 1


def encoded(kind: str) -> list[bytes]:
    images = [GOOD.image(t) for t in range(4)]
    if kind == "png":
        return [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95) for image in images]


@pytest.mark.parametrize(("kind", "error"), [("png", 0), ("jpeg", 12)])
def test_encoded_pictures_are_decoded_as_rgb(kind: str, error: int) -> None:
    made = replace(GOOD, images=encoded(kind))
    for t in range(4):
        assert np.abs(made.image(t).astype(int) - GOOD.image(t)).max() <= error
    with pytest.raises(IndexError, match="rig episode 1: frame 4 of 4"):
        made.image(4)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_truncated_picture_is_never_grey(kind: str, share: float) -> None:
    pictures = encoded(kind)
    pictures[3] = pictures[3][: int(len(pictures[3]) * share)]
    made = replace(GOOD, images=pictures)
    assert made.image(2).shape == (32, 48, 3)
    with pytest.raises(EpisodeError, match=f"rig episode 1: images frame 3: {kind.upper()} of"):
        made.image(3)


def test_something_else_is_no_picture() -> None:
    with pytest.raises(DataError, match="image begins with b'GIF89a', expected JPEG or PNG"):
        decode_image(b"GIF89a")
