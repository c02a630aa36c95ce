"""Writes a model of the released size with random weights, for the parts that load one."""

from __future__ import annotations

import time

import torch
from sft_bench.figures import Figures
from sft_bench.world import SCALES, write_model

from gpu_check.parts import Options

SIZE = {False: "released", True: "smallest"}
"""Of sft_bench, by `tiny`."""


def write(figures: Figures, options: Options) -> None:
    """Write `options.model`; it has its name only when it is whole."""
    started_s = time.perf_counter()
    partial = options.scratch / "model.partial"
    write_model(partial, SCALES[SIZE[options.tiny]], torch.device(options.device))
    partial.rename(options.model)
    size = sum(path.stat().st_size for path in options.model.iterdir())
    figures.row("sampled and written", time.perf_counter() - started_s, "s")
    figures.row("size", size / 1e9, "GB")
