"""Names of older documents and other trainers → today's. An unknown key, flag or value → a hint.

docs/older-names.md shows the same names with their commands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "training.lr": ("training.learning_rate", "ppo.learning_rate"),
    "training.steps": ("training.max_steps", "training.num_updates"),
    "training.save_freq": ("output.save_steps", "output.save_every"),
    "training.warmup_steps": ("training.warmup_ratio",),
    "training.num_workers": ("data.workers", "env.processes"),
    "model.chunk_size": ("policy.chunk_steps",),
    "policy.path": ("policy.model", "start.pretrained"),
    "policy.pretrained_path": ("policy.model", "start.pretrained"),
    "dataset.repo_id": ("data.root",),
    "job.name": ("output.experiment_name",),
    "job.output_dir": ("output.dir",),
    "checkpoint.repo_id": ("publish.hub_model_id",),
    "wandb.enabled": ("logging.use_wandb",),
    "wandb.enable": ("logging.use_wandb",),
    "wandb.project": ("logging.wandb_project",),
    "wandb.entity": ("logging.wandb_entity",),
    "wandb.run_name": ("output.experiment_name",),
}
"""Key → current keys; a configuration has at most one of them."""
FLAGS: Final[Mapping[str, str]] = {
    "--lr": "--learning-rate (sft), --override ppo.learning_rate=… (train)",
    "--steps": "--max-steps (sft), --num-updates (train)",
    "--dataset.repo_id": "--data-root FOLDER|OWNER/NAME",
    "--policy.path": "--model FOLDER|OWNER/NAME",
    "--config_path": "--config FILE",
    "--output_dir": "--output-dir FOLDER",
    "--log_freq": "--log-steps N",
    "--save_freq": "--save-steps N (sft), --save-every N (train)",
    "--wandb.enable": "--use-wandb",
    "--train-config": "--config FILE",
    "--checkpoint-repo-id": "--hub-model-id OWNER/NAME with --push-to-hub",
    "--minibatch-size": "--override ppo.minibatch_size=N",
}
VALUES: Final[Mapping[tuple[str, str], str]] = {
    ("--backend", "openvla"): "train is reinforcement learning; for fine-tuning type:"
    " crane-x7-vla-rl sft --backend openvla …, the other flags as they are",
    ("--backend", "openpi"): "train is reinforcement learning; openpi comes later, for"
    " fine-tuning with OpenVLA type: crane-x7-vla-rl sft --backend openvla …",
}
"""(Flag, value) → what to type."""


def key_now(key: str, known: Collection[str]) -> str | None:
    """Return today's key for an older one, as far as `known` has it."""
    return next((name for name in KEYS.get(key, ()) if name in known), None)


def value_hint(flags: Collection[str], value: str) -> str:
    """Return what to type instead of an older value of a flag, or ""."""
    return next((f"; {VALUES[flag, value]}" for flag in flags if (flag, value) in VALUES), "")
