"""Rollouts: a policy acts in all environments at the same time.

Environments, agent and rules → a `Collected`: the buffer that an update learns from, with
advantages, and the episodes that ended. Environments alternate in groups: while one group is
simulated, the policy predicts for the next. Consecutive groups can share a prediction; together
they are a block. On CUDA, the next block's prediction is enqueued before the CPU waits for the last
one, so with two blocks the GPU does not wait for Python. Each image is
cropped and resized once, into the buffer; the policy acts on those bytes, and updates learn from
the same ones. Actions are sampled from generators that the numbers of update and environment seed,
so that a resumed run samples the same, on any number of processes.

Legend: T steps of a rollout, N environments of this process, n of a block or group, D tokens of a
prediction, S pixels of a side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import crop_and_resize
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.targets import joint_targets
from crane_x7_vla_rl.sim.vector.protocol import EpisodeResult, Steps, VectorEnv, Views
from crane_x7_vla_rl.training.errors import NotFiniteError
from crane_x7_vla_rl.training.rl import grpo, ppo
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.buffer import Buffer, derive_seed
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig
from crane_x7_vla_rl.training.rl.predictor import Beside, Decision, Predictor
from crane_x7_vla_rl.training.session import Clock
from crane_x7_vla_rl.types import Array


@dataclass(frozen=True)
class RolloutConfig:
    """Who acts, where, and by which rules."""

    env: VectorEnv
    agent: Agent
    codec: Codec
    ppo: PpoConfig
    steps: int
    """T."""
    seed: int
    """Of the run."""
    keep_patches: bool = False
    """Keep what vision made of the pictures; for a policy whose vision does not learn."""
    ahead: bool | None = None
    """Enqueue a block's prediction before waiting for the one before; None: only on CUDA, because
    on a CPU it would delay the simulation. The results are the same."""
    batch: int | None = None
    """Most environments of a prediction, but at least a group; None: half of them on CUDA, where
    two blocks keep the GPU busy, and a group on a CPU. The results are the same up to rounding."""
    same_scene: int = 1
    """Environments in a row whose episodes of the same number have the same scene."""
    execute_steps: int | None = None
    """Steps of each prediction that are executed before the next; None: all."""
    delay: int = 0
    """Control steps from an image to the first one that uses its answer; as the environments'."""
    longest: int = 1
    """Decisions of the longest episode, at most."""

    @property
    def executed(self) -> int:
        """Control steps of a decision."""
        return self.execute_steps or self.codec.inputs.chunk_steps

    @property
    def discounts(self) -> tuple[float, float]:
        """Gamma and lambda of a decision."""
        return self.ppo.discounts(self.codec.inputs.period_s * self.executed)


@dataclass(frozen=True, eq=False)
class Collected:
    """One rollout of this process."""

    buffer: Buffer
    episodes: tuple[EpisodeResult, ...]
    """Those that ended."""
    ended: tuple[int, ...]
    """The step in which each of them did."""
    env_steps: int
    """Executed control steps."""
    discarded: int
    """Decisions that a crashed simulation lost."""
    simulate_s: float
    """Waiting for simulations."""
    infer_s: float
    """Time of predictions and values."""


def collect(
    config: RolloutConfig,
    number: int,
    stop: Callable[[], bool] = bool,
    clock: Clock = time.perf_counter,
) -> Collected | None:
    """Return the rollout of update `number` (from 0), or None where `stop` ended it early.

    Raises SimError, NotFiniteError for NaN or infinity from the simulation, and
    SpoiltError for logits and values that are NaN or infinite.
    """
    with config.agent.acting() as runner:
        return _Collection(config, runner, number, clock).run(stop)


def blocks(groups: Sequence[range], batch: int) -> tuple[range, ...]:
    """Return ranges of consecutive groups with at most `batch` environments, at least one group."""
    found: list[range] = []
    first = count = 0
    for index, envs in enumerate(groups):
        if index > first and count + len(envs) > batch:
            found.append(range(first, index))
            first, count = index, 0
        count += len(envs)
    return (*found, range(first, len(groups)))


class _Collection:
    """A rollout in progress."""

    def __init__(
        self, config: RolloutConfig, runner: Runner | GaussianRunner, number: int, clock: Clock
    ) -> None:
        self.config, self.runner, self.number, self.clock = config, runner, number, clock
        self.policy = runner.model
        self.predictor = Predictor(config.agent, runner, number, config.ppo)
        steps, count = config.steps, config.env.num_envs
        device = config.agent.accelerator.device
        side, answer = self.policy.config.image_size, config.codec.answer_length
        self.images = torch.empty(steps, count, side, side, 3, dtype=torch.uint8, device=device)
        self.patches: Tensor | None = None
        """(T, N, I·patches, H), where they are kept."""
        self.read: Tensor | None = None
        """(T, N, D, H), what OpenVLA-OFT's head read, where it alone learns."""
        self.seen: Tensor | None = None
        """(T, N, C), what a separate critic sees."""
        self.prompts: list[list[Tensor]] = [[torch.empty(0)] * count for _ in range(steps)]
        self.instructions: list[list[str]] = [[""] * count for _ in range(steps)]
        self.chunks = runner if isinstance(runner, GaussianRunner) else None
        self.states: Tensor | None = None
        """(T, N, P), where OpenVLA-OFT's head reads it."""
        kind = torch.int64 if self.chunks is None else torch.float32
        self.tokens = torch.zeros(steps, count, answer, dtype=kind)
        self.log_probs = torch.zeros(steps, count, answer)
        self.action_mask = torch.zeros(steps, count, answer, dtype=torch.bool)
        self.values, self.final_values, self.rewards = torch.zeros(3, steps, count).unbind()
        self.terminated, self.truncated, self.lost = torch.zeros(
            3, steps, count, dtype=torch.bool
        ).unbind()
        self.began = [0] * count
        """Step of this rollout in which each environment's episode began, or 0."""
        self.number_of = [0] * count
        """Episodes of this rollout that ended in each environment."""
        self.numbers = torch.zeros(steps, count, dtype=torch.int64)
        """The same, (T, N), at each step."""
        self.episodes: list[EpisodeResult] = []
        self.ended: list[int] = []
        self.env_steps = 0
        self.simulate_s = self.infer_s = 0.0
        self.ahead = device.type == "cuda" if config.ahead is None else config.ahead
        self.pending: Decision | None = None
        half = -(-count // 2) if device.type == "cuda" else 1
        self.blocks = blocks(config.env.groups, config.batch or half)
        first = config.agent.accelerator.process_index * count
        self.generators = [
            torch.Generator(device).manual_seed(derive_seed(config.seed, number, first + env))
            for env in range(count)
        ]
        """One for each environment, whichever process it is in."""

    def run(self, stop: Callable[[], bool]) -> Collected | None:
        """Roll out; the environments are idle afterwards."""
        groups = range(len(self.config.env.groups))
        for step in range(self.config.steps):
            for block in self.blocks:
                if step:
                    if self.pending is not None and self.pending.block == block:
                        self._act()
                    for group in block:
                        self._receive(step - 1, group)
                asked = self._predict(step, block)
                self._act()
                self.pending = asked
                if not self.ahead:
                    self._act()
            if stop():
                self._act()
                for group in groups:
                    self._receive(step, group)
                return None
        self._act()
        for group in groups:
            self._receive(self.config.steps - 1, group)
        return self._collected(torch.cat([self._look_ahead(block) for block in self.blocks]))

    # --- one block --------------------------------------------------------------------------------

    def _predict(self, step: int, block: range) -> Decision:
        """Predict for a block's groups; on CUDA this returns while the prediction is computed."""
        started_s = self.clock()
        part = self._part(block)
        shown = self.images[step, part]  # (n, S, S, 3), a view of the buffer
        beside, told = self._see(block, step, shown)
        measured = beside.measured
        prompts = self.config.codec.prompts(told, measured)
        seen = self.policy.normalise(shown)
        if self.config.keep_patches:
            seen = self._keep(step, part, seen, prompts)
        how = Sampling(self.config.ppo.temperature, self.generators[part])
        length = self.config.codec.answer_length
        answer = self.predictor.ask(step, seen, prompts, length, how, beside)
        self.seen = self._put(self.seen, step, part, answer.seen)
        if self.config.agent.core.head_only:
            self.read = self._put(self.read, step, part, answer.read)
        if self.chunks is not None:
            self.states = self._put(self.states, step, part, self.chunks.state(measured))
        self.prompts[step][part] = prompts
        self.instructions[step][part] = told
        self.infer_s += self.clock() - started_s
        return Decision(step, block, measured, answer)

    def _see(self, block: range, step: int, shown: Tensor) -> tuple[Beside, list[str]]:
        """Put a block's images into `shown` (n, S, S, 3); return the rest and instructions."""
        measured, true_states, told, at = [], list[Tensor](), list[str](), 0
        for group in block:
            views = self.config.env.look(group)
            measured.append(self._measured(views, step))
            true_states += self._true_state(views)
            rows = shown[at : at + len(views.instructions)]
            crop_and_resize(views.images, self.config.codec.inputs.view, rows)
            told += views.instructions
            at += len(rows)
        true_state = torch.cat(true_states) if true_states else None
        return Beside(np.concatenate(measured), true_state), told

    def _true_state(self, views: Views) -> list[Tensor]:
        """Return a copy of (n, S) on the agent's device, or nothing where none is told."""
        if views.true_state is None:
            return []
        copied = torch.as_tensor(views.true_state).clone()  # the simulation writes into it again
        return [copied.to(self.images.device)]

    def _put(
        self, kept: Tensor | None, step: int, part: slice, rows: Tensor | None
    ) -> Tensor | None:
        """Return what is kept of all steps, (T, N, …), with these rows; None where none is."""
        if rows is None:
            return None
        if kept is None:
            steps, count = self.images.shape[:2]
            kept = rows.new_zeros(steps, count, *rows.shape[1:])
        kept[step, part] = rows
        return kept

    def _part(self, block: range) -> slice:
        """Return the environments of a block."""
        groups = self.config.env.groups
        return slice(groups[block.start].start, groups[block.stop - 1].stop)

    def _act(self) -> None:
        """Wait for the tokens of the pending decision, if there is one, and send its actions."""
        decision, self.pending = self.pending, None
        if decision is None:
            return
        started_s = self.clock()
        step, part = decision.step, self._part(decision.block)
        found = self.predictor.wait(step, decision.answer)
        self.tokens[step, part], self.log_probs[step, part], self.values[step, part] = found
        targets = self._targets(self.tokens[step, part], decision.measured)  # (n, steps, 8) rad
        self.infer_s += self.clock() - started_s
        for group in decision.block:
            envs = self.config.env.groups[group]
            self.config.env.send(group, targets[envs.start - part.start : envs.stop - part.start])

    def _receive(self, step: int, group: int) -> None:
        """Record the results of a group's step."""
        started_s = self.clock()
        steps = self.config.env.receive(group)
        self.simulate_s += self.clock() - started_s
        envs = self.config.env.groups[group]
        part = slice(envs.start, envs.stop)
        self.rewards[step, part] = torch.as_tensor(steps.reward, dtype=torch.float32)
        self.terminated[step, part] = torch.as_tensor(steps.terminated)
        self.truncated[step, part] = torch.as_tensor(steps.truncated)
        self._check_rewards(step, envs)
        taken = torch.as_tensor(steps.steps)
        each = self.config.codec.answer_length // self.config.codec.inputs.chunk_steps
        index = torch.arange(self.config.codec.answer_length) // each  # (D,), step of each token
        self.action_mask[step, part] = self._executed(index, steps, taken)
        self.env_steps += int(taken.sum())
        self.episodes += steps.episodes
        self.ended += [step] * len(steps.episodes)
        self._note_ends(step, envs, steps)
        if steps.final is not None:
            self._value_final(step, envs, steps.final)

    def _executed(self, index: Tensor, steps: Steps, taken: Tensor) -> Tensor:
        """Return (n, D) bool: which numbers the arm follows, and those that these depend on."""
        late = torch.zeros_like(taken) if steps.late is None else torch.as_tensor(steps.late)
        ended = torch.as_tensor(steps.terminated | steps.truncated)
        until = taken + torch.where(ended, 0, late)  # followed while the next answer is under way
        # Those before the delay never move the arm, but those after them may depend on them.
        alone = self.chunks is not None and not self.chunks.noise.correlation
        since = late if alone else torch.zeros_like(late)
        return (index >= since[:, None]) & (index < until[:, None])

    def _note_ends(self, step: int, envs: range, steps: Steps) -> None:
        for row, env in enumerate(envs):
            if steps.discarded[row]:  # the outcome of its episode so far is unknown
                self.lost[self.began[env] : step + 1, env] = True
            self.numbers[step, env] = self.number_of[env]
            if steps.discarded[row] or steps.terminated[row] or steps.truncated[row]:
                self.began[env] = step + 1
                self.number_of[env] += 1

    def _value_final(self, step: int, envs: range, final: Views) -> None:
        """Value the last views of truncated episodes, which belong to no step."""
        if self.config.ppo.algorithm != "ppo":
            return
        started_s = self.clock()
        rows = np.asarray(final.rows)
        part = next(part for part in map(self._part, self.blocks) if envs.start < part.stop)
        values = self._value_views(final, step, part.stop - part.start)
        self.final_values[step, torch.as_tensor(rows + envs.start)] = values
        self.infer_s += self.clock() - started_s

    def _look_ahead(self, block: range) -> Tensor:
        """Return (n,): values of the observations after the last step."""
        part = self._part(block)
        count = part.stop - part.start
        if self.config.ppo.algorithm != "ppo":
            return torch.zeros(count)
        started_s = self.clock()
        side = self.images.shape[2]
        shown = self.images.new_empty(count, side, side, 3)
        beside, told = self._see(block, self.config.steps, shown)
        prompts = self.config.codec.prompts(told, beside.measured)
        values = self._value(shown, prompts, self.config.steps, beside)
        self.infer_s += self.clock() - started_s
        return values

    def _value_views(self, views: Views, step: int, usual: int) -> Tensor:
        """Return (rows,) values; on CUDA as many rows as usual, for which there are graphs."""
        measured, count = self._measured(views, step), len(views.instructions)
        side = self.images.shape[2]
        shown = self.images.new_empty(count, side, side, 3)
        crop_and_resize(views.images, self.config.codec.inputs.view, shown)
        prompts = self.config.codec.prompts(views.instructions, measured)
        if shown.is_cuda and count < usual:
            shown = torch.cat([shown, shown[:1].expand(usual - count, -1, -1, -1)])
            prompts = [*prompts, *[prompts[0]] * (usual - count)]
            measured = np.concatenate([measured, measured[:1].repeat(usual - count, 0)])
        beside = Beside(measured, next(iter(self._true_state(views)), None))
        return self._value(shown, prompts, step, beside)[:count]

    def _value(self, shown: Tensor, prompts: list[Tensor], step: int, beside: Beside) -> Tensor:
        """Return (n,) values of images (n, S, S, 3)."""
        return self.predictor.value(step, self.policy.normalise(shown), prompts, beside)

    # --- the policy ------------------------------------------------------------------------------

    @torch.no_grad()
    def _keep(self, step: int, part: slice, pixels: Tensor, prompts: list[Tensor]) -> Tensor:
        """Return what the language model sees of these pixels, kept for the update."""
        if self.chunks is None:
            seen = self.policy.encode(pixels)
        else:
            seen = self.chunks.encode(pixels, prompts)
        self.patches = self._put(self.patches, step, part, seen)
        return seen

    def _targets(self, tokens: Tensor, measured: Array) -> Array:
        """Return (n, steps, 8) rad; an arm whose step is out of reach stays where it is."""
        used = self.config.executed + self.config.delay
        actions = self.config.codec.actions(tokens)[:, :used]
        rows = []
        for steps, here in zip(actions, measured, strict=True):
            try:
                rows.append(joint_targets(steps, here))
            except UnreachableError:
                rows.append(np.repeat(here[None], len(steps), axis=0))
        targets = np.stack(rows).astype(np.float32)
        missing = used - targets.shape[1]  # after its last step a chunk stays there
        return np.pad(targets, ((0, 0), (0, missing), (0, 0)), mode="edge")

    # --- checks and results ----------------------------------------------------------------------

    def _measured(self, views: Views, step: int) -> Array:
        """Return (n, 8) rad; raises NotFiniteError."""
        state: Any = views.state_rad
        measured = state.cpu().numpy() if isinstance(state, Tensor) else np.array(state)
        if not np.isfinite(measured).all():
            row = int(np.argwhere(~np.isfinite(measured))[0, 0])
            raise NotFiniteError(
                f"update {self.number + 1}, step {step}: the measured joints of row {row} are"
                f" {measured[row].tolist()}, expected numbers; the simulation has become unstable."
                " Nothing was learned from it; resume from the last checkpoint with --resume"
            )
        return measured.astype(np.float64)

    def _check_rewards(self, step: int, envs: range) -> None:
        rewards = self.rewards[step, envs.start : envs.stop]
        if not bool(torch.isfinite(rewards).all()):
            env = envs[int((~torch.isfinite(rewards)).nonzero()[0])]
            raise NotFiniteError(
                f"update {self.number + 1}, step {step}: environment {env} returned the reward"
                f" {float(self.rewards[step, env])}, expected a finite number. Nothing was learned"
                " from it; resume from the last checkpoint with --resume"
            )

    def _collected(self, last_values: Tensor) -> Collected:
        advantages, returns, valid = self._advantages(last_values)
        kept = self.patches if self.read is None else self.read
        buffer = Buffer(
            images=self.images if kept is None else kept,
            prompts=self.prompts,
            tokens=self.tokens,
            log_probs=self.log_probs,
            advantages=advantages,
            valid=valid,
            values=self.values,
            returns=returns,
            action_mask=self.action_mask,
            seen=self.seen,
            state=self.states,
        )
        return Collected(
            buffer=buffer,
            episodes=tuple(self.episodes),
            ended=tuple(self.ended),
            env_steps=self.env_steps,
            discarded=int(self.lost.sum()),
            simulate_s=self.simulate_s,
            infer_s=self.infer_s,
        )

    def _groups(self) -> Tensor:
        """Return (T, N) int64: the number of the scene, or of the instruction, of each step."""
        same, count = self.config.same_scene, self.numbers.shape[1]
        if same > 1:
            return self.numbers * count + torch.arange(count) // same
        told = sorted({text for row in self.instructions for text in row})
        return torch.tensor([[told.index(text) for text in row] for row in self.instructions])

    def _advantages(self, last_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return advantages, returns, and which steps may be learned from; each (T, N)."""
        ended, valid = self.terminated | self.truncated | self.lost, ~self.lost
        if self.config.ppo.algorithm == "ppo":
            ahead = ppo.next_values(self.values, last_values, self.truncated, self.final_values)
            gamma, gae_lambda = self.config.discounts
            return *ppo.gae(
                self.rewards, self.values, ahead, self.terminated, ended, valid, gamma, gae_lambda
            ), valid
        groups = self._groups()
        whole = self.terminated | self.truncated
        advantages, taught = grpo.group_advantages(
            self.rewards, whole, valid, groups,
            self.config.longest, self.config.ppo.normalise_advantages,
        )  # fmt: skip
        return advantages, torch.zeros_like(advantages), taught
