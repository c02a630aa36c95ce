"""OpenVLA-OFT: a whole chunk of continuous actions in one pass (https://arxiv.org/abs/2502.19645).

Pixels of one or several images, prompts and the robot's state → actions in the robot's units. The
sequence is `[BOS] [image tokens] [state] [pads] [text] [29871] [placeholders] [</s>]` with T·D
placeholders of zeros, and every token attends to all. A head reads each action from the position
before its placeholder, as next-token prediction would.

Departures from the released evaluation code: batches, and a dimension whose statistics have no
span is 0, as in training; the released code uses −1.

Legend: B batch, I images, T steps of a chunk, D action dimensions, P dimensions of the state, H
hidden size, L text slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crane_x7_vla_rl.actions import QUANTILES, Statistics, find_statistics
from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.policies.openvla.model.language import Pass
from crane_x7_vla_rl.policies.openvla.model.oft_heads import ActionHead, ProprioProjector
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.inference import infer
from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from crane_x7_vla_rl.policies.openvla.run.rollout import Engine
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.run.sequence import Prompts, Span, mask, pack, positions
from crane_x7_vla_rl.policies.openvla.run.vision import see
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded, load
from crane_x7_vla_rl.policies.openvla.weights.oft_loading import load_film, load_heads
from crane_x7_vla_rl.prompt import BOS_TOKEN, STOP_TOKEN


@dataclass(frozen=True)
class ChunkSettings:
    """Settings that a checkpoint's training fixed but its files do not contain."""

    steps: int = 8
    """T."""
    bounds: tuple[str, str] = QUANTILES
    """Entries of the statistics for −1 and 1."""


LIBERO: Final = ChunkSettings()
ALOHA: Final = ChunkSettings(25, ("min", "max"))
BRIDGE: Final = ChunkSettings(5)


Key = tuple[Engine, int, int, int, int, bool]
"""Shape of buffers: engine, dimensions of images, B, slots before the text, L, pads."""


class ChunkBuffers:
    """Fixed tensors of one shape, with the step that uses them."""

    def __init__(self, policy: OpenVLAOft, key: Key) -> None:
        engine, _, batch, prefix, length, self.padded = self.key = key
        like, steps = engine.like, policy.settings.steps
        self.engine = engine
        self.span = Span(prefix, 0, prefix + length + policy.placeholders + 1)
        self.images: Tensor | None = None
        self.state = like.new_zeros(batch, policy.proprio_dim)
        self.ids = torch.zeros(batch, length, dtype=torch.int64, device=like.device)
        self.pads = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self.actions = like.new_zeros(batch, steps, policy.head.action_dim)
        hidden_size = policy.base.config.text.hidden_size
        self.read = like.new_zeros(batch, policy.placeholders, hidden_size)
        pool = torch.cuda.graph_pool_handle() if like.is_cuda else None
        self.replay = Replay(lambda: policy.fill(self), like.device, pool)

    def take(self, images: Tensor, prompts: Prompts, state: Tensor) -> None:
        """Copy the inputs of a step."""
        if self.images is None:
            self.images = torch.empty_like(images, memory_format=torch.contiguous_format)
        self.images.copy_(images)
        self.ids.copy_(prompts.ids)
        self.pads.copy_(prompts.pads)
        self.state.copy_(state)


class OpenVLAOft(nn.Module):
    """An OpenVLA whose actions come from a regression head."""

    def __init__(
        self,
        base: OpenVLA,
        head: ActionHead,
        proprio: ProprioProjector | None,
        settings: ChunkSettings = LIBERO,
    ) -> None:
        super().__init__()
        self.base, self.head, self.proprio, self.settings = base, head, proprio, settings
        self.runner = Runner(base)
        self._held: ChunkBuffers | None = None

    @property
    def placeholders(self) -> int:
        """T·D."""
        return self.settings.steps * self.head.action_dim

    @property
    def proprio_dim(self) -> int:
        """P, 0 if the checkpoint reads no state."""
        return 0 if self.proprio is None else self.proprio.fc1.in_features

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        input_ids: Sequence[Tensor],
        unnorm_key: str,
        state: npt.ArrayLike | None = None,
        noise: Tensor | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return (B, T, D) in the units of the statistics `unnorm_key`.

        `noise` (B, T, D) is added to the normalised actions.

        `images` are pixels (B, 6·I, 224, 224), the images in the order of training; `state` (B, P)
        is the robot's, in the units of the statistics, if the checkpoint has a projector.
        Raises StatisticsError, ImageError, PromptError, NotFiniteError, and ValueError for a state
        that is missing, unexpected, of another shape or NaN.
        """
        statistics = self._statistics(unnorm_key, "action")
        normalised_state = self._normalised(state, len(input_ids), unnorm_key)
        actions = self.on_host(self.predict_normalised(images, input_ids, normalised_state))
        if noise is not None:
            actions = actions + noise
        return statistics.unnormalise(actions.double().numpy())

    @torch.no_grad()
    def predict_normalised(
        self, images: Tensor, input_ids: Sequence[Tensor], state: Tensor
    ) -> Tensor:
        """Return the head's output (B, T, D), for a normalised state (B, P).

        On a CPU, raises NotFiniteError; on a GPU, `on_host` raises it, to avoid a wait.
        """
        return self.answer(images, input_ids, state)[0]

    @torch.no_grad()
    def answer(
        self, images: Tensor, input_ids: Sequence[Tensor], state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `predict_normalised`, and the hidden states (B, T·D, H) that the head read.

        The first one is that at the prompt's end.
        """
        engine = self.runner.engine()
        prefix = 1 + self.base.count_patches(images, len(input_ids)) + bool(self.proprio)
        after = self.placeholders + 1
        prompts = pack(input_ids, self.base.config, prefix, after, engine.bucket)
        key = (engine, images.ndim, len(images), prefix, prompts.length, prompts.padded)
        if self._held is None or self._held.key != key:
            self._held = None
            self._held = ChunkBuffers(self, key)
        buffers = self._held
        buffers.take(images.to(engine.like), prompts, state.to(engine.like))
        buffers.replay()
        if not buffers.actions.is_cuda:
            self.on_host(buffers.actions)
        return buffers.actions.clone(), buffers.read.clone()

    def forget(self) -> None:
        """Free all buffers and their memory."""
        self._held = None
        self.runner.forget()

    def on_host(self, actions: Tensor) -> Tensor:
        """Return actions (B, …) on the CPU; raises NotFiniteError, which names the weights."""
        found = actions.detach().cpu()
        sound = torch.isfinite(found).flatten(1).all(1)
        if not bool(sound.all()):
            raise finite.unanswered((~sound).nonzero().flatten().tolist(), len(found), self)
        return found

    def fill(self, buffers: ChunkBuffers) -> None:
        """Compute the actions from the buffers alone, so that it can be captured."""
        assert buffers.images is not None
        language, span = self.base.language_model.model, buffers.span
        x = self._embeddings(buffers.images, buffers)  # (B, span, H)
        pads = buffers.pads if buffers.padded else None
        at = positions(span, pads, x.device)  # (B or 1, span)
        seen = None if pads is None else mask(span, pads, x, causal=False)
        keep = self.placeholders + 2
        this = Pass(
            cos=buffers.engine.cos[at].unsqueeze(2),
            sin=buffers.engine.sin[at].unsqueeze(2),
            mask=seen,
            causal=False,
            keep=keep,
            keep_mask=None if seen is None else seen[:, :, -keep:],
        )
        hidden = infer(language, x, this, buffers.engine.matrices)  # (B, keep, H)
        buffers.read.copy_(hidden[:, : self.placeholders])
        read = buffers.read.to(self.head.model.fc2.bias)  # float32 if it learns
        buffers.actions.copy_(self.head(read))

    def _embeddings(self, images: Tensor, buffers: ChunkBuffers) -> Tensor:
        """Return (B, all tokens, H)."""
        pads = buffers.pads if buffers.padded else None
        told = instruction(self.base, buffers.ids, pads)
        patches = images if images.ndim == 3 else see(self.base, images, told)  # (B, I·N, H)
        state = None
        if self.proprio is not None:
            state = self.proprio(buffers.state.to(self.proprio.fc1.bias)).to(patches)
        return embeddings(self.base, patches, state, buffers.ids, self.placeholders)

    def _normalised(self, state: npt.ArrayLike | None, batch: int, key: str) -> Tensor:
        if self.proprio is None and state is None:
            return torch.zeros(batch, 0)
        found = None if state is None else np.asarray(state, dtype=np.float64)
        wanted = (batch, self.proprio_dim)
        if self.proprio is None or found is None or found.shape != wanted:
            expected = "no state" if self.proprio is None else f"shape {wanted}"
            came = None if found is None else found.shape
            raise ValueError(f"state has shape {came}, expected {expected} by this checkpoint")
        if not np.isfinite(found).all():
            raise ValueError(f"state is {found.tolist()}, expected finite numbers")
        return torch.from_numpy(self._statistics(key, "proprio").normalise(found))

    def _statistics(self, key: str, kind: str) -> Statistics:
        return find_statistics(self.base.norm_stats, key, kind, bounds=self.settings.bounds)


def instruction(base: OpenVLA, ids: Tensor, pads: Tensor | None) -> Tensor | None:
    """Return what FiLM reads of prompts (B, L), (B, H); None if the towers have no FiLM.

    It is the mean embedding of all tokens that are no actions: BOS, the text, `</s>`. `pads` (B,)
    counts the slots before each text.
    """
    if not base.vision_backbone.has_film:
        return None
    embed = base.language_model.model.embed_tokens
    tokens = embed(ids)  # (B, L, H)
    count = ids.new_full((len(ids), 1), ids.shape[1])
    if pads is not None:
        real = torch.arange(ids.shape[1], device=ids.device) >= pads[:, None]  # (B, L)
        tokens, count = tokens * real[..., None], real.sum(1, keepdim=True)
    ends = embed(ids.new_tensor([BOS_TOKEN, STOP_TOKEN])).sum(0)
    mean: Tensor = (tokens.sum(1) + ends) / (count + 2)
    return mean


def embeddings(
    base: OpenVLA, patches: Tensor, state: Tensor | None, ids: Tensor, placeholders: int
) -> Tensor:
    """Return (B, all tokens, H) for patches (B, I·N, H), a state's token (B, H) and ids (B, L)."""
    embed = base.language_model.model.embed_tokens
    parts = [embed(ids.new_full((len(ids), 1), BOS_TOKEN)), patches]
    if state is not None:
        parts.append(state[:, None])
    blank = patches.new_zeros(len(ids), placeholders, patches.shape[2])  # (B, T·D, H)
    parts += [embed(ids), blank, embed(ids.new_full((len(ids), 1), STOP_TOKEN))]
    return torch.cat(parts, dim=1)


def load_oft(
    path_or_repo_id: str | Path,
    *,
    settings: ChunkSettings = LIBERO,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OpenVLAOft:
    """Return the policy, ready to predict; raises CheckpointError, which names file and key."""
    return with_heads(load(path_or_repo_id, device=device, dtype=dtype), settings)


def with_heads(loaded: Loaded, settings: ChunkSettings) -> OpenVLAOft:
    """Return a loaded base with its heads and its FiLM.

    Raises CheckpointError and NotFiniteError.
    """
    heads = load_heads(loaded)
    load_film(loaded)
    like = loaded.model.projector.fc3.bias
    policy = OpenVLAOft(loaded.model, *heads, settings)
    return policy.to(device=like.device, dtype=like.dtype).eval()
