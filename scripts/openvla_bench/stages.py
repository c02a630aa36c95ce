"""The stages of a rollout, timed and counted one by one. Runner, inputs → seconds and operations.

A rollout replays three steps: vision, prefill (with the first token's logits) and decode. On CUDA
each is a captured graph, and events around its replay take the device's own time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from openvla_bench.figures import Bench, Inputs
from openvla_bench.limits import synchronise

STAGES = ("vision", "prefill", "decode")
WARM_UPS = 3
"""Rollouts before the first that counts; the first one captures the graphs."""


@dataclass(frozen=True)
class Split:
    """Median seconds of one rollout."""

    stages: dict[str, float]
    rest: float
    """Of the call, the time in no stage: host and copies that nothing hides."""


@contextmanager
def around_each(wrap: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Hand each step that a rollout replays to `wrap`, which runs it."""
    call = Replay.__call__
    with patch.object(Replay, "__call__", lambda step: wrap(partial(call, step))):
        yield


def split(bench: Bench, batches: Sequence[Inputs], steps: int) -> Split:
    """Return the time of each stage, alone on the device; every rollout has another batch."""
    taken: list[list[float]] = []
    for number in range(WARM_UPS + bench.rounds):
        marks: list[Any] = []

        def marked(run: Callable[[], None], marks: list[Any] = marks) -> None:
            marks.append(_now(bench.device))
            run()
            marks.append(_now(bench.device))

        synchronise(bench.device)
        started_s = time.perf_counter()
        with around_each(marked):
            bench.runner.roll_out(*batches[number % len(batches)], steps)
        synchronise(bench.device)
        whole = time.perf_counter() - started_s
        if number >= WARM_UPS:
            spans = [_between(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
            taken.append([*spans, whole - sum(spans)])
    *stages, rest = map(statistics.median, zip(*taken, strict=True))
    return Split(dict(zip(STAGES, stages, strict=True)), rest)


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(first: Any, last: Any) -> float:
    """Return seconds; after the device has finished."""
    if isinstance(first, float):
        return float(last - first)
    return float(first.elapsed_time(last)) / 1e3


class CountLaunches(TorchDispatchMode):
    """Counts operations that compute, and their bytes; views launch nothing."""

    undeclared = torch.ops.aten._unsafe_view.default
    """A view that its schema does not mark as one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0
        """Read and written, if nothing stays in a cache."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        alias = returns[0].alias_info if returns else None
        view = alias is not None and not alias.is_write
        made = func(*args, **(kwargs or {}))
        if not (view or func is self.undeclared):
            self.count += 1
            self.bytes += _bytes((args, kwargs or {}, made))
        return made


def _bytes(found: Any) -> int:
    if isinstance(found, torch.Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, dict):
        return _bytes(list(found.values()))
    return sum(map(_bytes, found)) if isinstance(found, list | tuple) else 0


def counts(bench: Bench, batches: Sequence[Inputs], steps: int) -> dict[str, CountLaunches]:
    """Return what each stage launches in one rollout, on a CPU; a captured graph counts as none."""
    found: list[CountLaunches] = []

    def counted(run: Callable[[], None]) -> None:
        with CountLaunches() as mode:
            run()
        found.append(mode)

    bench.runner.roll_out(*batches[0], steps)
    with around_each(counted):
        bench.runner.roll_out(*batches[1], steps)
    return dict(zip(STAGES, found, strict=True))
