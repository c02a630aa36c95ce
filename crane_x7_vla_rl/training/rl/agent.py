"""Policy and value head while they learn: one module, spread over processes, and its optimizer.

A loaded OpenVLA, with adapters or freed, and a value head → an `Agent`, which acts in rollouts
(`acting`, `value`) and learns in updates with the same model and head.

Legend: B samples, D tokens of a prediction, H the policy's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.evaluate import Evaluation, evaluate
from crane_x7_vla_rl.policies.openvla.run.gaussian import (
    GaussianEvaluation,
    GaussianRunner,
    Noise,
    evaluate_gaussian,
    evaluate_head,
)
from crane_x7_vla_rl.policies.openvla.run.oft import OpenVLAOft
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.merged import Merged
from crane_x7_vla_rl.training import learner
from crane_x7_vla_rl.training.checkpoints import chunk_files
from crane_x7_vla_rl.training.errors import PpoError
from crane_x7_vla_rl.training.learner import BASE_RATE, RATE, Learner
from crane_x7_vla_rl.training.rl import critics, value_head
from crane_x7_vla_rl.training.rl.critics import Critic
from crane_x7_vla_rl.training.rl.ppo import PolicyOutput
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig

POLICY: Final = "policy."
VALUE: Final = "value_head."
FILM: Final = ".film."


class ActorCritic(nn.Module):
    """A policy and the critic that values what it sees, or what is true of the scene."""

    def __init__(
        self, policy: OpenVLA, value_head: Critic | None, chunks: OpenVLAOft | None = None,
        noise: Noise | None = None,
    ) -> None:  # fmt: skip
        """`chunks`: the policy with OpenVLA-OFT's head, which learns, too; see `run.gaussian`."""
        super().__init__()
        self.policy = policy
        self.value_head = value_head
        self.head = None if chunks is None else chunks.head
        self.proprio = None if chunks is None else chunks.proprio
        self.noise = noise
        parts = policy, self.proprio
        below = [p for part in parts if part is not None for p in part.parameters()]
        self.head_only = self.head is not None and not any(p.requires_grad for p in below)
        """Whether the model below OpenVLA-OFT's head is still: updates then start from the hidden
        states that the head read in the rollout."""

    def forward(
        self, pixels: Tensor, prompts: Sequence[Tensor], tokens: Tensor, temperature: float,
        detach: bool, seen: Tensor | None = None, state: Tensor | None = None,
    ) -> PolicyOutput:  # fmt: skip
        """Evaluate actions; see `run.evaluate` for the shapes. `detach`: values move no policy.

        `pixels` are what the buffer holds: maybe patches, or hidden states where the head alone
        learns.
        `seen` (B, C): what a separate critic saw in the rollout; None: the hidden state. `state`
        (B, P): normalised joints, which a policy with OpenVLA-OFT's head reads.
        """
        found = self._evaluate(pixels, prompts, tokens, temperature, state)
        values = None
        if self.value_head is not None and seen is not None:
            values = self.value_head(seen)
        elif self.value_head is not None:
            values = self.value_head(found.hidden.detach() if detach else found.hidden)
        return PolicyOutput(found.log_probs, found.entropy, values)

    def _evaluate(
        self, pixels: Tensor, prompts: Sequence[Tensor], tokens: Tensor, temperature: float,
        state: Tensor | None,
    ) -> Evaluation | GaussianEvaluation:  # fmt: skip
        if self.head is None or self.noise is None or state is None:
            return evaluate(self.policy, pixels, prompts, tokens, temperature)
        noise, heads = self.noise.at(temperature), (self.head, self.proprio)
        if self.head_only:
            return evaluate_head(self.head, pixels, tokens, noise)
        return evaluate_gaussian(self.policy, heads, pixels, prompts, state, tokens, noise)

    def ready(self) -> None:
        """Do nothing, as a first pass forward: FSDP then knows which module is the whole."""


@dataclass(frozen=True, eq=False)
class Agent(Learner):
    """What acts, values and learns; its module is an `ActorCritic`.

    Its optimizer has a group for the policy, one for the value head and one for OpenVLA-OFT's
    heads, in this order; one that does not exist or does not learn is left out.
    """

    core: ActorCritic
    """The module before it was spread over processes."""
    merged: Merged | None
    """The policy that acts, if it is another model than the one that learns."""
    runner: Runner | GaussianRunner
    """What runs the model that acts."""

    @property
    def policy(self) -> OpenVLA:
        """The model that acts, adapters included."""
        return self.core.policy

    @contextmanager
    def acting(self) -> Iterator[Runner | GaussianRunner]:
        """Yield what runs the policy, ready to act; every process must enter, none must wait.

        FSDP's parts are gathered once for a whole rollout: gathering each layer for each token
        would take hundreds of times as long, and processes would have to act in step.
        """
        if self.merged is not None:
            self.merged.refresh()
            yield self.runner
            return
        self.core.ready()
        with learner.gathered(self.module):
            yield self.runner
        if not self.policy.owns_memory:
            self.runner.forget()

    @torch.no_grad()
    def value(self, seen: Tensor) -> Tensor:
        """Return values (B,) float32 for a rollout's hidden states (B, H), or what else the critic
        sees."""
        if self.core.value_head is None:
            raise PpoError("this agent has no value head; grpo needs no values")
        values: Tensor = self.core.value_head(seen)
        return values

    def widen(self, deviation: float) -> None:
        """Let a policy with OpenVLA-OFT's head act, and learn, with this standard deviation."""
        if isinstance(self.runner, GaussianRunner):
            self.core.noise = self.runner.noise = replace(self.runner.noise, deviation=deviation)

    def restart_moments(self) -> None:
        """Let the optimizer count the policy's steps from 0: those while the value head learned
        alone had no gradient, and their zeros would make the first real steps several times too
        long."""
        critic = self.core.value_head
        valued = set() if critic is None else {id(each) for each in critic.parameters()}
        for group in self.optimizer.param_groups:
            for weights in group["params"]:
                if id(weights) not in valued and weights in self.optimizer.state:
                    self.optimizer.state[weights]["step"].zero_()

    def step(self, policy_scale: float, value_scale: float) -> None:
        """Move the weights at these shares of their learning rates; drop the gradients."""
        acting = () if self.core.head_only else (policy_scale,)
        valued = () if self.core.value_head is None else (value_scale,)
        scales = (*acting, *valued, policy_scale)
        for group, scale in zip(self.optimizer.param_groups, scales, strict=False):
            group[RATE] = group[BASE_RATE] * scale
        self.move()

    def snapshot(self) -> Callable[[], None]:
        """Copy trained weights and optimizer state to the CPU; return what restores them.

        Each process copies and restores its own part.
        """
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        weights = [_copied(p) for p in learning]
        states = [
            {key: _copied(x) if isinstance(x, Tensor) else x for key, x in state.items()}
            for state in (self.optimizer.state.get(p, {}) for p in learning)
        ]

        @torch.no_grad()
        def rewind() -> None:
            self.forget()
            for parameter, weight, before in zip(learning, weights, states, strict=True):
                _local(parameter).copy_(weight)
                if not before:  # it had not made a step yet
                    self.optimizer.state.pop(parameter, None)
                    continue
                for key, x in self.optimizer.state[parameter].items():
                    if isinstance(x, Tensor):
                        _local(x).copy_(before[key])

        return rewind

    def sum(self, figures: Tensor) -> Tensor:
        """Return the sum over all processes; every one of them must call it."""
        total: Tensor = self.accelerator.reduce(figures, reduction="sum")
        return total

    def largest(self, figure: float) -> float:
        """Return the largest of all processes; every one of them must call it."""
        mine = torch.tensor([figure], device=self.accelerator.device)
        return float(self.accelerator.gather(mine).max())

    def tensors(self, step: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return the policy's weights or adapters, and other weights by file; see `kept`.

        The others are the value head, and OpenVLA-OFT's heads after `step` updates.
        """
        found = self.kept(has_adapters(self.policy))
        if self.core.head is not None:  # beside a head its FiLM is needed, also where it is frozen
            weights = self.policy.state_dict().items()
            film = {POLICY + name: x.detach().cpu() for name, x in weights if FILM in name}
            found = film | found
        policy, others = chunk_files.split(found, POLICY, step)
        critic = {
            name.removeprefix(VALUE): x for name, x in found.items() if name.startswith(VALUE)
        }
        return policy, others | ({value_head.FILE: critic} if critic else {})


def build(
    policy: OpenVLA, config: PpoConfig, accelerator: Accelerator,
    sharding: Literal["ddp", "fsdp"] = "ddp", critic: Critic | None = None,
    sampler: GaussianRunner | None = None,
) -> Agent:  # fmt: skip
    """Return an agent of a policy that is on its device, with its adapters or freed weights.

    The critic is made from torch's random state where none comes and PPO needs one. `sampler` runs
    the same policy where its actions come from OpenVLA-OFT's head. Raises PpoError where dropout
    would make updates see other probabilities than rollouts.
    """
    _refuse_dropout(policy)
    if critic is None and config.algorithm == "ppo":
        critic = critics.make(config.value, policy.config.text.hidden_size)
    core = ActorCritic(policy, critic)
    if sampler is not None:
        core = ActorCritic(policy, critic, sampler.policy, sampler.noise)
    core = core.to(accelerator.device)
    learning = [name for name, p in policy.named_parameters() if p.requires_grad]
    if not learning and not core.head_only:
        raise PpoError("the policy has no trainable weights; add adapters, or unfreeze its weights")
    module = learner.spread(core, sharding, accelerator)
    policy.owns_memory = not isinstance(module, FSDPModule)
    register_fsdp_forward_method(module, "ready")  # FSDP alone does anything here
    optimizer = _optimizer(core, config)
    if sampler is not None:
        return Agent(accelerator, module, optimizer, config.max_grad_norm, core, None, sampler)
    merged = Merged(policy) if policy.owns_memory and _mergeable(policy) else None
    runner = Runner(policy if merged is None else merged.model)
    runner.remember = False  # no simulation shows the same image twice
    return Agent(accelerator, module, optimizer, config.max_grad_norm, core, merged, runner)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copied(tensor: Tensor) -> Tensor:
    return _local(tensor.detach()).to("cpu", copy=True)


def _mergeable(policy: OpenVLA) -> bool:
    """Whether a copy with merged adapters predicts what the policy predicts."""
    exact = all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    return exact and has_adapters(policy)


def _optimizer(core: ActorCritic, config: PpoConfig) -> torch.optim.Optimizer:
    """Return AdamW with the groups of an `Agent`.

    It needs the parameters after spreading: updates of earlier ones have no effect.
    """
    rate, decay = config.learning_rate, config.weight_decay
    parts: list[tuple[list[nn.Module], float, float]] = []
    if not core.head_only:
        parts.append(([core.policy], rate, decay))
    if core.value_head is not None:
        parts.append(([core.value_head], config.value.learning_rate, 0.0))
    if core.head is not None:
        heads: list[nn.Module] = [core.head]
        if core.proprio is not None:
            heads.append(core.proprio)
        own = config.head_learning_rate
        parts.append((heads, rate if own is None else own, decay))
    groups = [
        {
            "params": [p for part in modules for p in part.parameters() if p.requires_grad],
            RATE: rate,
            BASE_RATE: rate,
            "weight_decay": decay,
        }
        for modules, rate, decay in parts
    ]
    sharded = any(isinstance(p, DTensor) for p in core.parameters())
    return torch.optim.AdamW(groups, fused=not sharded)  # as in fine-tuning


def _refuse_dropout(policy: OpenVLA) -> None:
    for name, module in policy.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise PpoError(
                f"{name} drops {module.p:g} of its inputs; updates would then compute other"
                " probabilities than the rollout they learn from: set lora.dropout to 0"
            )


def has_adapters(policy: OpenVLA) -> bool:
    """Whether some layer has LoRA matrices beside it."""
    return any(hasattr(module, "active_adapters") for module in policy.modules())


@contextmanager
def adapters_off(policy: OpenVLA) -> Iterator[None]:
    """Restore the policy that training started from, temporarily.

    Raises PpoError for one without adapters.
    """
    # PEFT's own switch would freeze the matrices, too, which DDP and FSDP keep books about.
    layers: list[Any] = [m for m in policy.modules() if hasattr(m, "active_adapters")]
    if not layers:
        raise PpoError(
            "ppo.kl_coefficient is above 0, but the policy has no adapters to switch off, so its"
            " starting weights are not kept; use adapters, or set ppo.kl_coefficient to 0"
        )
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
