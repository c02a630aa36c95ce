"""LeRobotDataset v3: what is written is read back, and what is torn is never read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

from data_rig import FPS, SIZE, episode

from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.data.source import open_source


def write(folder: Path, numbers: range | list[int], *, resume: bool = False) -> None:
    with LeRobotWriter(folder, FPS, SIZE, resume=resume) as writer:
        for number in numbers:
            writer.add(episode(number, 4 + number))


def test_episodes_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    source = open_source(tmp_path)
    assert len(source) == 5
    assert source.fps == FPS
    assert source.lengths.tolist() == [4, 5, 6, 7, 8]
    for number in range(5):
        sent, got = episode(number, 4 + number), source[number]
        np.testing.assert_array_equal(got.state, sent.state)
        np.testing.assert_array_equal(got.action, sent.action)
        assert (got.instruction, got.success, got.seed) == (
            sent.instruction, sent.success, sent.seed,
        )  # fmt: skip
        for t in range(len(sent)):
            error = np.abs(got.image(t).astype(int) - sent.image(t))
            assert error.max() <= 12
            assert error.mean() < 2
