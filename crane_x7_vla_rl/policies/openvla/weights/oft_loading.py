"""Heads and FiLM of OpenVLA-OFT checkpoints. A loaded base → action head, projector, FiLM.

The folder of a merged OpenVLA also contains `action_head--<step>_checkpoint.pt` and, if training
used the robot's state, `proprio_projector--<step>_checkpoint.pt`; sizes follow from the weights.
OpenVLA-OFT+ adds `vision_backbone--<step>_checkpoint.pt`: FiLM, and in released checkpoints the
towers as trained, their LoRA matrices separate.
They are pickles: only tensors are read from them, never code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.file_errors import kind_in_words
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights import adapters
from crane_x7_vla_rl.policies.openvla.weights.layout import head_files
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded

ACTION_HEAD: Final = "action_head"
PROPRIO: Final = "proprio_projector"
FILM: Final = "vision_backbone"
UNSUPPORTED: Final = {"noisy_action_projector": "the diffusion head"}
"""Extra files that mean another architecture."""
_WRAPPED: Final = "module."
"""Prefix of every key if training was distributed."""
_BACKBONE: Final = "vision_backbone."
_MODULATED: Final = re.compile(r"(.*\.blocks\.\d+)\.((?:scale|shift)\..*)")
_WITHIN: Final = re.compile(r"(.*\.blocks\.\d+)\.block\.(.*)")
_OWN: Final = re.compile(r"(.*\.blocks\.\d+)\.film\.(.*)")
_HALF: Final = ".lora_{}.default.weight"
_MOST_ALPHA: Final = 16
"""LoRA's alpha was the rank, at most this: `finetune.py` of OpenVLA-OFT."""


def load_heads(loaded: Loaded) -> tuple[ActionHead, ProprioProjector | None]:
    """Return the heads of a loaded base; raises CheckpointError and NotFiniteError.

    The second is None if training did not use the robot's state.
    """
    folder = loaded.layout.heads()
    if folder is None:
        where = loaded.layout.folder
        raise CheckpointError(f"{where} holds no {ACTION_HEAD}--<step>_checkpoint.pt")
    return read_heads(folder, loaded.model.config.text.hidden_size)


def read_heads(folder: Path, hidden: int) -> tuple[ActionHead, ProprioProjector | None]:
    """Return the heads in `folder` for a model with this hidden size; raises as `load_heads`."""
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
    path = _file(folder, PROPRIO)
    if path is None:
        return head, None
    weights = _read(path)
    proprio = ProprioProjector(_get(weights, "fc1.weight", path).shape[1], hidden)
    _fill(proprio, weights, path)
    return head, proprio


def new_heads(hidden: int, action_dim: int, state_dim: int) -> tuple[ActionHead, ProprioProjector]:
    """Return untrained heads for a model with this hidden size."""
    return ActionHead(hidden, action_dim), ProprioProjector(state_dim, hidden)


def load_film(loaded: Loaded) -> None:
    """Give a loaded base the FiLM of its checkpoint, and the towers beside it, if there are any.

    Raises CheckpointError and NotFiniteError.
    """
    if (folder := loaded.layout.heads()) is not None:
        read_film(folder, loaded.model)


def read_film(folder: Path, model: OpenVLA) -> None:
    """Give the model the FiLM in `folder`, if there is one; raises as `load_film`."""
    path = _file(folder, FILM)
    if path is None:
        return
    backbone = model.vision_backbone
    weights = _merged(_read(path), path)
    weights = {_own_name(key.removeprefix(_BACKBONE)): value for key, value in weights.items()}
    backbone.add_film(model.config.text.hidden_size)
    names = set(backbone.state_dict())
    wanted = {name for name in names if _OWN.fullmatch(name)}
    # Released files also modulate each tower's last block, which nothing computes.
    weights = {k: v for k, v in weights.items() if k in names or not _OWN.fullmatch(k)}
    if not set(weights) - wanted:
        _fill(backbone, weights, path, wanted)
    elif any(".lora_" in name for name in names):
        raise CheckpointError(
            f"{path} also holds the towers as trained, which an adapter cannot be added to: make"
            " one model with `merge` first, and adapt that"
        )
    else:
        _fill(backbone, weights, path)


def without_film(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a model's tensors in two: those of the base, and its FiLM under released names."""
    base, film = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(_BACKBONE) and (found := _OWN.fullmatch(name)) is not None:
            film[f"{found[1]}.{found[2]}"] = tensor
        else:
            base[name] = tensor
    return base, film


def _own_name(key: str) -> str:
    """Return this project's name for a released parameter of the towers."""
    if (found := _MODULATED.fullmatch(key)) is not None:
        return f"{found[1]}.film.{found[2]}"
    return _WITHIN.sub(r"\1.\2", key)


def _merged(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights with LoRA matrices added to the linear layers that they adapt."""
    first, second = (_HALF.format(half) for half in "AB")
    merged = {}
    for key, value in weights.items():
        name = key.replace(".base_layer.", ".")
        module = name.removesuffix(".weight")
        if key.endswith((first, second)):
            continue
        if name != key and name.endswith(".weight"):
            a, b = _get(weights, module + first, path), _get(weights, module + second, path)
            scale = min(len(a), _MOST_ALPHA) / len(a)
            value = adapters.merged(value, a, b, scale)
        merged[name] = value
    return merged


def file_name(kind: str, step: int) -> str:
    """Return the name under which a head is stored after `step` updates."""
    return f"{kind}--{step}_checkpoint.pt"


def _file(folder: Path, kind: str) -> Path | None:
    found = sorted(folder.glob(f"{kind}--*_checkpoint.pt"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder} holds {names}, expected one {kind}; remove the others")
    return found[0] if found else None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise almost anything
        raise CheckpointError(f"{path} is not a readable file of tensors: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds {kind_in_words(found)}, expected tensors by name")
    return {str(key).removeprefix(_WRAPPED): value for key, value in found.items()}


def _get(weights: dict[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in weights:
        raise CheckpointError(f"{path}: {key} is missing; found {', '.join(sorted(weights))}")
    return weights[key]


def _fill(
    module: nn.Module, weights: dict[str, Tensor], path: Path, wanted: Set[str] | None = None
) -> None:
    """Set the parameters of a module, or those `wanted` of them: exactly these must be there."""
    own = module.state_dict()
    if wanted is not None:
        own = {name: value for name, value in own.items() if name in wanted}
    if extra := sorted(set(weights) - set(own)):
        raise CheckpointError(f"{path}: {', '.join(extra)} are unknown, expected {', '.join(own)}")
    for key, value in own.items():
        shape = tuple(_get(weights, key, path).shape)
        if shape != tuple(value.shape):
            raise CheckpointError(f"{path}: {key} has shape {shape}, expected {tuple(value.shape)}")
    module.load_state_dict(weights, strict=wanted is None)
    finite.check(module.named_parameters(), path)
