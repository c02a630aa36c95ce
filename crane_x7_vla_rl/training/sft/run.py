"""Everything that a fine-tuning run needs, opened in order: output, data, model, state, trackers.

A configuration and maybe a checkpoint to go on from come in; a `Run` leaves, and how far it is. All
processes open it; the first one writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from crane_x7_vla_rl.data.loader.batches import Batches, LoaderOptions
from crane_x7_vla_rl.data.source import EpisodeSource, open_source
from crane_x7_vla_rl.data.statistics import compute_statistics
from crane_x7_vla_rl.log_text import MANY_LINES
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.policies.openvla.codec import POLICY, Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.image import WHOLE
from crane_x7_vla_rl.policies.openvla.weights.files import read_json
from crane_x7_vla_rl.policies.openvla.weights.layout import STATISTICS, TOKENIZER
from crane_x7_vla_rl.training import learner
from crane_x7_vla_rl.training.checkpoints import lineage, training_state
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.policy_files import Base, PolicyAssets
from crane_x7_vla_rl.training.checkpoints.publish import Artifacts, Hub, Uploads, UploadTarget
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.config import loader as config_tree
from crane_x7_vla_rl.training.config.sections import PublishConfig
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.learner import Learner
from crane_x7_vla_rl.training.sft.config import AugmentationConfig, SftConfig
from crane_x7_vla_rl.training.sft.samples import image_transform
from crane_x7_vla_rl.training.tracking import (
    Formatters,
    StepRange,
    Tracker,
    below,
    line,
    open_tracker,
)

logger = logging.getLogger(__name__)

UNVARIED: Final = AugmentationConfig(crop=False, colour=0.0)
Clock = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Run:
    """All that does not change from update to update."""

    config: SftConfig
    source: EpisodeSource
    batches: Batches
    learner: Learner
    codec: Codec
    around: PolicyAssets
    base: Base
    tracker: Tracker
    uploads: Uploads
    every_save: tuple[UploadTarget, ...]
    """Where each checkpoint is uploaded to."""
    at_end: tuple[UploadTarget, ...]
    """Where the last one is uploaded to."""
    clock: Clock
    made_from: str | None
    """What it starts from is called at W&B."""

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.config.output_dir

    @property
    def accelerator(self) -> Accelerator:
        """This process among those of the run."""
        return self.learner.accelerator

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def samples_per_update(self) -> int:
        """Of all processes together."""
        training = self.config.training
        each = training.batch_size * training.grad_accumulation_steps
        return each * int(self.accelerator.num_processes)


@contextmanager
def open_run(
    config: SftConfig, resumption: Resumption | None, clock: Clock
) -> Iterator[tuple[Run, Progress]]:
    """Yield the run and how far it is; close its data and trackers afterwards.

    Raises OutputError, DataError, ConfigError, ResumeError and PolicyLoadError.
    """
    accelerator = learner.start_processes(config)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    resumed = resumption.folder if resumption else None
    _announce(config, resumption)
    if accelerator.is_main_process:
        same = resumed is not None and resumed.parent == config.output_dir.resolve()
        checkpoint.claim(config.output_dir, resuming=same)
        (config.output_dir / checkpoint.CONFIG).write_text(config_tree.to_yaml(config))
    source = open_source(config.data.root, instruction=config.data.instruction)
    taught = learner.build(config, accelerator, resumed)
    inputs = _inputs(config, taught, source, resumed)
    statistics = _statistics(taught, source, resumed)
    taught.model.norm_stats |= statistics
    layout = taught.loaded.layout
    codec = Codec.of(layout, taught.model.norm_stats, DEFAULT_UNNORM_KEY, inputs)
    tokenizer = layout.first(TOKENIZER)
    assert tokenizer is not None  # the codec has read it
    around = PolicyAssets(statistics, tokenizer, config.augmentation.crop, inputs)
    base = Base.of(config.policy.model, layout)
    if config.publish.push_to_hub != "no" and config.lora.enabled and not base.name:
        logger.warning(
            "what is published will be an adapter whose base is the folder %s: it loads for nobody"
            " else; publish the base, too, and give its Hub id, or publish what"
            " `crane-x7-vla-rl merge` writes",
            base.folder,
        )
    with _batches(config, taught, source, inputs) as batches:
        progress = Progress(processes=accelerator.num_processes)
        if resumed is not None:
            progress = _restore(taught, batches, resumed)
        tracker = _tracker(config, taught, batches.frames_per_epoch, len(source), progress)
        with tracker:
            first = accelerator.is_main_process
            every_save, at_end = upload_targets(config, tracker) if first else ((), ())
            uploads = Uploads(at_end)
            yield Run(
                config, source, batches, taught, codec, around, base, tracker, uploads, every_save,
                at_end, clock, lineage.made_from(config.policy.model, resumed),
            ), progress  # fmt: skip


def _announce(config: SftConfig, resumption: Resumption | None) -> None:
    text = config_tree.to_yaml(config).rstrip()
    logger.info("configuration:\n%s", text, extra=MANY_LINES)
    if resumption is not None:
        logger.info("going on from %s", resumption.folder)
        for change in resumption.changes:
            logger.warning("changed since then: %s", change)


def _inputs(
    config: SftConfig, taught: Learner, source: EpisodeSource, resumed: Path | None
) -> PolicySpec:
    """Return what the policy reads and says: as resumed, else as configured, else as its base."""
    if resumed is not None:
        return PolicySpec.from_dict(read_json(resumed / POLICY), str(resumed / POLICY))
    base, wanted = PolicySpec.of(taught.loaded.layout), config.policy
    return replace(
        base,
        state_tokens=base.state_tokens if wanted.state_tokens is None else wanted.state_tokens,
        chunk_steps=base.chunk_steps if wanted.chunk_steps is None else wanted.chunk_steps,
        period_s=1 / source.fps,
    )


def _statistics(taught: Learner, source: EpisodeSource, resumed: Path | None) -> dict[str, Any]:
    """Return dataset_statistics.json's content; the first process computes it for all."""
    if resumed is not None:
        return read_json(resumed / STATISTICS)
    found = [compute_statistics(source).to_dict() if taught.accelerator.is_main_process else None]
    (statistics,) = broadcast_object_list(found)
    return dict(statistics)


def _batches(
    config: SftConfig, taught: Learner, source: EpisodeSource, inputs: PolicySpec
) -> Batches:
    data, accelerator = config.data, taught.accelerator
    size, seed = taught.model.config.image_size, config.training.seed
    squash = image_transform(size, inputs.view, UNVARIED, seed)
    options = LoaderOptions(
        chunk_steps=inputs.chunk_steps,
        workers=data.workers,
        cache_bytes=data.cache_mb << 20,
        corrupt=data.corrupt,
        prepare=lambda image: squash(image, 0),
        transform=image_transform(size, WHOLE, config.augmentation, seed),
    )
    return Batches(
        source, config.training.batch_size, seed,
        accelerator.process_index, accelerator.num_processes, options,
    )  # fmt: skip


def _restore(taught: Learner, batches: Batches, resumed: Path) -> Progress:
    """Set optimizer, random states and data position to those of the checkpoint."""
    progress = training_state.read_progress(resumed)
    optimizer, randoms = training_state.read_tensors(resumed)
    taught.restore_optimizer(optimizer)
    batches.load_state_dict(dict(progress.position or {}))
    processes, rank = taught.accelerator.num_processes, taught.accelerator.process_index
    if progress.processes == processes:
        training_state.set_random_state(randoms[rank])
    else:
        torch.manual_seed(torch.initial_seed() + progress.samples)
        logger.warning(
            "changed since then: processes: %d → %d; what is dropped at random is drawn anew",
            progress.processes, processes,
        )  # fmt: skip
    return replace(progress, processes=processes)


def steps(config: SftConfig, per_update: int, frames: int, progress: Progress) -> int:
    """Return after how many updates the run ends, as seen from where it is."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    left = config.training.num_epochs * frames - progress.samples
    return progress.step + max(math.ceil(left / per_update), 0)


def _tracker(
    config: SftConfig, taught: Learner, frames: int, episodes: int, progress: Progress
) -> Tracker:
    if not taught.accelerator.is_main_process:
        return Tracker()
    training = config.training
    per_update = (
        training.batch_size * training.grad_accumulation_steps * taught.accelerator.num_processes
    )
    total = steps(config, per_update, frames, progress)
    extent = StepRange(progress.step, total)
    words = Formatters(partial(line, frames_per_episode=frames / episodes), below)
    return open_tracker(config, config.output_dir, extent, words, progress.wandb_run)


class Published(Protocol):
    """What is configured about uploads."""

    @property
    def experiment_name(self) -> str:
        """Name of the run."""

    @property
    def publish(self) -> PublishConfig:
        """Where checkpoints go."""


def upload_targets(
    config: Published, tracker: Tracker
) -> tuple[tuple[UploadTarget, ...], tuple[UploadTarget, ...]]:
    """Return where every checkpoint goes, and where the last one goes."""
    wanted: list[tuple[UploadTarget, str]] = []
    if config.publish.push_to_hub != "no":
        if config.publish.hub_model_id is None:
            raise ConfigError("publish.hub_model_id is not set; --push-to-hub needs --hub-model-id")
        place = Hub(config.publish.hub_model_id)
        place.check()
        wanted.append((place, config.publish.push_to_hub))
    if config.publish.wandb_artifacts != "no":
        assert tracker.wandb_run is not None  # the configuration has been checked
        run = tracker.wandb_run
        artifact = Artifacts(run.run, f"{config.experiment_name}", run.offline)
        wanted.append((artifact, config.publish.wandb_artifacts))
    every = tuple(place for place, moment in wanted if moment == "every-save")
    return every, tuple(place for place, _ in wanted)
