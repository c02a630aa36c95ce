"""OpenVLA as one module: its parts under the checkpoint's names. Pixels → patches, hidden → logits.

Names of parameters equal the checkpoint's: `vision_backbone.featurizer` (DINOv2),
`vision_backbone.fused_featurizer` (SigLIP), `projector`, `language_model`. The package `run` uses
them: `runner.Runner` chooses tokens, `evaluate.evaluate` computes their probabilities.

Legend: B batch, I images per sample, S pixels of a side and N patches (224 and 256 in the
released model), H hidden size, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from crane_x7_vla_rl.actions import (
    ACTION_BINS,
    FIRST_ACTION_TOKEN,
    find_statistics,
    tokens_to_normalised,
)
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.policies.openvla.errors import ImageError
from crane_x7_vla_rl.policies.openvla.image import Picture, normalised, pixel_values
from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model.language import Llama, Rows
from crane_x7_vla_rl.policies.openvla.model.matrices import Beside
from crane_x7_vla_rl.policies.openvla.model.projector import Projector
from crane_x7_vla_rl.policies.openvla.model.vision import AddNorm, VisionBackbone


class OpenVLA(nn.Module):
    """The model; its `state_dict` has exactly the keys of a checkpoint."""

    norm_stats: dict[str, Any]
    """Statistics by data set, as in `config.json` and `dataset_statistics.json`."""

    def __init__(self, config: OpenVLAConfig, norm_stats: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.norm_stats = dict(norm_stats or {})
        self.crop = False
        """Whether `preprocess` crops the centre, as models fine-tuned with random crops need it;
        loading sets it to the checkpoint's value."""
        self.vision_backbone = VisionBackbone(config.dinov2, config.siglip)
        self.projector = Projector(config.vision_dim, config.text.hidden_size)
        self.language_model = Llama(config.text)
        self.owns_memory = True
        """Whether weights stay at their addresses. If other code moves them, as FSDP does, rollouts
        join none and capture no graphs."""

    def preprocess(self, images: Sequence[Picture]) -> Tensor:
        """Return (B, 6, S, S) on the model's device for RGB, grey or RGBA images (uint8)."""
        like = self.projector.fc3.bias
        size = self.config.image_size
        return pixel_values(images, device=like.device, dtype=like.dtype, crop=self.crop, size=size)

    def normalise(self, images: Tensor) -> Tensor:
        """Return the pixels of `preprocess`, for images (B, S, S, 3) uint8 of the model's size.

        Rollouts and updates both call it on the same bytes, so that both get the same pixels.
        Raises ImageError for another kind or size.
        """
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ImageError(
                f"images are {tuple(images.shape)} of {images.dtype}, expected uint8 of"
                f" (B, {size}, {size}, 3); use `preprocess` for other sizes"
            )
        like = self.projector.fc3.bias
        squashed = images.to(like.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        return normalised(squashed, like.dtype, self.crop)

    def encode(
        self, pixels: Tensor, add_norm: AddNorm | None = None, told: Tensor | None = None
    ) -> Tensor:
        """Return (B, I·N, H), projected patches, for pixels (B, 6·I, S, S).

        Towers with FiLM need `told` (B, H), the instruction's embedding. With `add_norm` without
        gradients, see `vision`; `run.vision.see` chooses it.
        """
        projected: Tensor = self.projector(self.vision_backbone(pixels, add_norm, told))
        return projected

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Return (…, 256) float32 for final hidden states (…, H): only the head's action rows.

        Multiplied in float32: in bfloat16 a logit of 10 would be rounded to sixteenths.
        """
        head = self.language_model.lm_head
        end = FIRST_ACTION_TOKEN + ACTION_BINS
        if type(head) is nn.Linear:
            rows = head.weight[FIRST_ACTION_TOKEN:end]
            return functional.linear(hidden.float(), rows.float())
        if isinstance(head, Rows):
            return head.rows(hidden, FIRST_ACTION_TOKEN, end)
        logits: Tensor = head(hidden)[..., FIRST_ACTION_TOKEN:end]
        return logits.float()

    def on_host(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B, D) of a rollout on the CPU.

        Raises NotFiniteError, which names the weights, if logits were NaN or infinite.
        """
        found = tokens.detach().cpu()
        finite.check_tokens(found, self)
        return found

    def decode_actions(
        self, tokens: Tensor | npt.NDArray[np.int64], unnorm_key: str
    ) -> npt.NDArray[np.float64]:
        """Return (B, D) in the units of the statistics `unnorm_key` for tokens (B, D).

        Raises StatisticsError for an unknown key, or statistics with other dimensions, and
        NotFiniteError for tokens from logits that were NaN or infinite.
        """
        if isinstance(tokens, Tensor):
            tokens = self.on_host(tokens).numpy()
        statistics = find_statistics(self.norm_stats, unnorm_key)
        return statistics.unnormalise(tokens_to_normalised(tokens))

    def checkpoint_gradients(self, wanted: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        self.language_model.model.checkpointing = wanted
        self.vision_backbone.featurizer.checkpointing = wanted
        self.vision_backbone.fused_featurizer.checkpointing = wanted
        for module in self.modules():
            if isinstance(module, Beside):
                module.recomputed = wanted

    def count_patches(self, images: Tensor, prompts: int) -> int:
        """Return I·N for pixels or patches; expects one sample per prompt."""
        shape = tuple(images.shape)
        width, size, each = (
            self.config.text.hidden_size,
            self.config.image_size,
            self.config.patches,
        )
        pixels = len(shape) == 4 and shape[1] % 6 == 0 and shape[2:] == (size, size)
        patches = len(shape) == 3 and shape[2] == width
        if not (pixels or patches) or not shape[1] or shape[0] != prompts:
            raise ImageError(
                f"images have shape {shape}, expected pixels ({prompts}, 6·I, {size}, {size})"
                f" or patches ({prompts}, I·{each}, {width}), one per prompt"
            )
        return shape[1] // 6 * each if pixels else shape[1]
