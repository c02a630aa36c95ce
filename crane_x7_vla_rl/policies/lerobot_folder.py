"""Where a LeRobot checkpoint lies. The folder that a user names → its `pretrained_model` folder.

LeRobot 0.6.1 writes `OUTPUT/checkpoints/005000/pretrained_model`, with config.json, the weights and
the two processors; `checkpoints/last` is a link that is set after the save. A user may name any of
these folders. Only standard JSON and file sizes are read: no weights, no LeRobot.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.policies.base import PolicyLoadError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
ADAPTER: Final = "adapter_model.safetensors"
"""Weights of a policy that was trained with LoRA."""
PROCESSORS: Final = ("policy_preprocessor.json", "policy_postprocessor.json")
PRETRAINED: Final = "pretrained_model"
CHECKPOINTS: Final = "checkpoints"
POLICY_IO: Final = "policy_io.yaml"
"""What the policy's inputs and outputs are on this arm; our trainer writes it."""


def is_lerobot(config: object) -> bool:
    """Whether the content of a config.json is LeRobot's: policies name `type` and features."""
    return (
        isinstance(config, Mapping)
        and isinstance(config.get("type"), str)
        and isinstance(config.get("input_features"), Mapping)
    )


def find(path: Path) -> Path | None:
    """Return the `pretrained_model` folder that `path` means; None if it holds no LeRobot policy.

    `path` is that folder, a checkpoint (`005000`), `checkpoints`, or a training's output folder;
    of several checkpoints the most advanced complete one counts. Raises PolicyLoadError if there
    are checkpoints and none is complete.
    """
    for folder in (path, path / PRETRAINED):
        if is_lerobot(read_config(folder)):
            return folder
    within = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    found = sorted(within.glob(f"*/{PRETRAINED}"), key=_step, reverse=True)
    found = [folder for folder in found if not folder.parent.is_symlink()]
    problems = []
    for folder in found:
        if not (wrong := missing(folder)):
            return folder
        problems.append(f"\n  - {folder}: {'; '.join(wrong)}")
    if problems:
        raise PolicyLoadError(
            f"{path}: no checkpoint is complete; train on, or name another one:{''.join(problems)}"
        )
    return None


def missing(folder: Path) -> list[str]:
    """Return what a `pretrained_model` folder lacks, one phrase each; empty if it is complete."""
    found = [f"{name} is missing" for name in PROCESSORS if not (folder / name).is_file()]
    if not is_lerobot(read_config(folder)):
        found.append(f"{CONFIG} is missing or not a LeRobot policy's")
    weights = [folder / name for name in (WEIGHTS, ADAPTER) if (folder / name).is_file()]
    if not weights:
        found.append(f"{WEIGHTS} is missing")
    return found + [problem for path in weights if (problem := weights_problem(path))]


def weights_problem(path: Path) -> str | None:
    """Return why a safetensors file cannot be whole, from its size and header; None if it may be.

    The format: 8 bytes with the header's length, little endian; the header, JSON that gives each
    tensor's `data_offsets`; the data.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                return f"{path.name} is truncated: {size} bytes, its header alone has {length}"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        expected = 8 + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"{path.name} is not a safetensors file ({size} bytes)"
    if not ends:
        return f"{path.name} holds no weights"
    if size != expected:
        return f"{path.name} has {size} bytes, expected {expected}: it is truncated or damaged"
    return None


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of config.json; None if it is missing, broken or not an object."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _step(folder: Path) -> int:
    """Return the training step that a checkpoint's folder is named after; -1 for other names."""
    name = folder.parent.name
    return int(name) if name.isdecimal() else -1
