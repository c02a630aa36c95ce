"""Which files of a checkpoint to load. Folder or Hub id → a `Layout`: base and maybe an adapter.

A folder that contains weights is a whole model, even if it also contains an adapter: trainers that
merge at every save leave the adapter next to the result. Otherwise the adapter is searched in the
folder itself, in `lora_adapters/` (statistics in the folder above it) and in `lora_adapter/`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.actions import StatisticsError, find_statistics
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.policies import hub
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.weights import adapters
from crane_x7_vla_rl.policies.openvla.weights.adapters import Adapter
from crane_x7_vla_rl.policies.openvla.weights.files import INDEX, SINGLE, has_weights, read_json

logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
STATISTICS: Final = "dataset_statistics.json"
TOKENIZER: Final = "tokenizer.json"
POLICY: Final = "policy.json"
PREPROCESSOR: Final = "preprocessor_config.json"
CENTER_CROP: Final = "center_crop"
"""This project's key in it: training used random crops, so the policy must crop the centre."""
ADAPTER_FOLDERS: Final = ("lora_adapters", "lora_adapter")
LLAMA: Final = "llama"
"""`text_config.model_type` of the language models that load."""
HEADS: Final = "*--*_checkpoint.pt"
"""Files that OpenVLA-OFT adds to a model, see `oft_loading`."""


@dataclass(frozen=True)
class Layout:
    """Folders of the parts of one checkpoint."""

    folder: Path
    """The folder that the user named, or the Hub's copy."""
    base: Path
    """The folder with config.json and all weights."""
    adapter: Adapter | None

    def first(self, name: str) -> Path | None:
        """Return the nearest file of this name: the adapter's, its run's, the base's."""
        return next((path for path in reversed(self.all(name))), None)

    def all(self, name: str) -> list[Path]:
        """Return the files of this name; later ones override earlier ones."""
        paths = [folder / name for folder in self._folders()]
        return [path for path in paths if path.is_file()]

    def heads(self) -> Path | None:
        """Return the folder with OpenVLA-OFT's heads; None if actions are tokens.

        If there are any, tokens were not trained, unless a policy.json nearer than the heads shows
        that a trainer of this project has done so since.
        """
        for folder in reversed(self._folders()):
            if head_files(folder):
                return folder
            if (folder / POLICY).is_file():
                return None
        return None

    def _folders(self) -> list[Path]:
        """Return the folders to search: the base, the adapter's run, the adapter."""
        if self.adapter is None:
            return [self.base]
        own = self.adapter.folder
        run = [own.parent] if own.name in ADAPTER_FOLDERS else []
        return [self.base, *run, own]


def head_files(folder: Path) -> list[Path]:
    """Return the files of OpenVLA-OFT's heads, sorted, without the side files of macOS."""
    return sorted(path for path in folder.glob(HEADS) if not path.name.startswith("."))


def find(
    path_or_repo_id: str | Path, revision: str | None = None, token: str | None = None
) -> Layout:
    """Return the layout of a checkpoint, of an adapter with its base; raises CheckpointError."""
    folder = hub.resolve(path_or_repo_id, revision, token)
    beside = [folder / name for name in ADAPTER_FOLDERS if (folder / name).is_dir()]
    if has_weights(folder):
        _say_what_is_left_alone(folder, beside)
        return Layout(folder, folder, None)
    for candidate in (folder, *beside):
        if (candidate / adapters.CONFIG).is_file():
            adapter = adapters.read(candidate)
            base = _base_of(adapter, token)
            logger.info("%s adapts %s", candidate, base)
            found = Layout(folder, base, adapter)
            _say_which_heads_are_unused(found)
            return found
    if (folder / CONFIG).is_file():
        return Layout(folder, folder, None)  # reading the weights reports what is missing
    raise _no_checkpoint(folder, {path.name for path in folder.iterdir()})


def _no_checkpoint(folder: Path, names: Collection[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds no checkpoint: expected {CONFIG} with model.safetensors, or"
        f" {adapters.CONFIG} here, in {' or in '.join(ADAPTER_FOLDERS)}; found"
        f" {', '.join(sorted(names)[:10]) or 'nothing'}"
    )


def peek(
    path_or_repo_id: str | Path, revision: str | None = None, token: str | None = None
) -> Layout:
    """Return the layout as `find` does, from small files only: no weights are fetched or read.

    An adapter holds no tensors. Raises CheckpointError and HubError.
    """
    seen = hub.peek(path_or_repo_id, revision, token)
    if {SINGLE, INDEX} & seen.names:
        return Layout(seen.folder, seen.folder, None)
    for candidate in (seen.folder, *(seen.folder / name for name in ADAPTER_FOLDERS)):
        if (candidate / adapters.CONFIG).is_file():
            adapter = adapters.peek(candidate)
            base = _base_of(adapter, token, weights=False)
            return Layout(seen.folder, base, adapter)
    if (seen.folder / CONFIG).is_file():
        return Layout(seen.folder, seen.folder, None)
    raise _no_checkpoint(seen.folder, seen.names)


def _say_what_is_left_alone(folder: Path, beside: list[Path]) -> None:
    if (folder / adapters.CONFIG).is_file():
        logger.warning(
            "%s holds a whole model and an adapter (%s); the model is used. If the adapter is"
            " not merged into it, move the adapter's files to a separate folder and use that",
            folder, adapters.CONFIG,
        )  # fmt: skip
    elif beside:
        logger.info("%s holds a whole model; %s is ignored", folder, beside[0].name)


def _say_which_heads_are_unused(layout: Layout) -> None:
    if layout.heads() is None and head_files(layout.base):
        logger.warning(
            "the heads of OpenVLA-OFT in %s are not used: according to %s, action tokens were"
            " trained later; if not, move it to the folder of the heads",
            layout.base, layout.first(POLICY),
        )  # fmt: skip


def _base_of(adapter: Adapter, token: str | None, weights: bool = True) -> Path:
    """Return the folder of an adapter's base; without `weights`, maybe with small files only."""
    source = adapter.folder / adapters.CONFIG
    if not adapter.base:
        raise CheckpointError(
            f"{source}: base_model_name_or_path is missing; set it to the base model"
        )
    here = adapter.folder / adapter.base
    try:
        if here.is_dir():
            base = here
        elif not weights:
            return hub.peek(adapter.base, adapter.base_revision, token).folder
        else:
            base = hub.resolve(adapter.base, adapter.base_revision, token)
    except hub.HubError as error:
        raise CheckpointError(
            f"{source}: the base of this adapter cannot be loaded; if it is elsewhere, set"
            f" base_model_name_or_path to its folder or Hub id: {error}"
        ) from error
    if not has_weights(base):
        raise CheckpointError(f"{source}: its base {base} is not a whole model")
    return base


def no_tokenizer(layout: Layout) -> CheckpointError:
    """Return the error for a checkpoint without tokenizer.json."""
    return CheckpointError(
        f"{layout.base / TOKENIZER} is missing; save the model's tokenizer with save_pretrained"
        " into this folder"
    )


def other_architecture(layout: Layout) -> CheckpointError | None:
    """Return the error for a checkpoint of another family; None for one that may load.

    Prismatic's trainer writes its configuration under `vla` [prismatic/models/load.py of
    openvla/openvla]; MiniVLA is published so, and its language model is Qwen 2.5.
    """
    path = layout.base / CONFIG
    if not path.is_file():
        return None  # loading reports what is missing
    raw = read_json(path)
    trained, text = raw.get("vla"), raw.get("text_config")
    if isinstance(trained, Mapping):
        found = f"is in the format of Prismatic's trainer ({quoted(trained.get('base_vlm'))})"
    elif isinstance(text, Mapping) and text.get("model_type", LLAMA) != LLAMA:
        found = f"text_config.model_type is {quoted(text['model_type'])}"
    else:
        return None
    return CheckpointError(
        f"{path}: {found}; expected OpenVLA's architecture (DINOv2, SigLIP, Llama) in the format of"
        " Hugging Face, such as openvla/openvla-7b. MiniVLA (Qwen 2.5) does not load"
    )


def center_crop(layout: Layout) -> bool:
    """Return whether training used random crops, from the nearest preprocessor_config.json."""
    path = layout.first(PREPROCESSOR)
    wanted = False if path is None else read_json(path).get(CENTER_CROP, False)
    if not isinstance(wanted, bool):
        raise CheckpointError(f"{path}: {CENTER_CROP} is {quoted(wanted)}, expected true or false")
    return wanted


def norm_stats(layout: Layout) -> dict[str, Any]:
    """Return the statistics by data set: config.json's, updated by dataset_statistics.json.

    A malformed entry is only a warning, and an error when it is used: it may be another robot's.
    """
    found: dict[str, Any] = {}
    for path, statistics in _statistics_files(layout):
        for dataset in statistics:
            try:
                find_statistics(statistics, dataset, source=str(path))
            except StatisticsError as error:
                logger.warning("%s; the other statistics are usable", error)
        found |= statistics
    return found


def raw_statistics(layout: Layout) -> dict[str, Any]:
    """Return the statistics by data set unchecked, maybe malformed; raises CheckpointError."""
    return {key: entry for _, found in _statistics_files(layout) for key, entry in found.items()}


def statistics_file(layout: Layout, dataset: str) -> Path:
    """Return the file that the data set's statistics are read from."""
    files = [path for path, found in _statistics_files(layout) if dataset in found]
    return files[-1] if files else layout.folder


def _statistics_files(layout: Layout) -> list[tuple[Path, dict[str, Any]]]:
    """Return all statistics; later ones override earlier ones."""
    config = layout.base / CONFIG
    first = read_json(config).get("norm_stats") or {}
    if not isinstance(first, dict):
        kind = type(first).__name__
        raise CheckpointError(f"{config}: norm_stats is a {kind}, expected an object")
    return [(config, first), *((path, read_json(path)) for path in layout.all(STATISTICS))]
