"""Shrink a small checkpoint to ship with the project: the same policy in fewer bytes.

Checkpoint folder, adapter or whole → a folder that the ordinary loader reads. Weights become
float16, whose 11 bits round less than bfloat16's 8. Rows of the vocabulary that no prompt can
reach, and head rows of tokens that are not actions, are never read: they become zeros, which a
package or a Git object stores in next to nothing. Of OpenVLA-OFT, whose actions come from
another head, the language model's head is left out (`tie_word_embeddings`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN, VOCABULARY
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.policies.openvla.weights import loading, oft_loading
from crane_x7_vla_rl.policies.openvla.weights.layout import (
    POLICY,
    PREPROCESSOR,
    STATISTICS,
    TOKENIZER,
)
from crane_x7_vla_rl.policies.openvla.weights.loading import EMBEDDINGS, HEAD
from crane_x7_vla_rl.training.checkpoints import policy_files
from crane_x7_vla_rl.training.errors import OutputError

MOST_BYTES: Final = 15_000_000
"""Largest size of all files together."""
LARGEST: Final = float(torch.finfo(torch.float16).max)


def write(checkpoint: str, folder: Path) -> PolicySpec:
    """Write the checkpoint's policy into the empty `folder`; return what it reads and predicts.

    Raises OutputError where it does not fit in MOST_BYTES or float16, and PolicyLoadError.
    """
    loaded = loading.load(checkpoint, dtype=torch.float32)
    tokenizer = loaded.layout.first(TOKENIZER)
    if tokenizer is None:
        raise OutputError(f"{checkpoint}: {TOKENIZER} is missing; a policy needs it")
    oft_loading.load_film(loaded)
    tensors, film = oft_loading.without_film(loaded.model.state_dict())
    config = dict(loaded.raw_config)
    actions = torch.arange(FIRST_ACTION_TOKEN, VOCABULARY)
    read = torch.cat([torch.tensor(PromptTokenizer(tokenizer).reachable()), actions])
    tensors[EMBEDDINGS] = only(tensors[EMBEDDINGS], read)
    if (heads := loaded.layout.heads()) is None:
        tensors[HEAD] = only(tensors[HEAD], actions)
    else:
        _write_heads(heads, folder, loaded.model.config.text.hidden_size, film)
        del tensors[HEAD]
        config["text_config"] = {**config.get("text_config", {}), "tie_word_embeddings": True}
    small = {name: halved(name, tensor) for name, tensor in tensors.items()}
    policy_files.write_weights(folder, small, config, loaded.model.norm_stats)
    policy_files.write_json(folder / STATISTICS, loaded.model.norm_stats)
    for name in (TOKENIZER, PREPROCESSOR, POLICY):
        if (source := loaded.layout.first(name)) is not None:
            shutil.copyfile(source, folder / name)
    check_size(folder)
    return PolicySpec.of(loaded.layout)


def _write_heads(heads: Path, folder: Path, hidden: int, film: dict[str, Tensor]) -> None:
    """Write the action head and the projector of the state, both read from `heads`, and FiLM."""
    action, proprio = oft_loading.read_heads(heads, hidden)
    parts = {oft_loading.ACTION_HEAD: action.state_dict(), oft_loading.FILM: film}
    if proprio is not None:
        parts[oft_loading.PROPRIO] = proprio.state_dict()
    for kind, tensors in parts.items():
        if tensors:
            small = {name: halved(name, value) for name, value in tensors.items()}
            policy_files.write_tensors(folder / oft_loading.file_name(kind, 0), small)


def only(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the matrix with zeros in all but these rows."""
    kept = torch.zeros_like(matrix)
    kept[rows] = matrix[rows]
    return kept


def halved(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in float16; raises OutputError for values that do not fit."""
    largest = float(tensor.abs().max())
    if not largest <= LARGEST:
        raise OutputError(f"{name} holds {largest:g}, beyond float16's {LARGEST:g}")
    return tensor.to(torch.float16)


def check_size(folder: Path) -> int:
    """Return how many bytes the folder's files have; raises OutputError above MOST_BYTES."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MOST_BYTES:
        raise OutputError(
            f"{folder} has {total:,} bytes, expected at most {MOST_BYTES:,}: ship a smaller model"
        )
    return total
