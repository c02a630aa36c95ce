"""Shuffled batches, the same for every rank and restart. `EpisodeSource` → `Batch`es.

Threads decode ahead. The order is one endless sequence of frames (`FrameOrder`); a step of N ranks
is the next N·B of it, and rank r takes the r-th B. So N ranks of batch B together get the same
frames as one rank of batch N·B, and one number, the place in the sequence, resumes a run exactly,
even with another world size or batch.
Legend: B batch, H and W image size, T steps of an action chunk, 8 joints.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.loader.order import FrameOrder
from crane_x7_vla_rl.data.loader.samples import Sample, Samples
from crane_x7_vla_rl.data.loader.selection import EVERY_FRAME, Choice, select_frames
from crane_x7_vla_rl.data.source import EpisodeSource
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.types import Image

STATE_KEYS: Final = ("seed", "shuffle", "episodes", "frames", "fingerprint")
"""Values that must be the same when a run resumes."""
READ_S: Final = 300.0
"""Timeout of a batch."""
POLITE: Final = 10
"""Added to the threads' niceness. torch splits each operation evenly over the cores and waits for
the slowest: a core that decodes meanwhile delays the others."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one step of one rank."""

    images: npt.NDArray[np.uint8]
    """(B, H, W, 3) RGB."""
    state: npt.NDArray[np.float32]
    """(B, 8) rad, measured."""
    actions: npt.NDArray[np.float32]
    """(B, T, 8) rad: absolute targets from this frame on; at the episode's end its last one is
    repeated."""
    instructions: list[str]
    episodes: npt.NDArray[np.int64]
    """(B,) number in the source."""
    frames: npt.NDArray[np.int64]
    """(B,) number in the episode."""
    places: npt.NDArray[np.int64]
    """(B,) place in the sequence of all training samples: a seed for random numbers that must not
    depend on ranks and restarts."""


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are loaded."""

    chunk_steps: int = 1
    """T."""
    shuffle: bool = True
    workers: int = 2
    """Number of decoding threads; decoding releases Python's lock."""
    prefetch: int = 4
    """Number of batches that are decoded ahead."""
    cache_bytes: int = 1 << 30
    """Memory for decoded and prepared images; images beyond it are decoded again each time."""
    corrupt: Literal["raise", "skip"] = "raise"
    """If a frame cannot be read: end the run (raise), or use another frame instead (skip)."""
    prepare: Callable[[Image], Image] | None = None
    """Called in the threads with each decoded image; its result is kept in memory."""
    transform: Callable[[Image, int], Image] | None = None
    """Called in the threads with each prepared image and its place; all results must have the same
    size."""
    choice: Choice = EVERY_FRAME
    """Which frames are used, and how often."""

    def __post_init__(self) -> None:
        for name in ("chunk_steps", "workers", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


class Batches(Iterator[Batch]):
    """An endless iterator of this rank's batches; call `close`, or use it as a context."""

    def __init__(
        self,
        source: EpisodeSource,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        options: LoaderOptions | None = None,
    ) -> None:
        options = options or LoaderOptions()
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size is {batch_size}, rank {rank} of {world_size}")
        if not len(source):
            raise DataError(f"{source.name}: holds no episodes; there is nothing to train on")
        selection = select_frames(source, options.choice)
        weights = None if selection is None else selection.weights
        self._order = FrameOrder(source.lengths, seed, shuffle=options.shuffle, weights=weights)
        self._samples = Samples(
            source, options.chunk_steps, options.cache_bytes, options.corrupt,
            options.prepare, options.transform, selection,
        )  # fmt: skip
        self._size, self._rank, self._ranks = batch_size, rank, world_size
        self._options, self._name = options, source.name
        self._about = {
            "seed": seed,
            "shuffle": options.shuffle,
            "episodes": len(source),
            "frames": self._order.frames,
            "fingerprint": self._order.fingerprint,
        }
        self._place = 0
        self._ahead: deque[Future[Batch]] = deque()
        self._pool = ThreadPoolExecutor(
            options.workers, thread_name_prefix="decode", initializer=_step_back
        )

    def __next__(self) -> Batch:
        step = self._size * self._ranks
        while len(self._ahead) < self._options.prefetch + 1:
            begin = self._place + len(self._ahead) * step + self._rank * self._size
            self._ahead.append(self._pool.submit(self._load, begin))
        try:
            batch = self._ahead[0].result(READ_S)
        except TimeoutError as error:
            raise DataError(
                f"{self._name}: nothing was read for {READ_S:g} s; does the disk or the network"
                " with the data respond?"
            ) from error
        self._ahead.popleft()
        self._place += step
        return batch

    @property
    def frames_per_epoch(self) -> int:
        """Frames in an epoch, of all ranks together."""
        return self._order.frames

    @property
    def place(self) -> int:
        """Samples so far, of all ranks together."""
        return self._place

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self._place / self._order.frames

    @property
    def broken(self) -> dict[int, str]:
        """Problems of episodes with skipped frames."""
        return dict(self._samples.broken)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last returned batch; the same on every rank."""
        return {"place": self._place, **self._about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a place; raises DataError that lists how the data differs from the state's."""
        differences = [
            f"{name} was {quoted(state.get(name))}, is now {quoted(self._about[name])}"
            for name in STATE_KEYS
            if state.get(name) != self._about[name]
        ]
        if differences:
            raise DataError(
                f"{self._name}: not the data of the run's start: {'; '.join(differences)};"
                " resume with that data and seed, or start a new run"
            )
        self._forget()
        self._place = int(state["place"])

    def close(self) -> None:
        """Stop the threads; batches decoded ahead are discarded."""
        self._forget()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _forget(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _load(self, begin: int) -> Batch:
        """Return the batch of the places from `begin` on; frames of one file are read together."""
        episodes, frames = self._order.at(begin, self._size)
        samples: dict[int, Sample] = {}
        for k in np.lexsort((frames, episodes)):
            samples[int(k)] = self._samples.read(int(episodes[k]), int(frames[k]), begin + int(k))
        return self._stack([samples[k] for k in range(self._size)], begin)

    def _stack(self, samples: list[Sample], begin: int) -> Batch:
        shapes = {sample.image.shape: sample for sample in samples}
        if len(shapes) > 1:
            listed = ", ".join(f"{shape} in episode {one.episode}" for shape, one in shapes.items())
            raise DataError(
                f"{self._name}: images differ in size: {listed}; pass a transform that makes"
                " them equal"
            )
        return Batch(
            np.stack([sample.image for sample in samples]),
            np.stack([sample.state for sample in samples]),
            np.stack([sample.actions for sample in samples]),
            [sample.instruction for sample in samples],
            np.array([sample.episode for sample in samples]),
            np.array([sample.frame for sample in samples]),
            np.arange(begin, begin + len(samples)),
        )


def _step_back() -> None:
    """Lower a decoding thread's priority below that of the computing threads, see POLITE."""
    if sys.platform == "linux":  # on other systems niceness belongs to the whole process
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + POLITE)
