"""OpenVLA as one module: pixels and a prompt come in, action tokens or their probabilities leave.

Names of parameters equal the checkpoint's: `vision_backbone.featurizer` (DINOv2),
`vision_backbone.fused_featurizer` (SigLIP), `projector`, `language_model`. How a sequence is laid
out is in `sequence`, how tokens are chosen in `rollout`, how they are judged in `evaluate`.

Legend: B batch, I images per sample, S pixels of a side and N patches (224 and 256 in the
released model), H hidden size, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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
from crane_x7_vla_rl.policies.openvla.model.projector import Projector
from crane_x7_vla_rl.policies.openvla.model.vision import VisionBackbone
from crane_x7_vla_rl.policies.openvla.run import evaluate as evaluation
from crane_x7_vla_rl.policies.openvla.run import low_bit
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Runner, Sampling


class OpenVLA(nn.Module):
    """The model; its `state_dict` has exactly the keys of a checkpoint."""

    norm_stats: dict[str, Any]
    """Statistics by data set, as in `config.json` and `dataset_statistics.json`."""

    def __init__(self, config: OpenVLAConfig, norm_stats: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.norm_stats = dict(norm_stats or {})
        self.crop = False
        """Whether `preprocess` crops the centre, as fine-tuning with random crops wants it; loading
        sets it to what the checkpoint says."""
        self.vision_backbone = VisionBackbone(config.dinov2, config.siglip)
        self.projector = Projector(config.vision_dim, config.text.hidden_size)
        self.language_model = Llama(config.text)
        self.owns_memory = True
        """Whether weights lie where this model has put them. Where another one moves them about, as
        FSDP does, rollouts join none and capture no graphs."""
        self.decode_weights: low_bit.Kind | None = None
        self._runner: Runner | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> OpenVLA:
        """Return the model in a folder or on the Hub, adapters merged; see `loading.load`.

        Raises CheckpointError, which names file, key, what was found and expected.
        """
        from crane_x7_vla_rl.policies.openvla.weights import loading

        return loading.load(path_or_repo_id, device=device, dtype=dtype).model

    def preprocess(self, images: Sequence[Picture]) -> Tensor:
        """Return (B, 6, S, S) on the model's device for RGB, grey or RGBA images (uint8)."""
        like = self.projector.fc3.bias
        size = self.config.image_size
        return pixel_values(images, device=like.device, dtype=like.dtype, crop=self.crop, size=size)

    def normalise(self, images: Tensor) -> Tensor:
        """Return what `preprocess` does, for images (B, S, S, 3) uint8 of the model's size.

        Rollouts and updates both call it on the same bytes, so that both see the same pixels.
        Raises ImageError for another kind or size.
        """
        size = self.config.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ImageError(
                f"images are {tuple(images.shape)} of {images.dtype}, expected uint8 of"
                f" (B, {size}, {size}, 3); `preprocess` takes other sizes"
            )
        like = self.projector.fc3.bias
        squashed = images.to(like.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        return normalised(squashed, like.dtype, self.crop)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return (B, I·N, H), projected patches, for pixels (B, 6·I, S, S)."""
        projected: Tensor = self.projector(self.vision_backbone(pixels))
        return projected

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Return (…, 256) float32 for final hidden states (…, H): the head's action rows alone.

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

    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Sequence[Tensor],
        action_dim: int,
        temperature: float = 0.0,
    ) -> Tensor:
        """Return tokens (B, D) for pixels (B, 6·I, S, S) and B prompts; see `roll_out`.

        `decode_actions` tells what they mean, and checks them where they came from a GPU.
        """
        return self.roll_out(pixel_values, input_ids, action_dim, Sampling(temperature)).tokens

    @torch.no_grad()
    def roll_out(
        self,
        images: Tensor,
        input_ids: Sequence[Tensor],
        action_dim: int,
        sampling: Sampling | None = None,
    ) -> Rollout:
        """Return tokens with their log-probabilities, logits and the prompt's hidden state.

        `images` are pixels (B, 6·I, S, S) or patches (B, I·N, H) from `encode`; `input_ids`
        are B 1-D tensors of ids, BOS first, the final 29871 left out. What repeats from the call
        before is not computed again. Raises ImageError and PromptError; on a CPU, where nothing
        has to be waited for, NotFiniteError, too. On a GPU `on_host` raises that.
        """
        if action_dim < 1:
            raise ValueError(f"action_dim is {action_dim}, expected 1 or more")
        chosen = self.runner()(images, input_ids, action_dim, sampling or Sampling())
        if not chosen.tokens.is_cuda:
            self.on_host(chosen.tokens)
        return chosen

    def on_host(self, tokens: Tensor) -> Tensor:
        """Return what `roll_out` chose, (B, D), on the CPU.

        Raises NotFiniteError, which names the weights, where logits were NaN or infinite.
        """
        found = tokens.detach().cpu()
        finite.check_tokens(found, self)
        return found

    def set_decode_weights(self, kind: low_bit.Kind | None) -> None:
        """Decode small batches with int8 or fp8 weights from now on, or None with the model's own.

        See `low_bit`; `low_bit.compare` says what it does to the actions.
        """
        if kind != self.decode_weights:
            self.decode_weights, self._runner = kind, None

    def forget_rollouts(self) -> None:
        """Drop what `roll_out` holds from call to call, and its memory; it makes that anew."""
        self._runner = None

    def runner(self) -> Runner:
        """Return the machinery behind `roll_out`, made anew after modules or memory changed."""
        if self._runner is None or not self._runner.current():
            self._runner = None
            self._runner = Runner(self)
        return self._runner

    def evaluate(
        self,
        images: Tensor,
        instructions: Sequence[Tensor],
        action_tokens: Tensor,
        temperature: float = 1.0,
    ) -> evaluation.Evaluation:
        """Return log-probabilities (B, D), entropy (B, D), hidden state (B, H), with gradients.

        See `evaluate.evaluate`.
        """
        return evaluation.evaluate(self, images, instructions, action_tokens, temperature)

    def decode_actions(
        self, tokens: Tensor | npt.NDArray[np.int64], unnorm_key: str
    ) -> npt.NDArray[np.float64]:
        """Return (B, D) in the units of the statistics `unnorm_key` for tokens (B, D).

        Raises StatisticsError for an unknown key, or statistics with other dimensions, and
        NotFiniteError for tokens of logits that were no numbers.
        """
        if isinstance(tokens, Tensor):
            tokens = self.on_host(tokens).numpy()
        statistics = find_statistics(self.norm_stats, unnorm_key)
        return statistics.unnormalise(tokens_to_normalised(tokens))

    def checkpoint_gradients(self, wanted: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping what it computed."""
        self.language_model.model.checkpointing = wanted
        self.vision_backbone.featurizer.checkpointing = wanted
        self.vision_backbone.fused_featurizer.checkpointing = wanted

    def count_patches(self, images: Tensor, prompts: int) -> int:
        """Return I·N for pixels or patches of as many samples as there are prompts."""
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
