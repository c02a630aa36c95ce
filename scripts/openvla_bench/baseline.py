"""The same OpenVLA in plain eager transformers code: the baseline of bench_openvla.

Weights are shared with this project's model, so both fit into one device. Towers run one after the
other, the prompt's embeddings go into `LlamaForCausalLM`, and `generate` has its growing cache and
full head, like the published code where its `generate` works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from crane_x7_vla_rl.actions import ACTION_BINS, FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.prompt import BOS_TOKEN, PROMPT_END_TOKEN

ACTION_ROWS = slice(FIRST_ACTION_TOKEN, FIRST_ACTION_TOKEN + ACTION_BINS)


class Baseline:
    """Plain eager generation and evaluation over the weights of `model`."""

    def __init__(self, model: OpenVLA) -> None:
        self._ours = model
        self._device = model.projector.fc3.bias.device
        text = model.config.text
        config = LlamaConfig(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            vocab_size=text.vocab_size,
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=model.config.context,
            attn_implementation="sdpa",
        )
        with torch.device("meta"):
            llama = LlamaForCausalLM(config)
        weights = {
            name: values.detach() for name, values in model.language_model.named_parameters()
        }
        llama.load_state_dict(weights, assign=True)
        rotary: Any = llama.model.rotary_emb  # its frequencies are not weights: compute them here
        with torch.device(self._device):
            llama.model.rotary_emb = type(rotary)(config=config)
        llama.requires_grad_(False)
        llama.generation_config.eos_token_id = None
        llama.generation_config.pad_token_id = 0
        self.llama: Any = llama.eval()

    def embed(self, pixels: Tensor, input_ids: Sequence[Tensor]) -> Tensor:
        """Return (B, T, H) for pixels (B, 6, 224, 224) and prompts of equal length."""
        backbone = self._ours.vision_backbone
        first, second = pixels.split(3, dim=1)
        patches = torch.cat([backbone.featurizer(first), backbone.fused_featurizer(second)], dim=2)
        ids = torch.stack(list(input_ids)).to(self._device)
        assert (ids[:, 0] == BOS_TOKEN).all()
        ids = torch.cat([ids, ids.new_full((len(ids), 1), PROMPT_END_TOKEN)], dim=1)
        text = self.llama.model.embed_tokens(ids)
        return torch.cat([text[:, :1], self._ours.projector(patches), text[:, 1:]], dim=1)

    @torch.no_grad()
    def generate(self, pixels: Tensor, input_ids: Sequence[Tensor], steps: int) -> Tensor:
        """Return (B, D) tokens of the full vocabulary."""
        embedded = self.embed(pixels, input_ids)
        tokens: Tensor = self.llama.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], device=self._device, dtype=torch.int64),
            max_new_tokens=steps,
            do_sample=False,
        )
        assert tokens.shape == (len(pixels), steps), tokens.shape
        return tokens

    @torch.no_grad()
    def first_logits(self, pixels: Tensor, input_ids: Sequence[Tensor]) -> Tensor:
        """Return (B, 256): the first action token's logits, to check that both models agree."""
        logits: Tensor = self.llama(inputs_embeds=self.embed(pixels, input_ids)).logits
        return logits[:, -1, ACTION_ROWS].float()

    def evaluate(self, pixels: Tensor, input_ids: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Return (B, D) log-probabilities of action tokens, from logits at every position."""
        prompt = self.embed(pixels, input_ids)
        action = self.llama.model.embed_tokens(tokens[:, :-1])
        logits = self.llama(
            inputs_embeds=torch.cat([prompt, action], dim=1), use_cache=False
        ).logits
        action_logits = logits[:, -tokens.shape[1] :, ACTION_ROWS].float()
        chosen = (tokens - FIRST_ACTION_TOKEN).unsqueeze(-1)
        return action_logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
