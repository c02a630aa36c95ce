"""Load a checkpoint. Folder or Hub id → an `OpenVLA` on its device, every tensor checked.

The model is first built without memory. Then one file after another is memory-mapped, and each
tensor is copied directly to the device, is cast there, and gets its adapter added; the file is
unmapped before the next. So the host holds at most one shard in addition to the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights import adapters, gpu_memory, layout
from crane_x7_vla_rl.policies.openvla.weights.adapters import Adapter
from crane_x7_vla_rl.policies.openvla.weights.files import Stored, read_json, stored_tensors

logger = logging.getLogger(__name__)

DERIVED: Final = ".rotary_emb.inv_freq"
"""Older checkpoints store these frequencies; the model computes them."""
EMBEDDINGS: Final = "language_model.model.embed_tokens.weight"
HEAD: Final = "language_model.lm_head.weight"
NAMED: Final = 5
"""Most keys that an error lists."""

AdapterUse = Literal["merge", "apply"]
"""Added to the weights, or kept separate as PEFT modules that can be trained further."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded checkpoint."""

    model: OpenVLA
    layout: layout.Layout
    raw_config: Mapping[str, Any]
    """Content of config.json, unchanged."""


def load(
    path_or_repo_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    adapter_use: AdapterUse = "merge",
    revision: str | None = None,
    token: str | None = None,
) -> Loaded:
    """Return the model with its statistics.

    `path_or_repo_id` is a folder or a Hub id, with an optional @ and revision. Raises
    CheckpointError or HubError for every problem with it, PolicyLoadError if it does not fit into
    the GPU's free memory, and NotFiniteError, which names the weights, if some are NaN or infinite.
    """
    started_s = time.monotonic()
    found = layout.find(path_or_repo_id, revision, token)
    if (other := layout.other_architecture(found)) is not None:
        raise other
    raw = read_json(found.base / layout.CONFIG)
    config = OpenVLAConfig.from_dict(raw, str(found.base / layout.CONFIG))
    with torch.device("meta"):
        model = OpenVLA(config, layout.norm_stats(found))
    model.crop = layout.center_crop(found)
    stored = dict(stored_tensors(found.base))
    if config.text.tie_word_embeddings and EMBEDDINGS in stored:
        stored.setdefault(HEAD, stored[EMBEDDINGS])
    _fill(model, stored, found.adapter, adapter_use, torch.device(device), dtype)
    if found.adapter is not None and adapter_use == "apply":
        _apply(model, found.adapter)
    model.eval()
    logger.info(
        "%s: %.2f G parameters on %s in %.1f s",
        found.folder,
        sum(parameter.numel() for parameter in model.parameters()) / 1e9,
        device,
        time.monotonic() - started_s,
    )
    return Loaded(model, found, raw)


def _fill(
    model: OpenVLA,
    stored: Mapping[str, Stored],
    adapter: Adapter | None,
    adapter_use: AdapterUse,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Set the values of every parameter of the empty `model`."""
    stored = {key: tensor for key, tensor in stored.items() if not key.endswith(DERIVED)}
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    _check(shapes, stored)
    gpu_memory.check(
        next(iter(stored.values())).file.parent, sum(map(math.prod, shapes.values())), dtype, device
    )
    pairs: dict[str, adapters.Pair] = {}
    if adapter is not None:
        _check_adapter(shapes, adapter)
        stored |= adapter.full
        if adapter_use == "merge":
            pairs = {f"{module}.weight": pair for module, pair in adapter.pairs.items()}
    by_file: dict[Path, list[tuple[str, Stored]]] = {}
    for name, tensor in stored.items():
        by_file.setdefault(tensor.file, []).append((name, tensor))
    for file, tensors in by_file.items():
        for name, weight in _read(file, tensors, device):
            whole = _merge(weight, pairs[name], device) if name in pairs else weight
            values = whole.to(dtype)
            if device.type == "cpu" and values is weight:
                values = values.clone()  # otherwise the model would change with the file
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(values))
    _check_numbers(model, stored, pairs, device)


def _check_numbers(
    model: OpenVLA,
    stored: Mapping[str, Stored],
    pairs: Mapping[str, adapters.Pair],
    device: torch.device,
) -> None:
    """Raise NotFiniteError for NaN or infinite weights; names those in the files, not the sums."""
    found: list[finite.NonFinite] = []
    file = Path()
    for one in finite.find_non_finite(model.named_parameters()):
        named, source = [one], stored[one.name].file
        if (pair := pairs.get(one.name)) is not None and (
            halves := finite.find_non_finite(_halves(pair, device))
        ):
            named, source = halves, pair.a.file
        file = file if found else source
        found += named
    if found:
        raise finite.not_finite(found, file)


def _check(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError unless the stored tensors are exactly the model's."""
    file = next(iter(stored.values())).file if stored else Path("the checkpoint")
    missing = [key for key in shapes if key not in stored]
    if missing:
        raise CheckpointError(
            f"{file.parent}: {len(missing)} tensors of the model in config.json are missing:"
            f" {_listed(missing)}"
        )
    extra = [key for key in stored if key not in shapes]
    if extra:
        raise CheckpointError(
            f"{stored[extra[0]].file}: {len(extra)} tensors do not belong to the model in"
            f" config.json: {_listed(extra)}"
        )
    for key, tensor in stored.items():
        if tensor.shape != shapes[key]:
            raise CheckpointError(
                f"{tensor.file}: {key} has shape {tensor.shape}, expected {shapes[key]} by its"
                " config.json"
            )


def _check_adapter(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> None:
    for module, pair in adapter.pairs.items():
        if f"{module}.weight" not in shapes:
            raise CheckpointError(
                f"{pair.a.file}: {pair.a.key} adapts {module}, which the base does not have: the"
                " adapter belongs to another base model"
            )
        pair.check(module, shapes[f"{module}.weight"])
    for name, tensor in adapter.full.items():
        if name not in shapes:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} replaces {name}, which the base does not have"
            )
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{tensor.file}: {tensor.key} has shape {tensor.shape}, expected {shapes[name]}:"
                " the adapter belongs to another base model"
            )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(sorted(keys)[:NAMED]) + more


def _read(
    file: Path, tensors: Iterable[tuple[str, Stored]], device: torch.device
) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors on `device`; on the CPU they are views of the mapped file."""
    try:
        with safe_open(file, framework="pt", device="cpu") as mapped:
            for name, stored in tensors:
                yield name, mapped.get_tensor(stored.key).to(device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {why(error)}") from error


def _merge(weight: Tensor, pair: adapters.Pair, device: torch.device) -> Tensor:
    (_, a), (_, b) = _halves(pair, device)
    return adapters.merged(weight, a, b, pair.scale)


def _halves(pair: adapters.Pair, device: torch.device) -> list[tuple[str, Tensor]]:
    """Return A and B by their keys in the adapter's file."""
    return [
        one for half in (pair.a, pair.b) for one in _read(half.file, [(half.key, half)], device)
    ]


def _apply(model: OpenVLA, adapter: Adapter) -> None:
    """Add the adapter's pairs to the model as PEFT's modules, trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=1,
        target_modules=list(adapter.pairs),
        rank_pattern={f"^{name}": pair.rank for name, pair in adapter.pairs.items()},
        alpha_pattern={f"^{name}": pair.scale * pair.rank for name, pair in adapter.pairs.items()},
        lora_dropout=0.0,
    )
    inject_adapter_in_model(config, model)
    for name, pair in adapter.pairs.items():
        wrapped: Any = model.get_submodule(name)
        for half, stored in (("lora_A", pair.a), ("lora_B", pair.b)):
            weight = getattr(wrapped, half)["default"].weight
            ((_, values),) = _read(stored.file, [(half, stored)], weight.device)
            with torch.no_grad():
                weight.copy_(values)
        assert abs(wrapped.scaling["default"] - pair.scale) <= 1e-6 * abs(pair.scale), name
        finite.check(_halves(pair, torch.device("cpu")), pair.a.file)
