"""Every error of OpenVLA, in one hierarchy. Each message names what was expected."""

from __future__ import annotations

from crane_x7_vla_rl.policies import base
from crane_x7_vla_rl.policies.base import PolicyLoadError


class OpenVLAError(ValueError):
    """Base class: input that this policy refuses."""


class ModelConfigError(OpenVLAError):
    """A `config.json` describes a model that this package does not implement."""


class ImageError(OpenVLAError):
    """An image, or a batch of them, has a kind or size that the model cannot take."""


class PromptError(OpenVLAError):
    """A prompt is empty, holds ids outside the vocabulary, or does not fit into the context."""


class ActionTokenError(OpenVLAError):
    """Action tokens have the wrong shape, or are outside the 256 action rows."""


class CheckpointError(OpenVLAError, PolicyLoadError):
    """A checkpoint cannot be loaded; names file, key, found, expected, what to do."""


class NotFiniteError(OpenVLAError, base.NotFiniteError):
    """Weights or logits hold NaN or infinities; see `finite`, which finds and names them."""


class AdapterError(OpenVLAError):
    """LoRA has an invalid rank, or names modules that do not exist."""
