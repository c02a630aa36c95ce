"""Statistics of data: exact, in bounded memory, and what `find_statistics` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from data_rig import FPS, episode

from crane_x7_vla_rl.actions import find_statistics
from crane_x7_vla_rl.data import statistics
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.statistics import compute_statistics, read_statistics, write_statistics


@dataclass(frozen=True)
class Rows:
    """Episodes cut from given rows; makes each one at every access, so that none is kept."""

    state: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    length: int
    fps: float = FPS
    name: str = "rows"

    def __len__(self) -> int:
        return -(-len(self.state) // self.length)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(self[k]) for k in range(len(self))])

    def __getitem__(self, index: int) -> Episode:
        place = slice(index * self.length, (index + 1) * self.length)
        state = self.state[place]
        images = [np.zeros((4, 4, 3), np.uint8)] * len(state)
        return replace(
            episode(), images=images, state=state, action=self.action[place], source=str(index)
        )


def rows(count: int) -> npt.NDArray[np.float32]:
    """Values of all magnitudes and signs, columns of one value, repeated values, zeros."""
    rng = np.random.default_rng(count)
    values = rng.normal(size=(count, 8)) * 10.0 ** rng.integers(-6, 2, (count, 8))
    values[:, 1] = 0.25
    values[:, 2] = np.round(values[:, 2])
    values[:, 3] = -np.abs(values[:, 3])
    return values.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 101, 5000])
def test_statistics_equal_those_of_all_rows_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 64)
    state, action = rows(count), rows(count)[::-1].copy() + np.float32(1)
    got = compute_statistics(Rows(state, action, 13))
    assert (got.num_transitions, got.num_trajectories) == (count, -(-count // 13))
    for summary, values in ((got.proprio, state), (got.action, action)):
        exact = values.astype(np.float64)
        for name, share in (("q01", 0.01), ("q99", 0.99)):
            wanted = np.quantile(exact, share, axis=0)
            np.testing.assert_allclose(getattr(summary, name), wanted, rtol=1e-12, atol=1e-15)
        for name in ("mean", "std", "min", "max"):
            wanted = getattr(exact, name)(axis=0)
            np.testing.assert_allclose(getattr(summary, name), wanted, rtol=1e-9, atol=1e-12)


def test_statistics_are_read_by_those_who_scale_actions(tmp_path: Path) -> None:
    got = compute_statistics(Rows(rows(300), rows(301)[1:], 50))
    path = write_statistics(tmp_path, got)
    raw = json.loads(path.read_text())
    for kind, summary in (("action", got.action), ("proprio", got.proprio)):
        scale = find_statistics(raw, "crane_x7", kind)
        np.testing.assert_array_equal(scale.low, summary.q01)
        np.testing.assert_array_equal(scale.high, summary.q99)
        assert scale.mask.all()
    again = read_statistics(path)
    assert again.to_dict() == got.to_dict()


def test_statistics_of_nothing_are_an_error() -> None:
    with pytest.raises(DataError, match="no episodes"):
        compute_statistics(Rows(rows(1)[:0], rows(1)[:0], 5))


def test_another_file_is_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text('{"bridge": {}}')
    with pytest.raises(DataError, match="no statistics under crane_x7"):
        read_statistics(path)
