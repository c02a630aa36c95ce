"""The mean of several checkpoints of one model: folders → a folder with the mean of their weights.

Fine-tunings of one start lie in one basin, and the mean of their weights is often better than each
(https://arxiv.org/abs/2203.05482). Everything but the weights is that of the last one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.weights.loading import EMBEDDINGS, HEAD
from crane_x7_vla_rl.training.checkpoints import policy_files
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ConfigError, OutputError

WEIGHTS: Final = "model.safetensors"
HEADS: Final = "*_checkpoint.pt"


def average(folders: Sequence[Path], output: Path) -> Path:
    """Write the mean of two checkpoints or more; returns `output`.

    Raises ConfigError for checkpoints of different models, and OutputError.
    """
    if len(folders) < 2:
        raise ConfigError("a mean needs two checkpoints or more")
    if output.exists():
        raise OutputError(f"{output} exists; the mean is written to a new folder")
    files = [_files(folder) for folder in folders]
    first = files[0]
    for folder, found in zip(folders[1:], files[1:], strict=True):
        if found.keys() != first.keys():
            odd = ", ".join(sorted(found.keys() ^ first.keys()))
            raise ConfigError(f"{folders[0]} and {folder}: only one of them has {odd}")
    means = {
        kind: _mean([_read(found[kind]) for found in files], [found[kind] for found in files])
        for kind in first
    }

    def write(folder: Path) -> None:
        last = files[-1]
        for path in sorted(folders[-1].iterdir()):
            if path.is_file() and path not in last.values():
                shutil.copyfile(path, folder / path.name)
        for kind, tensors in means.items():
            if kind == WEIGHTS:
                safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
            else:
                policy_files.write_tensors(folder / last[kind].name, tensors)

    return checkpoint.write_whole(output, {"step": 0, "serial": 1}, write)


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of weights by what they hold, whatever the number of their update."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} holds no {WEIGHTS}: expected a complete checkpoint in one file"
        )
    heads = {path.name.partition("--")[0]: path for path in sorted(folder.glob(HEADS))}
    return {WEIGHTS: folder / WEIGHTS, **heads}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.name == WEIGHTS:
            stored: dict[str, Tensor] = safetensors.torch.load_file(path)
            if EMBEDDINGS in stored:  # a policy that ships leaves a tied head out
                stored.setdefault(HEAD, stored[EMBEDDINGS])
            return stored
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    except Exception as error:
        raise ConfigError(f"{path} is not a readable file of tensors: {error}") from error


def _mean(parts: Sequence[Mapping[str, Tensor]], paths: Sequence[Path]) -> dict[str, Tensor]:
    shapes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in parts]
    for path, found in zip(paths[1:], shapes[1:], strict=True):
        if found != shapes[0]:
            odd = min(name for name, _ in found.items() ^ shapes[0].items())
            raise ConfigError(f"{paths[0]} and {path} are of different models: {odd} differs")
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).contiguous()
        for name in parts[0]
    }
