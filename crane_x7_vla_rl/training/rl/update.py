"""One update of reinforcement learning. A rollout's buffer → moved weights, and `UpdateMetrics`.

`update` reads top to bottom: check → normalise → probe → minibatches, each of them evaluate → loss
→ gradients → are they finite? → optimizer. All random numbers follow from the update's number and a
seed, so that a resumed run continues bit for bit on a CPU. Processes do the same steps at the same
time, and together what one process would do with all of their environments. Numbers continue those
of `ppo`.

17. Minibatches are sampled again in each epoch from the samples of all processes, each step
    once; all environments have nearly the same share in each (see `buffer.shuffled`).
18. Rollouts and updates read the same bytes with the same code, so before the first step every
    ratio is 1 and every value the rollout's; `ratio_error` and `value_error` measure how nearly.
19. An update ends before the step for which KL to the policy that acted exceeds target_kl, as in
    https://github.com/openai/spinningup (ppo.py), but checked at each minibatch.
20. Before anything moves, the policy loss alone goes backward for the PROBED samples with the
    largest advantages: a gradient of exactly 0 ends the run (`ppo.check_gradient`).
21. Policy and value head have separate learning rates, which may both fall to 0 over a run;
    the gradient is clipped as a whole,
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/ (details 4, 11).
22. NaN or infinity in a loss or gradient ends the run before the step, in all processes.
23. In the first value.warmup updates the value head learns alone.
24. Old log-probabilities and values can be recomputed by the code that evaluates, which rounds as
    it will in the first minibatch; returns and advantages stay.
25. Micro-batches change memory and speed, not the result (see 15).

Legend: T steps of a rollout, N environments of this process, E of all, S = T·N, B of these samples,
D tokens of a prediction.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from crane_x7_vla_rl.training import learner
from crane_x7_vla_rl.training.errors import NotFiniteError, PpoError, SpoiltError
from crane_x7_vla_rl.training.rl import critic_update, ppo
from crane_x7_vla_rl.training.rl.agent import Agent, adapters_off
from crane_x7_vla_rl.training.rl.buffer import Buffer, derive_seed, shuffled
from crane_x7_vla_rl.training.rl.figures import UpdateMetrics
from crane_x7_vla_rl.training.rl.ppo import Losses, OldSamples, PolicyOutput
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig

PROBED: Final = 8
SUMMED: Final = ("policy", "value", "entropy", "ref_kl", "approx_kl", "clip_fraction")
NOTHING: Final = UpdateMetrics(
    policy_loss=0.0, value_loss=0.0, entropy=0.0, approx_kl=0.0, ref_kl=0.0, clip_fraction=0.0,
    explained_variance=0.0, grad_norm=0.0, policy_grad_norm=0.0, ratio_error=0.0, value_error=0.0,
    advantage_mean=0.0, advantage_std=0.0, samples=0, minibatches=0, stopped_early=False,
)  # fmt: skip
"""Of an update that moved nothing."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateIndex:
    """Which update this is."""

    number: int
    """Updates done before."""
    seed: int = 0
    """Of the run; the same in all processes."""
    rate: float = 1.0
    """Share of both learning rates; below 1 where they are annealed."""


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """The samples of this process as an update uses them; flat, S = T·N."""

    buffer: Buffer
    advantages: Tensor
    """(S,), normalised."""
    log_probs: Tensor
    """(S, D)."""
    values: Tensor
    """(S,)."""
    ref_log_probs: Tensor | None
    """(S, D)."""
    valid: Tensor
    """(T, E) bool, of all processes."""

    def old(self, samples: Tensor, weights: Tensor, device: torch.device) -> OldSamples:
        """Return what is known of flat samples (B,) with weights (B,)."""

        def pick(x: Tensor) -> Tensor:
            return x[samples.to(x.device)].to(device)

        action_mask = self.buffer.action_mask
        return OldSamples(
            log_probs=pick(self.log_probs),
            advantages=pick(self.advantages),
            values=pick(self.values),
            returns=pick(self.buffer.returns.flatten()),
            weights=weights.to(device),
            action_mask=None if action_mask is None else pick(action_mask.flatten(0, 1)),
            ref_log_probs=None if self.ref_log_probs is None else pick(self.ref_log_probs),
        )


def update(agent: Agent, buffer: Buffer, config: PpoConfig, index: UpdateIndex) -> UpdateMetrics:
    """Learn from a rollout; every process must call it with its own. One without a sample to learn
    from changes nothing.

    Raises NotFiniteError before a step that would make weights NaN, SpoiltError where the rollout's
    policy has output NaN already, and PpoError.
    """
    where = f"update {index.number + 1}"
    valid = _check(agent, buffer, where)
    if not bool(valid.any()):
        logger.warning("%s: nothing to learn from: %s", where, _why_nothing(config))
        return NOTHING
    advantages, mean, std = _normalised(agent, buffer, config)
    if index.number < config.value.warmup:
        config = _value_alone(config)
    batch = _prepare(agent, buffer, advantages, valid, config)
    probed = _probe(agent, batch, config, where)
    steps, stopped = 0, False
    sums: list[Tensor] = []
    norms: list[float] = []
    errors = (0.0, 0.0)
    for samples, weight in _minibatches(agent, batch, config, index, range(config.epochs)):
        found, first = _minibatch(agent, batch, config, samples, weight)
        norms.append(agent.clip())
        if not sums:
            ratio, value = first.tolist()
            errors = (agent.largest(ratio), agent.largest(value))
        sums.append(found.cpu())
        kl = float(sums[-1][SUMMED.index("approx_kl")])
        if not (math.isfinite(norms[-1]) and bool(torch.isfinite(sums[-1]).all())):
            agent.forget()
            raise _not_finite(where, steps, sums[-1], norms[-1])
        if config.target_kl is not None and kl > config.target_kl:
            agent.forget()
            stopped = True
            break
        agent.step(0.0 if index.number < config.value.warmup else index.rate, index.rate)
        steps += 1
    if index.number < config.value.warmup:
        agent.restart_moments()
    again = range(config.epochs, config.epochs + config.value.extra_epochs)
    if again:
        left = _minibatches(agent, batch, config, index, again)
        critic_update.repeat(agent, buffer, config.value, left, index.rate)
    figures = torch.stack(sums).mean(0).tolist()
    named = dict(zip(SUMMED, figures, strict=True))
    return UpdateMetrics(
        policy_loss=named["policy"],
        value_loss=named["value"],
        entropy=named["entropy"],
        approx_kl=float(sums[-1][SUMMED.index("approx_kl")]),
        ref_kl=named["ref_kl"],
        clip_fraction=named["clip_fraction"],
        explained_variance=_explained_variance(agent, buffer),
        grad_norm=sum(norms) / len(norms),
        policy_grad_norm=probed,
        ratio_error=errors[0],
        value_error=errors[1],
        advantage_mean=mean,
        advantage_std=std,
        samples=int(valid.sum()),
        minibatches=steps,
        stopped_early=stopped,
    )


def _why_nothing(config: PpoConfig) -> str:
    if config.algorithm == "grpo":
        return "no group has whole episodes that ended differently"
    return "the simulations of all steps were lost"


def _check(agent: Agent, buffer: Buffer, where: str) -> Tensor:
    """Return which samples of all processes are valid, (T, E), in all of them alike."""
    device = agent.accelerator.device
    shapes = agent.accelerator.gather(torch.tensor([buffer.shape], device=device))
    if not bool((shapes == shapes[0]).all()):
        raise PpoError(f"{where}: rollouts of processes are {shapes.tolist()}, expected the same")
    broken = buffer.first_non_finite()
    if agent.largest(float(bool(broken))) > 0:
        raise SpoiltError(  # what simulations return was checked before
            f"{where}: {broken or 'a figure elsewhere'} is NaN or infinite, expected numbers"
            " in all valid steps of a rollout. The previous update made the policy output NaN, so"
            " it is not saved; resume from the last checkpoint with a lower ppo.learning_rate"
        )
    steps, environments = buffer.shape
    gathered = agent.accelerator.gather(buffer.valid.to(device, torch.uint8).contiguous())
    valid: Tensor = gathered.view(-1, steps, environments).permute(1, 0, 2).flatten(1).cpu().bool()
    return valid


def _normalised(agent: Agent, buffer: Buffer, config: PpoConfig) -> tuple[Tensor, float, float]:
    """Return advantages (T, N) as the loss needs them, and mean and deviation before."""
    device = agent.accelerator.device
    total = agent.sum(ppo.moments(buffer.advantages, buffer.valid).to(device))
    mean, std = ppo.mean_and_std(total)
    if config.normalise_advantages and config.algorithm == "ppo":
        return ppo.normalise(buffer.advantages, buffer.valid, total), mean, std
    return torch.where(buffer.valid, buffer.advantages, 0.0), mean, std


def _value_alone(config: PpoConfig) -> PpoConfig:
    return replace(
        config,
        policy_coefficient=0.0,
        entropy_coefficient=0.0,
        kl_coefficient=0.0,
        value=replace(config.value, detach=True),
    )


def _prepare(
    agent: Agent, buffer: Buffer, advantages: Tensor, valid: Tensor, config: PpoConfig
) -> UpdateBatch:
    log_probs, values = buffer.log_probs.flatten(0, 1), buffer.values.flatten()  # (S, D), (S,)
    if config.old_log_probs == "recomputed":
        log_probs, found = _evaluate_all(agent, buffer, config, nullcontext())
        values = values if found is None else found
    reference = None
    if config.kl_coefficient > 0:
        reference, _ = _evaluate_all(agent, buffer, config, adapters_off(agent.policy))
    return UpdateBatch(buffer, advantages.flatten(), log_probs, values, reference, valid)


@torch.no_grad()
def _evaluate_all(
    agent: Agent, buffer: Buffer, config: PpoConfig, how: AbstractContextManager[None]
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities (S, D) and values (S,) of all samples of this process."""
    everything = torch.arange(buffer.advantages.numel())  # (S,)
    with how:
        parts = [
            _evaluate(agent, buffer, samples, config)
            for samples in torch.split(everything, config.micro_batch_size)
        ]
    values = [part.values for part in parts if part.values is not None]
    log_probs = torch.cat([part.log_probs for part in parts])
    return log_probs, torch.cat(values) if values else None


def _evaluate(agent: Agent, buffer: Buffer, samples: Tensor, config: PpoConfig) -> PolicyOutput:
    tokens = buffer.tokens.flatten(0, 1)[samples.to(buffer.tokens.device)]  # (B, D)
    pixels = buffer.pixels(agent.policy, samples)  # (B, …), see Buffer.images
    prompts = buffer.prompts_of(samples)
    device = agent.accelerator.device
    seen, state = buffer.seen_by_critic(samples, device), buffer.states_of(samples, device)
    output: PolicyOutput = agent.module(
        pixels, prompts, tokens, config.temperature, config.value.detach, seen, state
    )
    return output


def _probe(agent: Agent, batch: UpdateBatch, config: PpoConfig, where: str) -> float:
    """Return the length of the policy gradient alone; raises PpoError where it is wrongly 0."""
    if config.policy_coefficient == 0:
        return 0.0
    size = batch.advantages.abs()  # (S,)
    if batch.buffer.action_mask is not None:  # actions that never moved the arm have no gradient
        size = size * batch.buffer.action_mask.flatten(0, 1).any(-1).to(size.device)
    largest = agent.largest(float(size.max()))
    if largest == 0:
        return 0.0
    samples = size.topk(min(PROBED, len(size))).indices
    weights = (size[samples] > 0) / (PROBED * agent.accelerator.num_processes)
    output = _evaluate(agent, batch.buffer, samples, config)
    old = batch.old(samples, weights, output.log_probs.device)
    loss = ppo.ppo_loss(output, old, _policy_alone(config)).total
    if not loss.requires_grad:
        ppo.check_gradient(0.0, largest, where)
    torch.autograd.backward(loss * agent.accelerator.num_processes)  # see `_minibatch`
    norm = learner.clip(agent.module, math.inf)
    agent.forget()
    if not math.isfinite(norm):
        raise NotFiniteError(
            f"{where}: the policy gradient is {norm}, expected a finite number. The weights are"
            " unchanged; resume from the last checkpoint with a lower ppo.learning_rate"
        )
    ppo.check_gradient(norm, largest, where)
    return norm


def _policy_alone(config: PpoConfig) -> PpoConfig:
    """Weigh all else with 0: every weight still gets a gradient, as DDP expects; clip nothing."""
    return replace(
        config,
        clip_low=1.0,
        clip_high=math.inf,
        dual_clip=None,
        entropy_coefficient=0.0,
        kl_coefficient=0.0,
        value=replace(config.value, coefficient=0.0),
    )


def _minibatches(
    agent: Agent, batch: UpdateBatch, config: PpoConfig, index: UpdateIndex, epochs: range
) -> Iterator[tuple[Sequence[Tensor], float]]:
    """Yield the samples of this process in each micro-batch of a minibatch, and what one weighs.

    Every process yields as many micro-batches as the others, maybe empty ones.
    """
    generator = torch.Generator()
    steps, environments = batch.valid.shape
    mine, rank = batch.buffer.shape[1], int(agent.accelerator.process_index)
    count = -(-steps * environments // config.minibatch_size)
    for epoch in epochs:
        generator.manual_seed(derive_seed(index.seed, index.number, epoch))
        for samples in shuffled(steps, environments, generator).tensor_split(count):
            samples = samples[batch.valid.flatten()[samples]]  # (B,)
            if not len(samples):
                continue
            owners = samples % environments // mine  # (B,), ranks
            busiest = int(owners.bincount().max())
            own = samples[owners == rank]
            local = own // environments * mine + own % environments - rank * mine
            yield local.tensor_split(-(-busiest // config.micro_batch_size)), 1 / len(samples)


def _minibatch(
    agent: Agent, batch: UpdateBatch, config: PpoConfig, parts: Sequence[Tensor], weight: float
) -> tuple[Tensor, Tensor]:
    """Add up gradients; return sums over processes (SUMMED), and errors of ratio and value here.

    It does not wait for the device, so the next micro-batch is enqueued while this one is computed.
    """
    sums: list[Tensor] = []
    errors: list[Tensor] = []
    for index, samples in enumerate(parts):
        weights = torch.full(samples.shape, weight)
        if not len(samples):  # the others have something to do, and wait for this one's gradients
            samples, weights = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        last = index == len(parts) - 1
        with agent.accumulating(last):
            output = _evaluate(agent, batch.buffer, samples, config)
            old = batch.old(samples, weights, output.log_probs.device)
            losses = ppo.ppo_loss(output, old, config)
            # Processes average their gradients, but the weights are made for a sum.
            torch.autograd.backward(losses.total * agent.accelerator.num_processes)
        sums.append(_listed(losses))
        errors.append(_errors(output, old))
    return agent.sum(torch.stack(sums).sum(0)), torch.stack(errors).amax(0)


def _listed(losses: Losses) -> Tensor:
    return torch.stack([getattr(losses, name).double() for name in SUMMED])


@torch.no_grad()
def _errors(output: PolicyOutput, old: OldSamples) -> Tensor:
    """Return (2,): largest distance of ratios from 1, and of values from the rollout's."""
    log_ratio = output.log_probs - old.log_probs  # (B, D)
    if old.action_mask is not None:
        log_ratio = torch.where(old.action_mask, log_ratio, 0.0)
    ratio = log_ratio.sum(-1).expm1().abs()  # (B,)
    value = torch.zeros_like(ratio) if output.values is None else (output.values - old.values).abs()
    both = torch.stack([ratio, value])  # (2, B)
    return torch.where(old.weights > 0, both, 0.0).amax(1)


def _explained_variance(agent: Agent, buffer: Buffer) -> float:
    device = agent.accelerator.device
    left = agent.sum(ppo.moments(buffer.returns - buffer.values, buffer.valid).to(device))
    whole = agent.sum(ppo.moments(buffer.returns, buffer.valid).to(device))
    spread = ppo.mean_and_std(whole)[1] ** 2
    return 1 - ppo.mean_and_std(left)[1] ** 2 / spread if spread > 0 else 0.0


def _not_finite(where: str, steps: int, found: Tensor, norm: float) -> NotFiniteError:
    named = dict(zip(SUMMED, found.tolist(), strict=True))
    return NotFiniteError(
        f"{where}, minibatch {steps + 1}: the policy loss is {named['policy']}, the value loss"
        f" {named['value']} and the gradient {norm}, expected finite numbers."
        f" The {steps} minibatches of this update are discarded; resume from the last"
        " checkpoint with a lower ppo.learning_rate"
    )
