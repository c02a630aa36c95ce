"""A function over fixed buffers → a call on the CPU, a captured and replayed graph on CUDA.

The function has no arguments and no result: it reads and writes tensors at fixed addresses, and may
run several times with the same effect, or a better one, as a step of an iteration has. Both devices
share it, so that tests on the CPU cover the content of a graph.

A step that cannot be captured is called instead; the log says so once. Verified on a device are
captures that succeed; failing ones, and a device other than the first, only with stand-ins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Replay:
    """One function, with its graph after it has run on CUDA."""

    WARM_UPS = 2
    """Runs before a capture, in which libraries allocate their workspaces."""

    def __init__(self, run: Callable[[], None], device: torch.device, pool: Any) -> None:
        """`pool`: memory that graphs share, which must not run at the same time."""
        self._run, self._device, self._pool = run, device, pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captures = device.type == "cuda"

    def __call__(self) -> None:
        """Do the work, or enqueue it on the current stream of a CUDA device."""
        if self._captures and self._graph is None:
            with torch.cuda.device(self._device):  # a capture is one of the current device
                self._graph = self._capture()
            self._captures = self._graph is not None
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """Return the graph, or None if the function cannot be captured."""
        here = torch.cuda.current_stream(self._device)
        there = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        there.wait_stream(here)
        with torch.cuda.stream(there):
            for _ in range(self.WARM_UPS):
                self._run()
        here.wait_stream(there)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=there):
                self._run()
        except RuntimeError as error:  # torch's class for errors of CUDA, memory included
            torch.cuda.set_stream(here)  # `graph` leaves its own stream behind if it fails
            _say_once(str(self._device), str(error).partition("\n")[0])
            return None
        return graph


@lru_cache(maxsize=64)
def _say_once(device: str, reason: str) -> None:
    logger.warning(
        "no CUDA graph on %s: %s; its kernels are launched one by one, which is slower",
        device, reason,
    )  # fmt: skip
