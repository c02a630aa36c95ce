"""Flags of `sft` → a training by LeRobot: `--backend openpi` (π0) and `--backend lerobot`.

Only values that a file, a flag or an override sets are passed; the rest stays as LeRobot, or the
preset of the policy, has it. A value that LeRobot has no place for is an error, not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot import options as lerobot
from crane_x7_vla_rl.training.lerobot import request as requests
from crane_x7_vla_rl.training.lerobot.request import Request
from crane_x7_vla_rl.training.sft.config import SftConfig

OPENPI: Final = "openpi"
PI0: Final = "pi0"
BATCH_SIZE: Final = 32
"""Of `--backend openpi`, as the trainer that it replaces had it."""
SAME: Final[Mapping[str, str]] = {
    "training.batch_size": "training.batch_size",
    "training.max_steps": "training.steps",
    "training.learning_rate": "training.learning_rate",
    "training.weight_decay": "policy.optimizer_weight_decay",
    "training.max_grad_norm": "policy.optimizer_grad_clip_norm",
    "training.gradient_checkpointing": "policy.gradient_checkpointing",
    "training.seed": "training.seed",
    "data.workers": "training.num_workers",
    "data.root": "dataset.repo_id",
    "policy.type": "policy.type",
    "output.save_steps": "training.save_freq",
    "logging.log_steps": "training.log_freq",
    "logging.use_wandb": "wandb.enable",
    "logging.wandb_project": "wandb.project",
    "logging.wandb_entity": "wandb.entity",
    "publish.hub_model_id": "checkpoint.repo_id",
    "lora.rank": "peft.r",
    "lora.alpha": "peft.lora_alpha",
}
"""Key of `sft` → key of train.remote.yaml."""
ELSEWHERE: Final = (
    "backend", "data.instruction", "data.unit", "data.cache_mb", "training.num_epochs",
    "training.warmup_ratio",
    "training.device", "training.precision", "training.sharding", "output.experiment_name",
    "output.root", "output.dir", "publish.push_to_hub", "publish.wandb_artifacts", "policy.model",
    "policy.chunk_steps", "data.image_size", "lora.enabled", "logging.tensorboard", "data.corrupt",
)  # fmt: skip
"""Keys that are handled one by one, or change nothing that is learned."""
IMAGE_SIZES: Final = {
    "pi0": "image_resolution", "pi05": "image_resolution", "smolvla": "resize_imgs_with_padding",
}  # fmt: skip
"""Type of policy → its option for the size of images."""


def request(config: SftConfig, given: Mapping[str, Any]) -> Request:
    """Return the request; `given` are the values by key that something sets. Raises ConfigError."""
    kind = _type(config)
    _refuse(config, given)
    values: dict[str, Any] = {"policy.type": kind}
    for key, target in SAME.items():
        if key in given:
            values[target] = _value(config, key)
    values["dataset.repo_id"] = config.data.root
    values["training.save_freq"] = config.output.save_steps
    values["training.log_freq"] = config.logging.log_steps
    if config.backend == OPENPI:
        values.setdefault("training.batch_size", BATCH_SIZE)
    values |= _run(config) | _device(config, kind) | _policy(config, kind, given)
    if "lora.enabled" not in given or not config.lora.enabled:
        for key in ("peft.r", "peft.lora_alpha"):
            values.pop(key, None)
    else:
        values |= {"peft.method_type": "LORA", "peft.r": config.lora.rank}
        values["peft.lora_alpha"] = config.lora.alpha
    values["wandb.project"] = config.wandb_project
    if not config.logging.use_wandb:
        values = {k: v for k, v in values.items() if not k.startswith("wandb.")}
    else:
        values["wandb.disable_artifact"] = config.publish.wandb_artifacts == "no"
    return requests.build([Layer(f"sft --backend {config.backend}", values)])


def _type(config: SftConfig) -> str:
    kind = config.policy.type
    if config.backend == OPENPI:
        if kind not in (None, PI0):
            raise ConfigError(
                f"--backend openpi trains {PI0}, and --policy-type is {kind}; use --backend lerobot"
            )
        return PI0
    if kind is None:
        raise ConfigError(
            "--backend lerobot needs --policy-type: one of " + ", ".join(lerobot.policy_types())
        )
    return kind


def _refuse(config: SftConfig, given: Mapping[str, Any]) -> None:
    flags = {leaf.key: leaf.flag for leaf in leaves(SftConfig)}
    default = {leaf.key: leaf.default for leaf in leaves(SftConfig)}
    wrong = [
        flags[key]
        for key in given
        if key in flags and key not in (*SAME, *ELSEWHERE) and _value(config, key) != default[key]
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: LeRobot has nothing like it; use it with --backend openvla, or"
            " leave it out"
        )


def _run(config: SftConfig) -> dict[str, Any]:
    every = config.publish.push_to_hub == "every-save"
    values = {"job.name": config.experiment_name, "job.output_dir": str(config.output_dir)}
    return values | ({"checkpoint.upload_every_save": True} if every else {})


def _device(config: SftConfig, kind: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if config.training.device != "auto":
        values["policy.device"] = config.training.device
    if config.training.precision != "auto":
        precision = {"bf16": "bf16", "fp32": "no"}[config.training.precision]
        values["accelerate.mixed_precision"] = precision
    if config.training.device == "cpu" and lerobot.has(kind, "compile_model"):
        values["policy.compile_model"] = False  # minutes of compiling for a machine without a GPU
    return values


def _policy(config: SftConfig, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "policy.model" in given:
        folder = Path(config.policy.model).expanduser()
        key = "path" if folder.exists() else "pretrained_path"
        values[f"policy.{key}"] = config.policy.model
    if config.policy.chunk_steps is not None:
        chunk = "chunk_size" if lerobot.has(kind, "chunk_size") else "horizon"
        values |= {f"policy.{chunk}": config.policy.chunk_steps}
        values["policy.n_action_steps"] = config.policy.chunk_steps
    if "data.image_size" in given:
        if kind not in IMAGE_SIZES:
            raise ConfigError(
                f"--image-size: {kind} takes images of the data set's size; record or convert them"
                " in the size that you want"
            )
        width, height = map(int, config.data.image_size.split("x"))
        values[f"policy.{IMAGE_SIZES[kind]}"] = [height, width]
    return values


def _value(config: SftConfig, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found
