"""Everything that reinforcement learning needs, opened in order: output, model, state, scenes.

Configuration and maybe a checkpoint to resume → an `RlRun`, and how far it is. All processes open
it, each with its own environments; the first one writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.policy import SMALL, load_chunks
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner, Noise
from crane_x7_vla_rl.policies.openvla.weights import layout as layouts
from crane_x7_vla_rl.policies.openvla.weights.files import read_json
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.sim.vector import make as vector
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.training import arm_statistics, learner
from crane_x7_vla_rl.training import session as sessions
from crane_x7_vla_rl.training.checkpoints import run_folder
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.merge import merge
from crane_x7_vla_rl.training.checkpoints.policy_files import PolicyAssets
from crane_x7_vla_rl.training.checkpoints.resume import Resumption
from crane_x7_vla_rl.training.checkpoints.run_folder import BASE
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.errors import ConfigError, ResumeError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import critics, demonstration_starts, figures
from crane_x7_vla_rl.training.rl import value_head as value
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.rl.rollout import RolloutConfig
from crane_x7_vla_rl.training.rl.start_scores import StartScores
from crane_x7_vla_rl.training.run_log import RunLog
from crane_x7_vla_rl.training.session import Clock, Session, Start, TrainerNames
from crane_x7_vla_rl.training.tracking import Formatters, StepRange, Tracker, open_tracker
from crane_x7_vla_rl.vector_config import VectorConfig

logger = logging.getLogger(__name__)

BEST: Final = "checkpoint_best"
FINAL: Final = "checkpoint_final"
NAMES: Final = TrainerNames("train", "--resume", "ppo.learning_rate", FINAL, (BEST, FINAL))


@dataclass(frozen=True, eq=False)
class RlRun:
    """All that does not change from update to update."""

    session: Session
    config: RlConfig
    rollout: RolloutConfig
    """It holds the agent and the environments of this process."""
    clock: Clock
    threads: int
    """Of an update on a CPU, where simulations wait meanwhile: as many as torch began with."""
    starts: Starts | None = None
    """Demonstrations that some episodes begin from."""

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.session.folder

    @property
    def agent(self) -> Agent:
        """What acts and learns."""
        return self.rollout.agent

    @property
    def env(self) -> VectorEnv:
        """The environments of this process."""
        return self.rollout.env


@contextmanager
def open_run(
    config: RlConfig, resumption: Resumption | None, clock: Clock, log: RunLog
) -> Iterator[tuple[RlRun, Progress]]:
    """Yield the run and how far it is; end its simulations and trackers afterwards.

    Raises OutputError, ConfigError, ResumeError, SimError and PolicyLoadError.
    """
    start = sessions.begin(config, resumption, NAMES, log)
    accelerator, resumed = start.accelerator, start.resumed
    threads = max(1, torch.get_num_threads() // int(accelerator.num_processes))
    weights = _whole(config, start)
    loaded = _load(config, weights, accelerator, resumed)
    policy = loaded.model
    policy.norm_stats = _statistics(config, policy, resumed)
    sampler = _sampler(config, loaded, resumed)
    inputs = None
    if sampler is not None:
        ppo = config.ppo
        inputs = replace(
            PolicySpec.of(loaded.layout),
            action_std=ppo.action_std_at(1), action_correlation=ppo.action_correlation,
        )  # fmt: skip
    codec = Codec.of(loaded.layout, policy.norm_stats, config.start.unnorm_key, inputs)
    _check_steps(config, codec.inputs)
    assets = PolicyAssets.of(
        loaded.layout, dict(policy.norm_stats), bool(policy.crop), codec.inputs
    )
    origin = sessions.origin(config.start.model, weights, loaded, assets, resumed)
    keeps_patches = _keeps_patches(config, policy)
    agent = _agent(config, loaded, accelerator, resumed, sampler)
    progress = sessions.restore(agent, resumed)
    rank = int(accelerator.process_index)
    control_hz = _control_hz(codec.inputs, weights)
    starts = demonstration_starts.read(config.env, control_hz)
    environments = _environments(config, control_hz, accelerator)
    env = vector.make(environments)

    def tracker() -> Tracker:
        steps = StepRange(progress.step, config.training.num_updates)
        formatters = Formatters(figures.line, figures.bar)
        return open_tracker(config, steps, formatters, progress.wandb_run, log)

    try:
        if starts is not None:
            _start_from(env, starts, progress)
        if progress.position is not None:
            _restore_scenes(env, progress, rank)
        training = config.training
        rollout = RolloutConfig(
            env, agent, codec, config.ppo, training.rollout_steps, training.seed, keeps_patches,
            batch=training.rollout_batch, same_scene=config.env.same_scene,
            execute_steps=training.execute_steps, delay=environments.delay,
        )  # fmt: skip
        longest = -(-environments.world.max_steps // rollout.executed)
        rollout = replace(rollout, longest=longest)
        _tell_discounts(rollout)
        with sessions.open_session(start, origin, tracker) as session:
            yield RlRun(session, config, rollout, clock, threads, starts), progress
    finally:
        env.close()


def _environments(config: RlConfig, control_hz: int, accelerator: Accelerator) -> VectorConfig:
    """Return this process's environments; the processes of a run share the machine's cores."""
    count, first = int(accelerator.num_processes), int(accelerator.process_index)
    first_env = first * config.env.num_parallel_envs
    found = config.env.vector(control_hz, config.training.seed, first_env)
    found = replace(found, true_state=config.sees_true_state)
    if found.processes or count == 1:
        return found
    return replace(found, processes=max(1, (os.cpu_count() or 1) // count))


def _whole(config: RlConfig, start: Start) -> str:
    """Return the model to start from, an adapter merged into its base first: once for the run."""
    source = config.start.model
    if not config.lora.enabled or layouts.find(source).adapter is None:
        return source
    target, accelerator = config.output_dir / BASE, start.accelerator
    # Those that an interrupted start left may have been made from another adapter.
    is_made = start.resumes_here and checkpoint.problem(target) is None
    if accelerator.is_main_process and not is_made:
        half = learner.is_halved(config.training, accelerator.device)
        logger.info("%s is an adapter; writing the merged weights to %s", source, target)
        with run_folder.locked(config.output_dir):
            merge(source, target, torch.bfloat16 if half else torch.float32)
    accelerator.wait_for_everyone()
    return str(target)


def _load(config: RlConfig, model: str, accelerator: Accelerator, resumed: Path | None) -> Loaded:
    spec = learner.ModelSpec(model, config.lora, config.training)
    tokens = layouts.find(model).heads() is None
    loaded = learner.prepare(spec, accelerator.device, resumed, tokens)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    if accelerator.device.type == "cpu" and size < SMALL:
        torch.set_num_threads(1)  # while it rolls out, the simulations have the other cores
    return loaded


def _statistics(config: RlConfig, policy: OpenVLA, resumed: Path | None) -> dict[str, Any]:
    """Return what scales the actions: as in the resumed checkpoint, else as configured."""
    known = dict(policy.norm_stats)
    if resumed is not None:
        return known | read_json(resumed / layouts.STATISTICS)
    start = config.start
    file = None if start.statistics is None else Path(start.statistics).expanduser()
    return arm_statistics.complete(start.model, known, start.unnorm_key, file)


def _sampler(config: RlConfig, loaded: Loaded, resumed: Path | None) -> GaussianRunner | None:
    """Return what samples OpenVLA-OFT's chunks, with the heads of the checkpoint; None for tokens.

    Raises ConfigError for what such a policy cannot do, and CheckpointError.
    """
    still = config.training.head_only
    if loaded.layout.heads() is None:
        if still:
            raise ConfigError(
                f"training.head_only is true, but {config.start.model} predicts tokens, without"
                " OpenVLA-OFT's head; leave it out, or start from a policy with that head"
            )
        return None
    wrong = {
        "ppo.value.critic": (config.ppo.value.critic == "own", "state or shared"),
        "ppo.kl_coefficient": (config.ppo.kl_coefficient > 0, "0"),
        "training.sharding": (config.training.sharding == "fsdp", "ddp"),
    }
    if odd := [name for name, (is_set, _) in wrong.items() if is_set]:
        raise ConfigError(
            f"{odd[0]} cannot be used with {config.start.model}, whose actions come from"
            f" OpenVLA-OFT's head; set it to {wrong[odd[0]][1]}"
        )
    key = config.start.unnorm_key
    layout = loaded.layout if resumed is None else layouts.find(str(resumed))
    chunks = load_chunks(replace(loaded, layout=layout), ModelOptions(unnorm_key=key))
    vision = loaded.model.vision_backbone
    learns = {name: parameter.requires_grad for name, parameter in vision.named_parameters()}
    if not any(on for name, on in learns.items() if agents.FILM not in name):
        vision.requires_grad_(False)  # FiLM, which comes with the heads, learns as its towers do
    if still:
        loaded.model.requires_grad_(False)
    for head in (chunks.head, chunks.proprio):
        if head is not None:
            head.float().requires_grad_(head is chunks.head or not still)
    chunks.train()
    noise = Noise(config.ppo.action_std, config.ppo.action_correlation)
    return GaussianRunner(chunks, key, noise)


def _check_steps(config: RlConfig, inputs: PolicySpec) -> None:
    steps = config.training.execute_steps
    if steps is not None and steps > inputs.chunk_steps:
        raise ConfigError(
            f"training.execute_steps is {steps}, but {config.start.model} predicts"
            f" {inputs.chunk_steps}; expected at most as many"
        )


def _agent(
    config: RlConfig, loaded: Loaded, accelerator: Accelerator, resumed: Path | None,
    sampler: GaussianRunner | None,
) -> Agent:  # fmt: skip
    """Return what acts and learns, with the critic of the checkpoint."""
    head = None
    if config.ppo.algorithm == "ppo":
        head = critics.make(config.ppo.value, loaded.model.config.text.hidden_size)
        if resumed is not None:
            value.read(resumed, head)
    sharding = config.training.sharding
    return agents.build(loaded.model, config.ppo, accelerator, sharding, head, sampler)


def _start_from(env: VectorEnv, starts: Starts, progress: Progress) -> None:
    """Let some episodes begin in the middle of demonstrations, as the checkpoint weighs them."""
    scores = StartScores((progress.position or {}).get("starts", ()))
    env.start_from(starts.weighted(scores.weights()))
    logger.info(
        "%.0f %% of the episodes begin in the middle of one of %d demonstrations",
        100 * starts.share, len(starts.demonstrations),
    )  # fmt: skip


def _tell_discounts(rollout: RolloutConfig) -> None:
    if rollout.ppo.horizon_s is None and rollout.ppo.credit_s is None:
        return
    logger.info("per decision: gamma %.5f, lambda %.5f", *rollout.discounts)


def _restore_scenes(env: VectorEnv, progress: Progress, rank: int) -> None:
    """Begin the episodes that the checkpoint names."""
    states = list((progress.position or {}).get("environments", []))
    if len(states) != progress.processes:
        raise ResumeError(
            f"the checkpoint contains the environments of {len(states)} processes, expected"
            f" {progress.processes}; resume with as many processes as before"
        )
    env.load_state_dict(states[rank])


def _control_hz(inputs: PolicySpec, source: str) -> int:
    rate = 1 / inputs.period_s
    if abs(rate - round(rate)) > 1e-6:
        raise ConfigError(
            f"{source}: its period_s of {inputs.period_s} makes {rate:.3f} steps/s, but the"
            " simulation accepts only whole rates"
        )
    return round(rate)


def _keeps_patches(config: RlConfig, model: OpenVLA) -> bool:
    """Whether rollouts keep patches; raises ConfigError where vision learns."""
    learning = [
        name
        for part in (model.vision_backbone, model.projector)
        for name, parameter in part.named_parameters()
        if parameter.requires_grad
    ]
    if config.training.keep_patches and learning:
        raise ConfigError(
            f"training.keep_patches is true, but {learning[0]} is trained; omit it, or set"
            " lora.targets to modules of the language model"
        )
    return config.training.keep_patches
