"""Small episodes for tests of data: joints that count, pictures that show their frame's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import Episode

SIZE = (48, 32)
"""(width, height)."""
FPS = 10.0
INSTRUCTIONS = ("lift the red cube", "lift the green cube")


def picture(episode: int, t: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Return a smooth image whose colours name the episode and the frame."""
    width, height = size
    across = np.linspace(0, 60, width)[None, :, None]
    down = np.linspace(0, 60, height)[:, None, None]
    colour = np.array([(episode * 37) % 130, (t * 23) % 130, (episode * 11 + t * 5) % 130])
    return (across + down + colour).astype(np.uint8)


def episode(
    number: int = 0,
    length: int = 6,
    *,
    size: tuple[int, int] = SIZE,
    fps: float = FPS,
    seed: int | None = None,
) -> Episode:
    """Return an episode whose joints say which frame of which episode they belong to."""
    rng = np.random.default_rng(number)
    # In reach of every joint, so that tests may put the columns in another order.
    state = rng.uniform(-0.4, 0.4, (length, 8)).astype(np.float32)
    state[:, 0] = number / 40 + np.arange(length) / 4000
    return Episode(
        [picture(number, t, size) for t in range(length)],
        state,
        state + np.float32(0.01),
        INSTRUCTIONS[number % 2],
        fps,
        number % 3 != 0,
        f"rig episode {number}",
        1000 + number if seed is None else seed,
    )


@dataclass(frozen=True)
class ListSource:
    """Episodes in memory as an `EpisodeSource`."""

    items: Sequence[Episode]
    name: str = "rig"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Episode:
        return self.items[index]

    @property
    def fps(self) -> float:
        return self.items[0].fps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(item) for item in self.items], dtype=np.int64)


def seen_twice(number: int = 0, length: int = 6) -> Episode:
    """Return an episode of the cameras base and wrist (24×16), its second half intervened in."""
    wrist = [picture(number + 50, t, (24, 16)) for t in range(length)]
    marks = np.arange(length) >= length // 2
    return replace(episode(number, length), others={"wrist": wrist}, intervention=marks)
