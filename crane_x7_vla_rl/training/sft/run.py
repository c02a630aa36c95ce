"""Everything that a fine-tuning run needs, opened in order: output, data, model, state, trackers.

Configuration and maybe a checkpoint to resume → an `SftRun`, and how far it is. All processes open
it; the first one writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.loader.batches import Batches, LoaderOptions
from crane_x7_vla_rl.data.loader.selection import EVERY_FRAME
from crane_x7_vla_rl.data.source import EpisodeSource, join, open_source
from crane_x7_vla_rl.data.statistics import compute_statistics
from crane_x7_vla_rl.policies.about import DEMOS
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.image import WHOLE
from crane_x7_vla_rl.policies.openvla.weights.files import read_json
from crane_x7_vla_rl.policies.openvla.weights.layout import POLICY, STATISTICS
from crane_x7_vla_rl.training import arm_statistics
from crane_x7_vla_rl.training import session as sessions
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.policy_files import Base, PolicyAssets
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.run_log import RunLog
from crane_x7_vla_rl.training.session import Clock, Session, TrainerNames
from crane_x7_vla_rl.training.sft import loss
from crane_x7_vla_rl.training.sft.config import AugmentationConfig, SftConfig
from crane_x7_vla_rl.training.sft.loss import SftLearner
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

NAMES: Final = TrainerNames("sft", "--resume-from-checkpoint", "--learning-rate", checkpoint.FINAL)
UNVARIED: Final = AugmentationConfig(crop=False, colour=0.0)


@dataclass(frozen=True, eq=False)
class SftRun:
    """All that does not change from update to update."""

    session: Session
    config: SftConfig
    source: EpisodeSource
    batches: Batches
    learner: SftLearner
    codec: Codec
    clock: Clock

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.session.folder

    @property
    def accelerator(self) -> Accelerator:
        """This process among those of the run."""
        return self.session.accelerator

    @property
    def samples_per_update(self) -> int:
        """Of all processes together."""
        return _samples_per_update(self.config, self.accelerator)


@contextmanager
def open_run(
    config: SftConfig, resumption: Resumption | None, clock: Clock, log: RunLog
) -> Iterator[tuple[SftRun, Progress]]:
    """Yield the run and how far it is; close its data and trackers afterwards.

    Raises OutputError, DataError, ConfigError, ResumeError and PolicyLoadError.
    """
    start = sessions.begin(config, resumption, NAMES, log)
    accelerator, resumed = start.accelerator, start.resumed
    source = _source(config)
    learner = loss.build(config, accelerator, resumed)
    inputs = _inputs(config, learner, source, resumed)
    statistics = _statistics(config, learner, source, resumed)
    learner.model.norm_stats |= statistics
    loaded, model = learner.loaded, config.policy.model
    codec = Codec.of(loaded.layout, learner.model.norm_stats, DEFAULT_UNNORM_KEY, inputs)
    demonstrations = Path(config.data.root).expanduser().absolute() / DEMOS
    assets = PolicyAssets.of(
        loaded.layout, statistics, config.augmentation.crop, inputs,
        demonstrations if demonstrations.is_file() else None,
    )  # fmt: skip
    origin = sessions.origin(model, model, loaded, assets, resumed)
    _warn_of_private_base(config, origin.base)
    with _batches(config, learner, source, inputs) as batches:
        progress = sessions.restore(learner, resumed)
        if resumed is not None:
            batches.load_state_dict(dict(progress.position or {}))

        def tracker() -> Tracker:
            per_update = _samples_per_update(config, accelerator)
            end = steps(config, per_update, batches.frames_per_epoch, progress)
            episodes = batches.frames_per_epoch / len(source)
            formatters = Formatters(partial(line, frames_per_episode=episodes), below)
            begun = StepRange(progress.step, end)
            return open_tracker(config, begun, formatters, progress.wandb_run, log)

        with sessions.open_session(start, origin, tracker) as session:
            yield SftRun(session, config, source, batches, learner, codec, clock), progress


def _source(config: SftConfig) -> EpisodeSource:
    """Return the episodes of all data sets; raises DataError."""
    data = config.data
    sources = [
        open_source(each, instruction=data.instruction, reading=data.reading)
        for each in (data.root, *data.more)
    ]
    first = sources[0]
    for other in sources[1:]:
        if not math.isclose(other.fps, first.fps, rel_tol=1e-3):
            raise DataError(
                f"{other.name} has {other.fps:g} frames per second, but {first.name} {first.fps:g}:"
                " actions of one model are due at one rate"
            )
    return join(sources)


def _samples_per_update(config: SftConfig, accelerator: Accelerator) -> int:
    training = config.training
    each = training.batch_size * training.grad_accumulation_steps
    return each * int(accelerator.num_processes)


def _warn_of_private_base(config: SftConfig, base: Base) -> None:
    if config.publish.push_to_hub != "no" and config.lora.enabled and not base.name:
        logger.warning(
            "what is published will be an adapter whose base is the folder %s: others cannot"
            " load it; publish the base, too, and start from its Hub id, or publish what"
            " `crane-x7-vla-rl merge` writes",
            base.folder,
        )


def _inputs(
    config: SftConfig, learner: SftLearner, source: EpisodeSource, resumed: Path | None
) -> PolicySpec:
    """Return the policy's inputs and outputs: as resumed, else as configured, else as its base."""
    if resumed is not None:
        return PolicySpec.from_dict(read_json(resumed / POLICY), str(resumed / POLICY))
    base, wanted = PolicySpec.of(learner.loaded.layout), config.policy
    return replace(
        base,
        state_tokens=base.state_tokens if wanted.state_tokens is None else wanted.state_tokens,
        chunk_steps=base.chunk_steps if wanted.chunk_steps is None else wanted.chunk_steps,
        period_s=1 / source.fps,
    )


def _statistics(
    config: SftConfig, learner: SftLearner, source: EpisodeSource, resumed: Path | None
) -> dict[str, Any]:
    """Return dataset_statistics.json's content; the first process computes it for all."""
    if resumed is not None:
        return read_json(resumed / STATISTICS)
    if config.policy.statistics is not None:
        file = Path(config.policy.statistics).expanduser()
        return arm_statistics.complete(config.policy.model, {}, DEFAULT_UNNORM_KEY, file)
    found = [compute_statistics(source).to_dict() if learner.accelerator.is_main_process else None]
    (statistics,) = broadcast_object_list(found)
    return dict(statistics)


def _batches(
    config: SftConfig, learner: SftLearner, source: EpisodeSource, inputs: PolicySpec
) -> Batches:
    data, accelerator = config.data, learner.accelerator
    size, seed = learner.model.config.image_size, config.training.seed
    plain = image_transform(size, inputs.view, UNVARIED, seed)
    options = LoaderOptions(
        chunk_steps=inputs.chunk_steps,
        workers=data.workers,
        cache_bytes=data.cache_mb << 20,
        corrupt=data.corrupt,
        prepare=lambda image: plain(image, 0),
        transform=image_transform(size, WHOLE, config.augmentation, seed),
        choice=data.choice,
    )
    batches = Batches(
        source, config.training.batch_size, seed,
        accelerator.process_index, accelerator.num_processes, options,
    )  # fmt: skip
    if data.choice != EVERY_FRAME and accelerator.is_main_process:
        logger.info(
            "interventions: %s, weight %g; an epoch has %d samples of %d recorded frames",
            data.interventions, data.intervention_weight, batches.frames_per_epoch,
            source.lengths.sum(),
        )  # fmt: skip
    return batches


def steps(config: SftConfig, per_update: int, frames: int, progress: Progress) -> int:
    """Return the number of updates after which the run ends."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    left = config.training.num_epochs * frames - progress.samples
    return progress.step + max(math.ceil(left / per_update), 0)
