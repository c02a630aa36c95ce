"""Everything that reinforcement learning needs, opened in order: output, model, state, scenes.

A configuration and maybe a checkpoint to go on from come in; an `RlRun` leaves, and how far it is.
All processes open it, each with environments of its own; the first one writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from crane_x7_vla_rl.log_text import MANY_LINES
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.policy import SMALL
from crane_x7_vla_rl.policies.openvla.weights import layout as layouts
from crane_x7_vla_rl.policies.openvla.weights.layout import TOKENIZER
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.sim.vector import make as vector
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from crane_x7_vla_rl.training import learner
from crane_x7_vla_rl.training.checkpoints import lineage, training_state
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.merge import merge
from crane_x7_vla_rl.training.checkpoints.policy_files import Base, PolicyAssets
from crane_x7_vla_rl.training.checkpoints.publish import Uploads, UploadTarget
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.config import loader as config_tree
from crane_x7_vla_rl.training.errors import ConfigError, ResumeError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import figures as rl_tracking
from crane_x7_vla_rl.training.rl import value_head as value
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.rl.rollout import Clock, RolloutConfig
from crane_x7_vla_rl.training.sft.run import upload_targets
from crane_x7_vla_rl.training.tracking import Formatters, StepRange, Tracker, open_tracker

logger = logging.getLogger(__name__)

BASE: Final = "base"
"""Folder of whole weights in a run that starts from an adapter, which cannot be a base itself."""
NEVER: Final = -1.0
"""The best success so far of a run that has not been evaluated."""


@dataclass(frozen=True, eq=False)
class RlRun:
    """All that does not change from update to update."""

    config: RlConfig
    rollout: RolloutConfig
    loaded: Loaded
    around: PolicyAssets
    base: Base
    tracker: Tracker
    uploads: Uploads
    every_save: tuple[UploadTarget, ...]
    """Where each checkpoint is uploaded to."""
    at_end: tuple[UploadTarget, ...]
    """Where the last one is uploaded to."""
    clock: Clock
    threads: int
    """Of an update on a CPU, where simulations wait meanwhile: as many as torch began with."""
    made_from: str | None
    """What it starts from is called at W&B."""

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.config.output_dir

    @property
    def agent(self) -> Agent:
        """What learns."""
        return self.rollout.agent

    @property
    def env(self) -> VectorEnv:
        """The environments of this process."""
        return self.rollout.env

    @property
    def accelerator(self) -> Accelerator:
        """This process among those of the run."""
        return self.rollout.agent.accelerator

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)


@contextmanager
def open_run(
    config: RlConfig, resumption: Resumption | None, clock: Clock
) -> Iterator[tuple[RlRun, Progress]]:
    """Yield the run and how far it is; end its simulations and trackers afterwards.

    Raises OutputError, ConfigError, ResumeError, SimError and PolicyLoadError.
    """
    accelerator = learner.start_processes(config)
    threads = max(1, torch.get_num_threads() // int(accelerator.num_processes))
    first = bool(accelerator.is_main_process)
    if not first:
        logging.getLogger().setLevel(logging.WARNING)
    resumed = resumption.folder if resumption else None
    _announce(config, resumption)
    if first:
        same = resumed is not None and resumed.parent == config.output_dir.resolve()
        checkpoint.claim(config.output_dir, resuming=same, flag="--resume")
        (config.output_dir / checkpoint.CONFIG).write_text(config_tree.to_yaml(config))
    model = _whole(config, accelerator)
    loaded = _load(config, model, accelerator, resumed)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, config.start.unnorm_key)
    keeps_patches = _keeps_patches(config, loaded.model)
    agent, progress = _agent(config, loaded, accelerator, resumed)
    rank = int(accelerator.process_index)
    settings = config.env.vector(
        _control_hz(codec.inputs, model), config.training.seed,
        rank * config.env.num_parallel_envs,
    )  # fmt: skip
    env = vector.make(settings)
    try:
        if progress.position is not None:
            _restore_scenes(env, progress, rank)
        rollout = RolloutConfig(
            env,
            agent,
            codec,
            config.ppo,
            config.training.rollout_steps,
            config.training.seed,
            keeps_patches,
        )
        with _tracker(config, progress, first) as tracker:
            every, at_end = upload_targets(config, tracker) if first else ((), ())
            yield RlRun(
                config, rollout, loaded, _around(loaded, codec), Base.of(model, loaded.layout),
                tracker, Uploads(at_end), every, at_end, clock, threads,
                lineage.made_from(config.start.model, resumed),
            ), progress  # fmt: skip
    finally:
        env.close()


def _announce(config: RlConfig, resumption: Resumption | None) -> None:
    text = config_tree.to_yaml(config).rstrip()
    logger.info("configuration:\n%s", text, extra=MANY_LINES)
    if resumption is not None:
        logger.info("going on from %s", resumption.folder)
        for change in resumption.changes:
            logger.warning("changed since then: %s", change)


def _whole(config: RlConfig, accelerator: Accelerator) -> str:
    """Return the model to start from, an adapter merged into its base first: once for the run."""
    source = config.start.model
    if not config.lora.enabled or layouts.find(source).adapter is None:
        return source
    target = config.output_dir / BASE
    if accelerator.is_main_process and checkpoint.problem(target) is not None:
        half = config.training.precision == "bf16" or (
            config.training.precision == "auto" and accelerator.device.type == "cuda"
        )
        logger.info("%s is an adapter; writing whole weights to %s", source, target)
        merge(source, target, torch.bfloat16 if half else torch.float32)
    accelerator.wait_for_everyone()
    return str(target)


def _load(config: RlConfig, model: str, accelerator: Accelerator, resumed: Path | None) -> Loaded:
    training = config.training
    wanted = learner.ModelSpec(
        model, config.lora, training.precision, training.device,
        training.gradient_checkpointing, training.seed,
    )  # fmt: skip
    loaded = learner.prepare(wanted, accelerator.device, resumed)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    if accelerator.device.type == "cpu" and size < SMALL:
        torch.set_num_threads(1)  # while it rolls out, the simulations have the other cores
    return loaded


def _agent(
    config: RlConfig, loaded: Loaded, accelerator: Accelerator, resumed: Path | None
) -> tuple[Agent, Progress]:
    """Return what learns, with the value head, optimizer and counters of the checkpoint."""
    head = None
    if config.ppo.algorithm == "ppo":
        head = value.ValueHead(loaded.model.config.text.hidden_size, config.ppo.value)
        if resumed is not None:
            value.read(resumed, head)
    agent = agents.build(loaded.model, config.ppo, accelerator, config.training.sharding, head)
    processes = int(accelerator.num_processes)
    if resumed is None:
        return agent, Progress(processes=processes)
    progress = training_state.read_progress(resumed)
    optimizer, randoms = training_state.read_tensors(resumed)
    agent.restore_optimizer(optimizer)
    if progress.processes == processes:
        training_state.set_random_state(randoms[accelerator.process_index])
    return agent, replace(progress, processes=processes)


def _restore_scenes(env: VectorEnv, progress: Progress, rank: int) -> None:
    """Begin the episodes that the checkpoint names."""
    states = list((progress.position or {}).get("environments", []))
    if len(states) != progress.processes:
        raise ResumeError(
            f"the checkpoint holds the environments of {len(states)} processes, expected"
            f" {progress.processes}; go on with as many processes as before"
        )
    env.load_state_dict(states[rank])


def _control_hz(inputs: PolicySpec, source: str) -> int:
    rate = 1 / inputs.period_s
    if abs(rate - round(rate)) > 1e-6:
        raise ConfigError(
            f"{source}: its period_s of {inputs.period_s} makes {rate:.3f} steps/s, but the"
            " simulation takes whole rates only"
        )
    return round(rate)


def _around(loaded: Loaded, codec: Codec) -> PolicyAssets:
    tokenizer = loaded.layout.first(TOKENIZER)
    assert tokenizer is not None  # the codec has read it
    statistics: dict[str, Any] = dict(loaded.model.norm_stats)
    return PolicyAssets(statistics, tokenizer, bool(loaded.model.crop), codec.inputs)


def _tracker(config: RlConfig, progress: Progress, first: bool) -> Tracker:
    if not first:
        return Tracker()
    steps = StepRange(progress.step, config.training.num_updates)
    formatters = Formatters(rl_tracking.line, rl_tracking.bar)
    return open_tracker(config, config.output_dir, steps, formatters, progress.wandb_run)


def _keeps_patches(config: RlConfig, model: OpenVLA) -> bool:
    """Whether rollouts keep patches; raises ConfigError where vision learns, and sees anew."""
    learning = [
        name
        for part in (model.vision_backbone, model.projector)
        for name, parameter in part.named_parameters()
        if parameter.requires_grad
    ]
    if config.training.keep_patches and learning:
        raise ConfigError(
            f"training.keep_patches is true, but {learning[0]} learns; leave it out, or set"
            " lora.targets to modules of the language model"
        )
    return config.training.keep_patches
