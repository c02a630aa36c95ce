"""Heads of released OpenVLA-OFT checkpoints. A loaded base → its action head and projector.

The folder of a merged OpenVLA also contains `action_head--<step>_checkpoint.pt` and, if training
used the robot's state, `proprio_projector--<step>_checkpoint.pt`; sizes follow from the weights.
They are pickles: only tensors are read from them, never code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.file_errors import kind_in_words
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.weights.layout import head_files
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded

ACTION_HEAD: Final = "action_head"
UNSUPPORTED: Final = {
    "vision_backbone": "FiLM conditioning",
    "noisy_action_projector": "the diffusion head",
}
"""Extra files that mean another architecture."""
_WRAPPED: Final = "module."
"""Prefix of every key if training was distributed."""


def load_heads(loaded: Loaded) -> tuple[ActionHead, ProprioProjector | None]:
    """Return the heads of a loaded base; raises CheckpointError and NotFiniteError.

    The second is None if training did not use the robot's state.
    """
    folder, hidden = loaded.layout.heads(), loaded.model.config.text.hidden_size
    if folder is None:
        where = loaded.layout.folder
        raise CheckpointError(f"{where} holds no {ACTION_HEAD}--<step>_checkpoint.pt")
    for kind, what in UNSUPPORTED.items():
        if found := _file(folder, kind):
            raise CheckpointError(f"{found}: {what} is not implemented, expected only an L1 head")
    path = _file(folder, ACTION_HEAD)
    if path is None:
        names = ", ".join(each.name for each in head_files(folder))
        raise CheckpointError(
            f"{folder} holds no {ACTION_HEAD}--<step>_checkpoint.pt, but {names}: part of an"
            " OpenVLA-OFT checkpoint; fetch all of it"
        )
    weights = _read(path)
    head = ActionHead(hidden, len(_get(weights, "model.fc2.bias", path)))
    _fill(head, weights, path)
    path = _file(folder, "proprio_projector")
    if path is None:
        return head, None
    weights = _read(path)
    proprio = ProprioProjector(_get(weights, "fc1.weight", path).shape[1], hidden)
    _fill(proprio, weights, path)
    return head, proprio


def _file(folder: Path, kind: str) -> Path | None:
    found = sorted(folder.glob(f"{kind}--*_checkpoint.pt"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder} holds {names}, expected one {kind}; remove the others")
    return found[0] if found else None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is not a readable file of tensors: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds {kind_in_words(found)}, expected tensors by name")
    return {str(key).removeprefix(_WRAPPED): value for key, value in found.items()}


def _get(weights: dict[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in weights:
        raise CheckpointError(f"{path}: {key} is missing; found {', '.join(sorted(weights))}")
    return weights[key]


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    if extra := sorted(set(weights) - set(own)):
        raise CheckpointError(f"{path}: {', '.join(extra)} are unknown, expected {', '.join(own)}")
    for key, value in own.items():
        shape = tuple(_get(weights, key, path).shape)
        if shape != tuple(value.shape):
            raise CheckpointError(f"{path}: {key} has shape {shape}, expected {tuple(value.shape)}")
    module.load_state_dict(weights)
    finite.check(module.named_parameters(), path)
