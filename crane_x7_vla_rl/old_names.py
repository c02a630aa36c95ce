"""Names of older documents and other trainers → today's. Key, flag, value, variable → a hint.

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
    "policy.repo_id": ("publish.hub_model_id",),
    "policy.n_action_steps": ("policy.chunk_steps",),
    "policy.chunk_size": ("policy.chunk_steps",),
    "policy.gradient_checkpointing": ("training.gradient_checkpointing",),
    "policy.dtype": ("training.precision",),
    "accelerate.mixed_precision": ("training.precision",),
    "checkpoint.upload_every_save": ("publish.push_to_hub",),
    "env.type": ("env.simulator",),
    "env.task": ("env.env_id",),
    "offline.steps": ("training.max_steps", "training.num_updates"),
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
    "--policy.type": "--backend lerobot --policy-type TYPE (sft)",
    "--policy.n_action_steps": "--chunk-steps N (sft)",
    "--env.type": "--simulator maniskill (train)",
    "--env.task": "--env-id ID (train), --task ID (evaluate)",
    "--offline.steps": "--steps N (lerobot), --max-steps N (sft), --num-updates N (train)",
    "--run-id": "--experiment-name NAME",
}
VALUES: Final[Mapping[tuple[str, str], str]] = {
    ("--backend", "openvla"): "train is reinforcement learning; for fine-tuning type:"
    " crane-x7-vla-rl sft --backend openvla …, the other flags unchanged",
    ("--backend", "openpi"): "train is reinforcement learning; for π0 type:"
    " crane-x7-vla-rl sft --backend openpi …, the other flags unchanged",
    ("--resume", "true"): "to resume if the run's folder has a checkpoint, type: --resume auto",
}
"""(Flag, value) → what to type."""
VARIABLES: Final[Mapping[str, str]] = {
    "HUGGINGFACE_HUB_TOKEN": "HF_TOKEN",
    "EVAL_DEVICE": "evaluate --device cuda",
    "EVAL_EPISODES": "evaluate --data-root FOLDER --offline-episodes 0 1 2 3",
}
"""Variable that this project does not read → what to set or type. Names with another meaning in
other programs, such as PYTHON_VERSION of the usual images, are not listed."""


def key_now(key: str, known: Collection[str]) -> str | None:
    """Return the present key for an older one, if `known` has it."""
    return next((name for name in KEYS.get(key, ()) if name in known), None)


def variable_hints(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each older variable that is set, without its value."""
    return [
        f"the variable {name} is not read; it is now {now}"
        for name, now in VARIABLES.items()
        if environ.get(name)
    ]


def value_hint(flags: Collection[str], value: str) -> str:
    """Return what to type instead of an older value of a flag, or ""."""
    return next((f"; {VALUES[flag, value]}" for flag in flags if (flag, value) in VALUES), "")
