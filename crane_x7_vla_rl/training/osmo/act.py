"""LeRobot's ACT from this room's configuration. `OsmoConfig`, data set → a `Request` for LeRobot.

With scheduler none LeRobot's own preset trains at one rate. With cosine its schedule of Physical
Intelligence is used (`cosine_decay_with_warmup`): the rate rises linearly to the half cosine that
runs from `lr` at step 0 to `min_lr` at the last step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.lerobot import request as requests
from crane_x7_vla_rl.training.lerobot.request import Request
from crane_x7_vla_rl.training.osmo.config import OsmoConfig

logger = logging.getLogger(__name__)

WEIGHT_DECAY: Final = 1e-4
PREFETCHED: Final = 5
"""Batches of a loading process that wait at once: LeRobot's prefetch_factor, and one in use."""
SHARE: Final = 0.8
"""Of the shared memory that batches may fill."""
GRAD_CLIP_NORM: Final = 10.0
"""As in ACT's preset in LeRobot 0.6.1; without the preset they must be told."""


def request(config: OsmoConfig, data: Path, workers: int | None = None) -> Request:
    """Return what LeRobot trains; raises ConfigError.

    `workers` is how many processes load data; None: as configured.
    """
    training, model, wandb = config.training, config.model, config.wandb
    values: dict[str, Any] = {
        "dataset.root": str(data),
        "policy.type": "act",
        "policy.chunk_size": model.chunk_size,
        "policy.n_action_steps": model.chunk_size,
        "policy.kl_weight": model.kl_weight,
        "policy.dim_model": model.dim_model,
        "policy.n_heads": model.n_heads,
        "policy.dim_feedforward": model.dim_feedforward,
        "policy.optimizer_lr": training.lr,
        "policy.optimizer_lr_backbone": training.lr,
        "training.steps": training.steps,
        "training.batch_size": training.batch_size,
        "training.num_workers": training.num_workers if workers is None else workers,
        "training.save_freq": training.save_freq,
        "training.log_freq": training.log_freq,
        "training.seed": training.seed,
        "job.output_dir": str(config.run),
        "job.name": wandb.run_name or f"act-lr{training.lr:g}-kl{model.kl_weight:g}",
        "accelerate.use": False,
    }
    if not model.pretrained_backbone:
        values["policy.pretrained_backbone_weights"] = None
    if training.device != "auto":
        values["policy.device"] = training.device
    if training.scheduler == "cosine":
        values |= _cosine(config)
    if wandb.enabled:
        values |= {"wandb.enable": True, "wandb.project": wandb.project, "wandb.add_tags": False}
        values |= {} if wandb.entity is None else {"wandb.entity": wandb.entity}
        values |= {} if wandb.mode is None else {"wandb.mode": wandb.mode}
    return requests.build([Layer("the configuration", values)])


def workers(config: OsmoConfig, info: Mapping[str, Any], shared_bytes: int | None) -> int:
    """Return how many loading processes fit into the shared memory, at most the configured ones.

    They hand their batches over in /dev/shm, of which a container often has 64 MB; where it is
    full, a process dies with a bus error. `info` is the data set's.
    """
    wanted = config.training.num_workers
    shapes = [
        feature["shape"] for name, feature in info.get("features", {}).items()
        if name.startswith(layout.IMAGES)
    ]  # fmt: skip
    each = config.training.batch_size * PREFETCHED * sum(map(math.prod, shapes))
    if shared_bytes is None or wanted * each <= SHARE * shared_bytes:
        return wanted
    fit = int(SHARE * shared_bytes // each)
    logger.warning(
        "/dev/shm has %.0f MB free, enough for %d processes that load data, not for %d"
        " (training.num_workers): give the container more (volumeMounts: [/dev/shm], or docker run"
        " --shm-size 8g), or set data.image_size",
        shared_bytes / 1e6, fit, wanted,
    )  # fmt: skip
    return fit


def _cosine(config: OsmoConfig) -> dict[str, Any]:
    training = config.training
    return {
        "training.use_policy_training_preset": False,
        "optimizer.type": "adamw",
        "optimizer.lr": training.lr,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "optimizer.grad_clip_norm": GRAD_CLIP_NORM,
        "scheduler.type": "cosine_decay_with_warmup",
        "scheduler.num_warmup_steps": training.warmup_steps,
        "scheduler.num_decay_steps": training.steps,
        "scheduler.peak_lr": training.lr,
        "scheduler.decay_lr": training.min_lr,
    }
