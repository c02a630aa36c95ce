"""LoRA adapters on disk. An adapter's folder → its tensors, the weights they change, their scale.

`loading` either merges them into the weights while it reads those, or passes them to PEFT for
further training. Shapes: a linear weight is (out, in), its A (r, in), its B (out, r); a
convolution's A is (r, in, h, w), its B (out, r, 1, 1).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.weights.files import Stored, read_header, read_json

if TYPE_CHECKING:
    import torch

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
"""Prefix that PEFT adds to the names of the model's modules."""
PEFT_ALPHA: Final = 8
"""PEFT's default of lora_alpha."""
_PAIR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
_WRAPPED: Final = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.(weight|bias)$)")


@dataclass(frozen=True)
class Pair:
    """The low-rank change of one module's weight: scale · B @ A."""

    a: Stored
    b: Stored
    rank: int
    alpha: float
    scale: float

    def check(self, module: str, weight_shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the pair fits a weight of this shape."""
        out, *rest = weight_shape
        ones = (1,) * len(rest[1:])
        for half, expected in ((self.a, (self.rank, *rest)), (self.b, (out, self.rank, *ones))):
            if half.shape != expected:
                raise CheckpointError(
                    f"{half.file}: {half.key} has shape {half.shape}, expected {expected} for rank"
                    f" {self.rank} on {module} {weight_shape}: the adapter belongs to another"
                    " base model"
                )


@dataclass(frozen=True)
class Adapter:
    """The changes in an adapter's folder."""

    folder: Path
    base: str
    """Folder or Hub id of the model that it adapts."""
    base_revision: str | None
    pairs: Mapping[str, Pair]
    """Pairs by the name of the module."""
    full: Mapping[str, Stored]
    """Whole tensors that replace the model's, by the name of the parameter."""


def read(folder: Path) -> Adapter:
    """Return the changes of the adapter in `folder`; raises CheckpointError."""
    config, about = read_json(folder / CONFIG), peek(folder)
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder / WEIGHTS} is missing; adapter_model.bin is not supported:"
            " save the adapter again with safe_serialization=True"
        )
    halves: dict[str, dict[str, Stored]] = {}
    full: dict[str, Stored] = {}
    for key, stored in read_header(folder / WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        match = _PAIR.fullmatch(name)
        if match is not None:
            halves.setdefault(match["module"], {})[match["half"]] = stored
        elif "lora_" in name:
            raise CheckpointError(
                f"{stored.file}: {key} belongs to a kind of adapter that is not supported; expected"
                " plain LoRA on linear layers and convolutions (lora_A and lora_B)"
            )
        else:
            full[_WRAPPED.sub("", name)] = stored
    pairs = {
        module: _pair(module, both, config, folder / CONFIG) for module, both in halves.items()
    }
    if not pairs and not full:
        raise CheckpointError(f"{folder / WEIGHTS} holds no tensors, expected lora_A and lora_B")
    return replace(about, pairs=pairs, full=full)


def peek(folder: Path) -> Adapter:
    """Return the content of adapter_config.json: base, no tensors; raises CheckpointError."""
    config = read_json(folder / CONFIG)
    _check_kind(config, folder / CONFIG)
    base = config.get("base_model_name_or_path")
    return Adapter(folder, str(base or ""), config.get("revision"), {}, {})


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {quoted(kind)}, expected 'LORA'")
    for option in ("use_dora", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens"):
        if config.get(option):
            raise CheckpointError(
                f"{path}: {option} is {quoted(config[option])}; this is not supported"
            )
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{path}: r is {quoted(rank)}, expected a rank of 1 or more")


def _pair(module: str, halves: Mapping[str, Stored], config: Mapping[str, Any], path: Path) -> Pair:
    known = next(iter(halves.values()))
    for half in "AB":
        if half not in halves:
            raise CheckpointError(
                f"{known.file}: {module} has no lora_{half}, expected both halves"
            )
    rank = int(_figure("r", "rank_pattern", module, config, path))
    alpha = _figure("lora_alpha", "alpha_pattern", module, config, path)
    found = halves["A"].shape[0] if halves["A"].shape else 0
    if found != rank:
        raise CheckpointError(
            f"{known.file}: {halves['A'].key} has rank {found}, expected {rank} as in {path.name}"
        )
    if rank < 1:
        raise CheckpointError(f"{path}: rank of {module} is {rank}, expected 1 or more")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Pair(halves["A"], halves["B"], rank, alpha, scale)


def _figure(
    name: str, patterns_name: str, module: str, config: Mapping[str, Any], path: Path
) -> float:
    """Return the module's value: of the first pattern that matches the end of its name, as in PEFT.

    If none matches, the value for all modules. Raises CheckpointError if it is not a number.
    """
    value = config.get(name, PEFT_ALPHA)
    patterns = config.get(patterns_name) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {patterns_name} is {quoted(patterns)}, expected an object")
    for pattern, own in patterns.items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(f"{path}: {patterns_name} has {pattern!r}: {error}") from error
        if matches:
            name, value = f"{patterns_name}[{pattern!r}]", own
            break
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{path}: {name} is {json.dumps(value)}, expected a number")
    return float(value)


def merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """Return weight + scale · B @ A in float32, on the device of `weight`."""
    change = b.float().flatten(1) @ a.float().flatten(1)
    return weight.float().add(change.reshape(weight.shape), alpha=scale)
