"""Whether a GPU has room for a model. Sizes and a device → nothing, or an error before loading.

Without it torch would fail in the middle of a shard, and its message names neither what the model
needs nor what other processes hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from crane_x7_vla_rl.policies.base import PolicyLoadError

WORKING: Final = 10
"""Running needs a tenth of the weights in addition: cache, activations, libraries. An estimate;
unverified on a device."""
HOLDS: Final = 500_000_000
"""Bytes above which other processes are named; a driver alone holds some."""


def check(folder: Path, parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise PolicyLoadError if `parameters` of `dtype` do not fit into the device's free memory."""
    if device.type != "cuda":
        return
    free, whole = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    weights = parameters * dtype.itemsize
    need, free = weights + weights // WORKING, free + cached
    if need > free:
        kind = str(dtype).removeprefix("torch.")
        others = whole - free - torch.cuda.memory_allocated(device)
        raise PolicyLoadError(
            f"{folder}: its weights in {kind} need {need / 1e9:.1f} GB of GPU memory with what"
            f" running takes; {_name(device)} has {free / 1e9:.1f} GB free of"
            f" {whole / 1e9:.1f} GB{_cure(need, whole, others)}"
        )


def _name(device: torch.device) -> str:
    return f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"


def _cure(need: int, whole: int, others: int) -> str:
    """Return what to do, for a GPU that is too small or one that others use."""
    if need > whole or others < HOLDS:
        return (
            f". Use a GPU with {need / 1e9:.0f} GB or more, or a smaller model; another GPU of this"
            " machine is chosen with VLA_DEVICE=cuda:1 (infer) or CUDA_VISIBLE_DEVICES=1 (train)"
        )
    return (
        f"; other processes hold {others / 1e9:.1f} GB. `nvidia-smi` lists them: end them, or"
        " choose another GPU with VLA_DEVICE=cuda:1 (infer) or CUDA_VISIBLE_DEVICES=1 (train)"
    )
