"""The other side of bench_rl: a plain loop.

One process per environment, every step's image through a pipe; transformers' `generate` for one
environment at a time, with log-probabilities from its scores and the value from its hidden states;
PEFT's LoRA on the same layers; an update over transformers' logits of every position. Prompts,
resize, GAE, loss and value head are this project's functions: the benchmark compares the loop and
the model in it. Processes have one thread each and step at the same time; more threads, or one
process after another, would be slower.

Legend: B samples, D tokens of an answer, T steps, N environments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from openvla_bench.baseline import ACTION_ROWS, Baseline
from openvla_bench.limits import synchronise
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import cut
from crane_x7_vla_rl.policies.openvla.targets import joint_targets
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.training.rl import ppo
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.rl.ppo import OldSamples, PolicyOutput
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig
from crane_x7_vla_rl.training.rl.value_head import ValueHead
from rl_bench.case import Case, Round
from rl_bench.plain_envs import Processes, Seen, View


class ActionsAlone(LogitsProcessor):
    """Restricts `generate` to the 256 action tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Input and output: (B, vocabulary)."""
        del input_ids
        masked = torch.full_like(scores, -torch.inf)
        masked[:, ACTION_ROWS] = scores[:, ACTION_ROWS]
        return masked


class Stack(nn.Module):
    """An OpenVLA's towers and projector, with transformers' language model."""

    def __init__(self, base: OpenVLA, llama: nn.Module) -> None:
        super().__init__()
        self.vision_backbone = base.vision_backbone
        self.projector = base.projector
        self.language_model = llama


@dataclass(frozen=True, eq=False)
class Choice:
    """One environment's decision and its inputs."""

    pixels: Tensor
    """(1, 6, S, S)."""
    prompt: Tensor
    tokens: Tensor
    """(D,)."""
    log_probs: Tensor
    """(D,)."""
    value: float


class Policy:
    """The policy and its value head."""

    def __init__(self, case: Case, config: RlConfig, targets: list[str], codec: Codec) -> None:
        dtype = torch.bfloat16 if case.halved else torch.float32
        self._base = load(case.model, device=case.device, dtype=dtype).model
        self._base.requires_grad_(False)
        self._baseline = Baseline(self._base)
        self._llama = self._baseline.llama
        lora = LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=targets  # type: ignore[arg-type]
        )  # fmt: skip
        stack = Stack(self._base, self._llama)
        self.peft: Any = get_peft_model(stack, lora)  # type: ignore[arg-type]
        self.head = ValueHead(self._base.config.text.hidden_size, config.ppo.value)
        self.head.to(case.device)
        self._case, self._config, self._codec = case, config.ppo, codec
        groups = [(self.peft, config.ppo.learning_rate)]
        groups += [(self.head, config.ppo.value.learning_rate)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
                for part, rate in groups
            ],
            weight_decay=config.ppo.weight_decay,
        )

    @property
    def learning(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def read(self, view: View) -> tuple[Tensor, Tensor]:
        """Return pixels (1, 6, S, S) and the prompt."""
        side = self._base.config.image_size
        seen = Image.fromarray(cut(view.picture, self._codec.inputs.view))
        small = np.asarray(seen.resize((side, side), Image.Resampling.BICUBIC))
        (prompt,) = self._codec.prompts([view.instruction], view.joints_rad[None])
        return self._base.normalise(torch.from_numpy(small.copy())[None]), prompt

    @torch.no_grad()
    def choose(self, view: View, length: int | None = None) -> Choice:
        """Sample a decision for one observation; `length` tokens if only the value is needed."""
        pixels, prompt = self.read(view)
        length = length or self._codec.answer_length
        with self._autocast():
            embedded = self._baseline.embed(pixels, [prompt])
            found = self._llama.generate(
                inputs_embeds=embedded,
                attention_mask=embedded.new_ones(embedded.shape[:2], dtype=torch.int64),
                max_new_tokens=length,
                do_sample=True,
                temperature=self._config.temperature,
                top_k=0,
                logits_processor=LogitsProcessorList([ActionsAlone()]),
                return_dict_in_generate=True,
                output_scores=True,
                output_hidden_states=True,
            )
        tokens = found.sequences[0]
        scores = torch.stack(found.scores, dim=1)[0].float()  # (D, vocabulary)
        log_probs = scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        value = self.head(found.hidden_states[0][-1][:, -1])
        return Choice(pixels, prompt, tokens.cpu(), log_probs.cpu(), float(value))

    def judge(self, pixels: Tensor, prompts: Sequence[Tensor], tokens: Tensor) -> PolicyOutput:
        """Evaluate answers (B, D) to pixels (B, 6, S, S), with gradients."""
        with self._autocast():
            prompt = self._baseline.embed(pixels, prompts)
            answer = self._llama.model.embed_tokens(tokens[:, :-1])
            found = self._llama(
                inputs_embeds=torch.cat([prompt, answer], dim=1),
                use_cache=False,
                output_hidden_states=True,
            )
        logits = found.logits[:, -tokens.shape[1] :, ACTION_ROWS].float()
        spread = (logits / self._config.temperature).log_softmax(-1)
        chosen = (tokens - FIRST_ACTION_TOKEN).unsqueeze(-1)
        hidden = found.hidden_states[-1][:, prompt.shape[1] - 1]
        values = self.head(hidden.detach() if self._config.value.detach else hidden)
        entropy = -(spread.exp() * spread).sum(-1)
        return PolicyOutput(spread.gather(-1, chosen).squeeze(-1), entropy, values)

    def target(self, choice: Choice, view: View) -> Any:
        """Return the targets (8,), rad."""
        (steps,) = self._codec.actions(choice.tokens[None])
        return joint_targets(steps, view.joints_rad)[0].astype(np.float32)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._case.device.type, torch.bfloat16, enabled=self._case.halved)


@dataclass
class Story:
    """A rollout as lists, step by step and environment by environment."""

    choices: list[list[Choice]] = field(default_factory=list)
    seen: list[list[Seen]] = field(default_factory=list)
    final_values: list[list[float]] = field(default_factory=list)
    last_values: list[float] = field(default_factory=list)
    simulate_s: float = 0.0

    def judged(self, config: PpoConfig) -> tuple[Tensor, Tensor]:
        """Return advantages, normalised, and returns, each (T·N,)."""
        values = torch.tensor([[choice.value for choice in row] for row in self.choices])
        rewards, terminated, truncated = (
            torch.tensor([[getattr(seen, name) for seen in row] for row in self.seen])
            for name in ("reward", "terminated", "truncated")
        )
        last, final = torch.tensor(self.last_values), torch.tensor(self.final_values)
        ahead = ppo.next_values(values, last, truncated, final)
        valid = torch.ones_like(terminated)
        advantages, returns = ppo.gae(
            rewards, values, ahead, terminated, terminated | truncated, valid, config.gamma,
            config.gae_lambda,
        )  # fmt: skip
        advantages = ppo.normalise(advantages, valid, ppo.moments(advantages, valid))
        return advantages.flatten(), returns.flatten()


class Plain:
    """The loop, round by round."""

    def __init__(self, case: Case, policy: Policy, config: RlConfig) -> None:
        """Start the processes; raises SimError."""
        self.case, self.policy, self.config = case, policy, config
        self._envs = Processes(case.world(), config.env.num_parallel_envs, config.training.seed)
        self._views: list[View] = []

    def close(self) -> None:
        """End the processes."""
        self._envs.close()

    def begin(self) -> list[View]:
        """Begin the first episode everywhere; return the observations."""
        self._views = self._envs.begin()
        return self._views

    def turn(self, steps: int | None = None) -> Round:
        """Roll out (`steps` decisions per environment, or as configured) and learn.

        The first one comes after `begin`.
        """
        torch.set_num_threads(self.case.threads)
        steps = steps or self.config.training.rollout_steps
        started_s = time.perf_counter()
        story = self._roll_out(steps)
        synchronise(self.case.device)
        rolled_s = time.perf_counter()
        samples, moved = self._learn(story)
        synchronise(self.case.device)
        ended_s = time.perf_counter()
        count = sum(map(len, story.choices))
        return Round(
            count, count, samples, moved, story.simulate_s, rolled_s - started_s, ended_s - rolled_s
        )

    def _roll_out(self, steps: int) -> Story:
        story = Story()
        for _ in range(steps):
            choices = [self.policy.choose(view) for view in self._views]
            targets = list(map(self.policy.target, choices, self._views))
            started_s = time.perf_counter()
            seen = self._envs.step(targets)
            story.simulate_s += time.perf_counter() - started_s
            story.choices.append(choices)
            story.seen.append(seen)
            story.final_values.append([self._worth(one.final) for one in seen])
            self._views = [one.view for one in seen]
        story.last_values = [self._worth(view) for view in self._views]
        return story

    def _worth(self, view: View | None) -> float:
        return 0.0 if view is None else self.policy.choose(view, length=1).value

    def _learn(self, story: Story) -> tuple[int, int]:
        """Return samples learned from, and steps of the optimizer."""
        config, device = self.config.ppo, self.case.device
        advantages, returns = story.judged(config)
        choices = [choice for row in story.choices for choice in row]
        samples = moved = 0
        for _ in range(config.epochs):
            order = torch.randperm(len(choices))
            for batch in order.tensor_split(-(-len(choices) // config.minibatch_size)):
                for part in batch.split(config.micro_batch_size):
                    chosen = [choices[place] for place in part.tolist()]
                    judged = self.policy.judge(
                        torch.cat([choice.pixels for choice in chosen]),
                        [choice.prompt for choice in chosen],
                        torch.stack([choice.tokens for choice in chosen]).to(device),
                    )
                    taken = OldSamples(
                        log_probs=torch.stack([choice.log_probs for choice in chosen]).to(device),
                        advantages=advantages[part].to(device),
                        values=torch.tensor([choice.value for choice in chosen], device=device),
                        returns=returns[part].to(device),
                        weights=torch.full((len(part),), 1 / len(batch), device=device),
                    )
                    torch.autograd.backward(ppo.ppo_loss(judged, taken, config).total)
                    samples += len(part)
                nn.utils.clip_grad_norm_(self.policy.learning, config.max_grad_norm)
                self.policy.optimizer.step()
                self.policy.optimizer.zero_grad()
                moved += 1
        return samples, moved
