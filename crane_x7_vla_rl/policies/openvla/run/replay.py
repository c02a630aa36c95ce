"""A function over fixed buffers → a call on the CPU, a captured and replayed graph on CUDA.

The function has no arguments and no result: it reads and writes tensors at fixed addresses, and may
run several times with the same effect, or a better one, as a step of an iteration has. Both devices
share it, so that tests on the CPU cover the content of a graph.

Unverified: the CUDA branch was written without a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Replay:
    """One function, with its graph after it has run on CUDA."""

    WARM_UPS = 2
    """Runs before a capture, in which libraries allocate their workspaces."""

    def __init__(self, run: Callable[[], None], device: torch.device, pool: Any) -> None:
        """`pool`: memory that graphs share, which must not run at the same time."""
        self._run, self._device, self._pool = run, device, pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the work, or enqueue it on the current stream of a CUDA device."""
        if self._device.type != "cuda":
            self._run()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        here = torch.cuda.current_stream(self._device)
        there = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        there.wait_stream(here)
        with torch.cuda.stream(there):
            for _ in range(self.WARM_UPS):
                self._run()
        here.wait_stream(there)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._run()
        return graph
