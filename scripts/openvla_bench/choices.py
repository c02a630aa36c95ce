"""Cases that settle on a GPU how vision and prefill should run; nothing in the model follows them.

Bench → rows: each product of a decoder layer by rows and library, and the towers as `torch.compile`
makes them beside ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from openvla_bench.figures import TOKENS, Bench, in_turn, inputs
from openvla_bench.limits import best_seconds
from openvla_bench.stages import split

ROWS = (1, TOKENS, 288, 64 * TOKENS)
"""A decode step; prefills of one prompt, exact and with pads; one of 64 prompts."""


@torch.no_grad()
def products(bench: Bench) -> None:
    """Share of the limit that each product reaches.

    Each call reads another layer's weights, so that they are in no cache.
    """
    layers = bench.runner.engine().matrices
    for name in ("qkv", "out", "gate_up", "down"):
        every = [getattr(layer, name).weight for layer in layers]
        for rows in ROWS if bench.device.type == "cuda" else ROWS[:2]:
            x = every[0].new_ones(rows, every[0].shape[1])
            flop, size = 2 * rows * every[0].numel(), every[0].element_size()
            moved = size * (every[0].numel() + x.numel() + rows * len(every[0]))
            least = max(flop / bench.here.flop_s, moved / bench.here.bytes_s)
            for library in ("cublas", "cublaslt"):
                with _library(bench.device, library):
                    taken = best_seconds(lambda x=x, every=every: _all(x, every), bench.device)
                label = f"{name}, {rows} rows, {library}" if bench.device.type == "cuda" else name
                share = 100 * least * len(every) / taken
                bench.row(f"product {label}: share of the limit", share, "%", better="higher")
                if bench.device.type != "cuda":
                    break


def _all(x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        torch.nn.functional.linear(x, weight)


@contextmanager
def _library(device: torch.device, name: str) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(name)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


@torch.no_grad()
def compiled_vision(bench: Bench) -> None:
    """Ours in its graph against each tower through `torch.compile`, captured one after the other.

    Compiling takes minutes.
    """
    batches = inputs(bench, 1)
    model, held = bench.model, batches[0][0].clone()
    towers = (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer)
    first, second = (
        torch.compile(tower.forward, mode="max-autotune-no-cudagraphs") for tower in towers
    )

    def see() -> None:
        model.projector(torch.cat([first(held[:, :3]), second(held[:, 3:])], dim=2))

    graph = Replay(see, bench.device, None)
    (compiled,) = in_turn(bench, batches, lambda _: graph())
    ours = split(bench, batches, 1).stages["vision"]
    bench.row("vision, torch.compile, in a graph", compiled * 1e3, "ms")
    bench.row("vision, in its graph", ours * 1e3, "ms", compiled * 1e3)
