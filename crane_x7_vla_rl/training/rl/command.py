"""`train`: variables, files, flags and a checkpoint → one `RlConfig`, and its run.

A resumed run starts from the configuration that its checkpoint holds; files, flags and overrides
given now override it, and changes are listed. An incomplete checkpoint is replaced by the
newest complete one of its run.
"""

from __future__ import annotations

import argparse
from typing import Final

from crane_x7_vla_rl.training import dashboard, follow, settings, terminal
from crane_x7_vla_rl.training.checkpoints import resume
from crane_x7_vla_rl.training.checkpoints.resume import Resumption, Rules, configure
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.rl.config import RlConfig

RULES: Final = Rules(
    fixed=(
        "start.pretrained", "start.sft_checkpoint", "start.unnorm_key", "start.statistics",
        "lora.enabled", "lora.rank", "lora.alpha", "lora.targets", "training.head_only",
        "ppo.algorithm", "ppo.value.critic", "ppo.value.hidden", "ppo.value.layers",
        "env.num_parallel_envs",
    ),
    free=("output.", "logging.", "publish.", "training.device", "env.processes"),
    decided="another model or other environments",
)  # fmt: skip
"""Tensors and environments stay the same."""
COMMON: Final = (
    "config", "override", "resume", "follow", "dashboard", "start.pretrained",
    "start.sft_checkpoint", "start.statistics", "env.simulator", "env.env_id", "env.backend",
    "env.num_parallel_envs",
    "training.num_updates", "training.rollout_steps", "training.time_limit_minutes",
    "training.device", "training.seed", "ppo.learning_rate", "ppo.micro_batch_size",
    "lora.enabled", "lora.rank", "evaluation.every", "output.dir", "output.experiment_name",
    "output.save_every", "logging.use_wandb", "publish.push_to_hub", "publish.hub_model_id",
)  # fmt: skip
"""See command_line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    loader.add_arguments(parser, RlConfig)
    resume.add_argument(parser, "checkpoint_<update>")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the configuration and end; trains nothing"
    )
    follow.add_argument(parser)
    dashboard.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train; returns 0 also after SIGTERM, once everything is saved.

    Raises TrainingError and SimError.
    """
    if args.follow is not None:
        return follow.follow(args.follow)
    with terminal.outlived():
        config, resumption = read(args)
        if args.dry_run:
            print(loader.to_yaml(config), end="")
            return 0
        _check(config, resumption)
        from crane_x7_vla_rl.training.rl.loop import train

        with dashboard.shown(args.dashboard, config.output_dir):
            train(config, resumption)
    return 0


def _check(config: RlConfig, resumption: Resumption | None) -> None:
    """Raise all problems that are cheap to find, before anything is loaded."""
    from crane_x7_vla_rl.training import preflight
    from crane_x7_vla_rl.training.rl import demonstration_starts

    start, env = config.start, config.env
    checks = [preflight.run(config), demonstration_starts.problems(env)]
    if env.simulator == "maniskill":
        checks.append(preflight.packages(preflight.SIMULATION))
        if env.backend == "gpu":
            checks.append(preflight.gpu_backend())
        elif env.render == "gpu":
            checks.append(preflight.gpu_render())
    flag = "--sft-checkpoint" if start.sft_checkpoint else "--pretrained"
    checks.append(preflight.model(start.model, flag))
    if resumption is None:
        checks.append(preflight.statistics(start.model, start.unnorm_key, start.statistics))
    preflight.raise_all(*checks)


def read(args: argparse.Namespace) -> tuple[RlConfig, Resumption | None]:
    """Return the configuration and what to resume; raises ConfigError, ResumeError."""
    wanted = loader.layers(args, RlConfig)
    new = [*settings.layers(), *wanted]
    folder = resume.folder(args.resume, lambda: loader.build(RlConfig, new).output_dir)
    if folder is None:
        return loader.build(RlConfig, new), None
    run_folder = folder.parent
    place = {"output.dir": str(run_folder.parent), "output.experiment_name": run_folder.name}
    return configure(RlConfig, wanted, folder, place, RULES)
