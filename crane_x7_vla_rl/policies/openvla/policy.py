"""OpenVLA as a `Policy`: observations in, joint targets of the CRANE-X7 out (see `targets`).

Two kinds of checkpoint: OpenVLA's own, one action per observation from its tokens, and OpenVLA-OFT,
a chunk of them from its regression head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla_rl.actions import StatisticsError, find_statistics
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.openvla import loading, oft_loading
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.layout import TOKENIZER
from crane_x7_vla_rl.policies.openvla.loading import Loaded
from crane_x7_vla_rl.policies.openvla.model import OpenVLA
from crane_x7_vla_rl.policies.openvla.oft import LIBERO, OpenVLAOft
from crane_x7_vla_rl.policies.openvla.targets import DIMENSIONS, joint_targets
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.types import ActionChunk, Array, Observation

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.1
"""From target to target: one step of the 10 Hz at which the loop asks by default."""
SMALL: Final = 50_000_000
"""Below so many parameters, one CPU thread is faster beside other work: several would wait for each
other at every operation. Measured with a tiny model on two busy cores: 38 ms against 1.2 s."""


class Actor(Protocol):
    """Which of the two kinds decides."""

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """Return (B, T, D) for pixels (B, 6, 224, 224), prompts, and joints (B, 8) in rad."""
        ...


class TokenActor:
    """Greedy action tokens, one action each (T = 1)."""

    def __init__(self, model: OpenVLA, unnorm_key: str, dimensions: int) -> None:
        self._model, self._key, self._dimensions = model, unnorm_key, dimensions

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """See Actor; the joints are not read."""
        del joints
        tokens = self._model.generate(pixels, ids, self._dimensions)
        return self._model.decode_actions(tokens, self._key)[:, None]


class ChunkActor:
    """OpenVLA-OFT's head; reads the joints where the checkpoint was trained with them."""

    def __init__(self, model: OpenVLAOft, unnorm_key: str) -> None:
        self._model, self._key = model, unnorm_key

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """See Actor."""
        state = joints if self._model.proprio_dim else None
        return self._model.predict(pixels, ids, self._key, state)


class OpenVLAPolicy:
    """Joint targets of one checkpoint."""

    def __init__(self, loaded: Loaded, options: ModelOptions) -> None:
        """Raises CheckpointError for an unknown key, other dimensions, or no tokenizer."""
        key, source = options.unnorm_key, loaded.layout.folder
        dimensions = _dimensions(loaded, key)
        path = loaded.layout.first(TOKENIZER)
        if path is None:
            raise CheckpointError(
                f"{loaded.layout.base / TOKENIZER} is missing; save the tokenizer of the"
                " model with save_pretrained there"
            )
        self._tokenizer = PromptTokenizer(path)
        self._model = loaded.model
        if options.center_crop is not None:
            self._model.crop = options.center_crop
        self._actor: Actor
        if oft_loading.is_oft(source):
            self._actor = _chunk_actor(loaded, options, dimensions)
        else:
            self._actor = TokenActor(loaded.model, key, dimensions)
        if loaded.raw_config.get("random_weights"):
            logger.warning("%s has random weights: it cannot do any task", source)

    @torch.no_grad()
    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return targets per observation; raises UnreachableError for a step out of reach."""
        pixels = self._model.preprocess([observation.image for observation in observations])
        ids = [self._tokenizer(observation.instruction) for observation in observations]
        joints = np.stack([observation.joints.position_rad for observation in observations])
        actions = self._actor.act(pixels, ids, joints)  # (B, T, 7 or 8)
        return [
            ActionChunk(joint_targets(steps, measured), PERIOD_S)
            for steps, measured in zip(actions, joints, strict=True)
        ]

    def reset(self) -> None:
        """Nothing is remembered that would change an answer."""


def _dimensions(loaded: Loaded, key: str) -> int:
    """Return the dimensions of the statistics under `key`; raises CheckpointError."""
    source = loaded.layout.folder
    try:
        statistics = find_statistics(loaded.model.norm_stats, key)
    except StatisticsError as error:
        known = ", ".join(sorted(loaded.model.norm_stats)) or "none"
        raise CheckpointError(
            f"VLA_UNNORM_KEY={key}: {source} has no statistics under this key; known: {known}"
        ) from error
    if statistics.dimensions not in DIMENSIONS:
        raise CheckpointError(
            f"{source}: the statistics {key!r} have {statistics.dimensions} dimensions, expected 8"
            " (joints and gripper) or 7 (tool step and gripper)"
        )
    return statistics.dimensions


def _chunk_actor(loaded: Loaded, options: ModelOptions, dimensions: int) -> ChunkActor:
    """Return OpenVLA-OFT with its heads; raises CheckpointError for what cannot be a CRANE-X7's."""
    source = loaded.layout.folder
    if options.chunk_steps is None:
        raise CheckpointError(
            f"{source} is an OpenVLA-OFT checkpoint, whose files do not say how many steps it"
            " predicts at once; set VLA_CHUNK_STEPS to what it was trained with (8 in the released"
            " LIBERO models, 5 for Bridge)"
        )
    model = oft_loading.with_heads(loaded, replace(LIBERO, steps=options.chunk_steps))
    if model.head.action_dim != dimensions:
        raise CheckpointError(
            f"{source}: its action head has {model.head.action_dim} dimensions, the statistics"
            f" {options.unnorm_key!r} have {dimensions}"
        )
    if model.proprio_dim not in (0, DOF):
        raise CheckpointError(
            f"{source}: it reads a state of {model.proprio_dim} dimensions, expected {DOF}: seven"
            " joints and the gripper"
        )
    return ChunkActor(model, options.unnorm_key)


def load(options: ModelOptions) -> OpenVLAPolicy:
    """Return the policy in a folder or on the Hub, in bfloat16 on CUDA, else float32.

    Raises PolicyLoadError for a device that is not there and for whatever is wrong with the model.
    """
    assert options.path is not None
    place = _device(options.device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    loaded = loading.load(options.path, device=place, dtype=dtype, token=options.token)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    if place.type == "cpu" and size < SMALL:
        torch.set_num_threads(1)
    return OpenVLAPolicy(loaded, options)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"VLA_DEVICE={name}: expected cuda, cuda:1 or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(
            f"VLA_DEVICE={name}: this machine offers {torch.cuda.device_count()} CUDA devices; set"
            " VLA_DEVICE=cpu for a small model, or run where the GPU is"
        )
    return device
