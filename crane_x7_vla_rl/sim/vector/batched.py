"""Environments in one simulation that steps all scenes together, on a GPU: tensors stay on it.

`BatchedScenes` has the parts that differ between simulators; this module has those that are the
same: chunks, ends, rewards, seeds and resets. A scene whose episode has ended within a chunk idles,
its arm held in place, until the chunk's end; then all ended scenes start their next episodes
together. One simulation cannot overlap with itself, so there is one group, and `send` only stores
the targets.

Legend: N scenes, T steps of a chunk, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.protocol import (
    EpisodeResult,
    Steps,
    Views,
    checked_state,
    checked_targets,
    not_finite,
)
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.vector_config import VectorConfig


@dataclass(frozen=True, eq=False)
class TaskStatus:
    """State of the task in every scene."""

    success: torch.Tensor
    """(N,) bool."""
    progress: torch.Tensor
    """(N,) float32, 0…1: the dense reward's terms, see sim.tasks."""


class BatchedScenes(Protocol):
    """N scenes of one simulator; tensors are on its device."""

    device: torch.device

    def begin(self, envs: list[int], seeds: list[int]) -> None:
        """Start an episode in the scenes `envs`; the others are unchanged."""

    def step(self, targets_rad: torch.Tensor) -> None:
        """Drive all scenes towards (N, 8) for one control period."""

    def progress(self) -> TaskStatus:
        """Return the present state of the task."""

    def state_rad(self) -> torch.Tensor:
        """Return (N, 8) float32 measured joints."""

    def images(self) -> torch.Tensor:
        """Render and return (N, H, W, 3) uint8 that later images do not overwrite."""

    def instructions(self) -> list[str]:
        """Return the tasks in words."""

    def true_state(self, elapsed: torch.Tensor) -> torch.Tensor:
        """Return (N, S) of `true_state`, after `elapsed` (N,) of the time; raises SimError."""

    def close(self) -> None:
        """Free the simulation."""


@dataclass(eq=False)
class _Chunk:
    """Results of one `receive`; tensors (N,)."""

    reward: torch.Tensor
    steps: torch.Tensor
    ended: torch.Tensor
    truncated: torch.Tensor
    success: torch.Tensor
    final: tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor | None] | None = None
    """Images, joints, instructions and true state of all scenes when some reached their time
    limit."""


class BatchedVectorEnv:
    """A VectorEnv over BatchedScenes; see the module's docstring."""

    def __init__(self, config: VectorConfig, scenes: BatchedScenes) -> None:
        self.config, self.scenes = config, scenes
        self.num_envs = config.num_envs
        self.groups = (range(config.num_envs),)
        self._seed, self._episodes = config.first_seed, [0] * config.num_envs
        self._length = torch.zeros(config.num_envs, dtype=torch.int64, device=scenes.device)
        self._total = torch.zeros(config.num_envs, device=scenes.device)
        self._progress = torch.zeros(config.num_envs, device=scenes.device)
        self._targets: torch.Tensor | None = None
        self._views: Views | None = None

    def reset(self, seed: int | None = None) -> None:
        """See VectorEnv."""
        base = self._seed if seed is None else seed
        self.load_state_dict({"seed": base, "episodes": [0] * self.num_envs})

    def state_dict(self) -> dict[str, Any]:
        """See VectorEnv."""
        return {"seed": self._seed, "episodes": list(self._episodes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See VectorEnv."""
        self._seed, self._episodes = checked_state(state, self.num_envs)
        self._targets = None
        self._begin(list(range(self.num_envs)))

    def look(self, group: int) -> Views:
        """See VectorEnv; an image is rendered at the first look."""
        self._check_idle(group)
        envs = self.groups[group]
        if self._views is None:
            state = self._checked_state()
            rows = np.arange(len(envs))
            words, truth = self.scenes.instructions(), self._true_state()
            self._views = Views(rows, self.scenes.images(), state, words, truth)
        return self._views

    def send(self, group: int, targets_rad: Any) -> None:
        """See VectorEnv."""
        self._check_idle(group)
        tensor = torch.as_tensor(targets_rad, dtype=torch.float32, device=self.scenes.device)
        self._targets = checked_targets(tensor, self.groups[group])

    def receive(self, group: int) -> Steps:
        """See VectorEnv."""
        if self._targets is None:
            raise SimError(f"group {group} has no targets; call send before receive")
        targets, self._targets, self._views = self._targets, None, None
        chunk = self._run(targets)
        self._total += chunk.reward
        steps = self._steps(chunk)
        ended = chunk.ended.nonzero().flatten().tolist()
        for env in ended:
            self._episodes[env] += 1
        if ended:
            self._begin(ended)
        return steps

    def start_from(self, starts: Starts) -> NoReturn:
        """Raise SimError: a partial reset here does not repeat what it did before."""
        raise SimError(
            f"{len(starts.demonstrations)} demonstrations came to begin episodes from, but only"
            " scenes in processes can repeat them; use --backend cpu, or no --start-from"
        )

    def close(self) -> None:
        """End the simulation."""
        self.scenes.close()

    def _check_idle(self, group: int) -> None:
        if self._targets is not None:
            raise SimError(f"group {group} has targets already; call receive next")

    # --- within a chunk --------------------------------------------------------------------------

    def _begin(self, envs: list[int]) -> None:
        self.scenes.begin(envs, [self._seed_of(env) for env in envs])
        self._views = None
        self._length[envs], self._total[envs] = 0, 0.0
        self._progress[envs] = self.scenes.progress().progress[envs]

    def _seed_of(self, env: int) -> int:
        return self.config.seed_of(self._seed, env, self._episodes[env])

    def _run(self, targets: torch.Tensor) -> _Chunk:
        """Execute (N, T, 8); scenes that have ended hold still."""
        nobody = torch.zeros(self.num_envs, dtype=torch.bool, device=self.scenes.device)
        chunk = _Chunk(nobody.float(), nobody.long(), nobody, nobody, nobody)
        hold = targets[:, 0]
        for step in range(targets.shape[1]):
            running = ~chunk.ended
            hold = torch.where(running[:, None], targets[:, step], hold)
            self.scenes.step(hold)
            self._count(chunk, running)
            if bool(chunk.ended.all()):
                break
        return chunk

    def _count(self, chunk: _Chunk, running: torch.Tensor) -> None:
        """Add one step's reward and ends to the chunk."""
        kind, now = self.config.rewards, self.scenes.progress()
        self._length += running
        chunk.steps = chunk.steps + running
        late = running & (self._length >= self.config.world.max_steps)
        success = running & now.success
        ended = late | success if kind.ends_at_success else late
        if kind.kind == "dense":
            paid = torch.where(running, now.progress - self._progress, 0.0)
            self._progress = torch.where(running, now.progress, self._progress)
        else:
            paid = (ended & success).float()
        self._check_reward(paid)
        chunk.reward = chunk.reward + paid
        truncated = late & ~success if kind.ends_at_success else torch.zeros_like(late)
        chunk.ended, chunk.truncated = chunk.ended | ended, chunk.truncated | truncated
        chunk.success = torch.where(running, success, chunk.success)
        if bool(truncated.any()):
            self._keep_final(chunk, truncated)

    def _keep_final(self, chunk: _Chunk, truncated: torch.Tensor) -> None:
        images, state = self.scenes.images(), self._checked_state()
        words, truth = self.scenes.instructions(), self._true_state()
        if chunk.final is not None:  # others reached their time limit earlier in this chunk
            images = torch.where(truncated[:, None, None, None], images, chunk.final[0])
            state = torch.where(truncated[:, None], state, chunk.final[1])
            if truth is not None and chunk.final[3] is not None:
                truth = torch.where(truncated[:, None], truth, chunk.final[3])
        chunk.final = images, state, words, truth

    def _true_state(self) -> torch.Tensor | None:
        """Return (N, S) where it is wanted."""
        if not self.config.true_state:
            return None
        truth = self.scenes.true_state(self._length / self.config.world.max_steps)
        bad = (~truth.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise self._not_finite("true state", bad[0], truth[bad[0]].tolist())
        return truth

    def _check_reward(self, paid: torch.Tensor) -> None:
        bad = (~paid.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise self._not_finite("reward", bad[0], float(paid[bad[0]]))

    def _checked_state(self) -> torch.Tensor:
        state = self.scenes.state_rad()
        bad = (~state.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise self._not_finite("observation state_rad", bad[0], state[bad[0]].tolist())
        return state

    def _not_finite(self, what: str, env: int, came: Any) -> SimError:
        return not_finite(what, env, self._seed_of(env), int(self._length[env]), came)

    # --- results ---------------------------------------------------------------------------------

    def _steps(self, chunk: _Chunk) -> Steps:
        truncated = chunk.truncated.cpu().numpy()
        ended = chunk.ended.cpu().numpy()
        return Steps(
            reward=chunk.reward.cpu().numpy(),
            steps=chunk.steps.cpu().numpy(),
            terminated=ended & ~truncated,
            truncated=truncated,
            final=self._final(chunk, np.flatnonzero(truncated)),
            discarded=np.zeros(self.num_envs, dtype=np.bool_),
            episodes=tuple(self._episode(chunk, int(env)) for env in np.flatnonzero(ended)),
        )

    def _final(self, chunk: _Chunk, rows: Any) -> Views | None:
        if chunk.final is None:
            return None
        images, state, words, truth = chunk.final
        index = torch.as_tensor(rows, device=self.scenes.device)
        told = [words[row] for row in rows]
        true_state = None if truth is None else truth[index]
        return Views(rows, images[index], state[index], told, true_state)

    def _episode(self, chunk: _Chunk, env: int) -> EpisodeResult:
        total, length = float(self._total[env]), int(self._length[env])
        return EpisodeResult(env, self._seed_of(env), bool(chunk.success[env]), total, length)
