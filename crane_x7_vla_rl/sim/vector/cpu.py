"""Environments on CPU cores: scenes in processes, their views in shared memory.

Every process holds environments of every group, so that all cores step the group that was sent.
`env_worker` is the program of a process; orders and results of a few hundred bytes go over pipes, a
few kB where they hold the targets of a demonstration to begin from.

A process that dies or hangs is reported, killed and replaced. Its environments, of all groups,
start their next episodes; the next `receive` of each group marks its discarded rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import numpy as np

from crane_x7_vla_rl.sim.errors import SimError, WorkerLostError
from crane_x7_vla_rl.sim.vector.env_worker import (
    EnvOrder,
    EnvOutcome,
    EnvWorker,
    GroupOrder,
    GroupOutcome,
)
from crane_x7_vla_rl.sim.vector.protocol import (
    EpisodeResult,
    Steps,
    Views,
    checked_state,
    checked_targets,
)
from crane_x7_vla_rl.sim.vector.shared_memory import SharedArrays, release, reserve
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.sim.workers import ANSWER_S, Workers
from crane_x7_vla_rl.vector_config import VectorConfig, spread

logger = logging.getLogger(__name__)

LOSSES: Final = 3
"""A process that is lost this often in a row, without one answer, is not restarted."""


class CpuVectorEnv:
    """A VectorEnv; see the module's docstring."""

    def __init__(self, config: VectorConfig) -> None:
        """Start the processes; their scenes start at `reset`. Raises SimError."""
        self.config = config
        self.num_envs = config.num_envs
        self.groups = spread(config.num_envs, config.groups)
        count = min(config.processes or os.cpu_count() or 1, max(map(len, self.groups)))
        self._plan = reserve(config.num_envs, config.world.image_size)
        self._shared: SharedArrays = self._plan.map()
        self._workers = Workers(count, partial(EnvWorker, config, self._plan))
        self._held = [_shares(group, count) for group in self.groups]
        """The environments by group and worker."""
        self._seed, self._episodes = config.first_seed, [0] * config.num_envs
        self._instructions = [""] * config.num_envs
        self._sent: set[tuple[int, int]] = set()
        """(worker, group) whose answer has not been received."""
        self._early: dict[tuple[int, int], GroupOutcome] = {}
        """Answers of other groups that arrived during the wait for one group."""
        self._starts: Starts | None = None
        self._lost: set[int] = set()
        """Environments with a discarded episode that is not yet reported."""
        self._new = set(range(count))
        """Workers that have not answered yet: a simulation starts slowly."""
        self._closed = False

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers, now."""
        return [self._workers.process_id(worker) for worker in range(len(self._workers))]

    def envs_of(self, worker: int) -> list[int]:
        """Return the environments of a process, of all groups."""
        return [env for shares in self._held for env in shares[worker]]

    # --- the interface ---------------------------------------------------------------------------

    def reset(self, seed: int | None = None) -> None:
        """See VectorEnv."""
        base = self._seed if seed is None else seed
        self.load_state_dict({"seed": base, "episodes": [0] * self.num_envs})

    def state_dict(self) -> dict[str, Any]:
        """See VectorEnv."""
        return {"seed": self._seed, "episodes": list(self._episodes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See VectorEnv. Scenes are built again: what follows depends on the state alone."""
        for worker, group in sorted(self._sent):
            self._take(worker, group)
        self._seed, self._episodes = checked_state(state, self.num_envs)
        self._lost = set(range(self.num_envs))  # no episode runs that could be lost
        everywhere = [(w, g) for g in range(len(self.groups)) for w in self._holders(g)]
        for worker, group in everywhere:
            self._order(worker, group, steps=0, fresh=True)
        for worker, group in everywhere:
            self._note(self._take(worker, group).outcomes)
        self._lost.clear()

    def start_from(self, starts: Starts) -> None:
        """See VectorEnv."""
        self._starts = starts

    def look(self, group: int) -> Views:
        """See VectorEnv; the arrays are views of shared memory."""
        self._check_idle(group)
        envs = self.groups[group]
        part = slice(envs.start, envs.stop)
        return Views(
            np.arange(len(envs)),
            self._shared.images[part],
            self._shared.state_rad[part],
            self._instructions[part],
            self._shared.true_state[part] if self.config.true_state else None,
        )

    def send(self, group: int, targets_rad: Any) -> None:
        """See VectorEnv."""
        self._check_idle(group)
        envs = self.groups[group]
        targets = checked_targets(np.asarray(targets_rad, dtype=np.float32), envs)
        self._shared.targets_rad[envs.start : envs.stop, : targets.shape[1]] = targets
        for worker in self._holders(group):
            self._order(worker, group, targets.shape[1])

    def receive(self, group: int) -> Steps:
        """See VectorEnv."""
        workers = self._holders(group)
        if not all((worker, group) in self._sent for worker in workers):
            raise SimError(f"group {group} has no targets; call send before receive")
        envs = self.groups[group]
        before = self._instructions[envs.start : envs.stop]
        answers = [self._take(worker, group) for worker in workers]
        outcomes = [outcome for answer in answers for outcome in answer.outcomes]
        self._note(outcomes)
        steps = self._steps(envs, outcomes, before)
        self._lost.difference_update(envs)
        return steps

    def close(self) -> None:
        """End the processes; views stay readable. A second call is harmless."""
        if not self._closed:
            self._closed = True
            self._workers.close()
            release(self._plan)

    # --- orders and answers ----------------------------------------------------------------------

    def _holders(self, group: int) -> list[int]:
        """The workers that hold environments of the group."""
        return [worker for worker, envs in enumerate(self._held[group]) if envs]

    def _check_idle(self, group: int) -> None:
        if any(sent == group for _, sent in self._sent):
            raise SimError(f"group {group} has targets already; call receive next")

    def _env_order(self, env: int, steps: int, fresh: bool) -> EnvOrder:
        """Environments whose episode was lost start; the others step, and then start the next."""
        begins = not steps or env in self._lost
        episode = self._episodes[env] + (0 if begins else 1)
        seed = self.config.seed_of(self._seed, env, episode)
        start = None
        if self._starts is not None:
            start = self._starts.of(self._seed, self.config.first_env + env, episode)
        return EnvOrder(env, seed, 0 if begins else steps, start, fresh)

    def _order(self, worker: int, group: int, steps: int, fresh: bool = False) -> None:
        """Send; `_take` handles a worker that is dead."""
        orders = tuple(self._env_order(env, steps, fresh) for env in self._held[group][worker])
        self._sent.add((worker, group))
        try:
            self._workers.send(worker, GroupOrder(group, orders))
        except WorkerLostError:
            logger.debug("sending to simulation %d failed", worker)

    def _take(self, worker: int, group: int) -> GroupOutcome:
        """Return the answer, after a restart if the worker was lost; raises SimError."""
        for _ in range(LOSSES):
            try:
                answer = self._wait(worker, group)
            except WorkerLostError as error:
                lost = error
                self._replace(worker, str(error))
            else:
                self._sent.discard((worker, group))
                return answer
        raise SimError(f"simulation {worker} was lost {LOSSES} times in a row: {lost}")

    def _wait(self, worker: int, group: int) -> GroupOutcome:
        while (worker, group) not in self._early:
            timeout_s = ANSWER_S if worker in self._new else self.config.deadline_s
            answer: GroupOutcome = self._workers.receive(worker, timeout_s)
            self._new.discard(worker)
            self._early[worker, answer.group] = answer
        return self._early.pop((worker, group))

    def _replace(self, worker: int, why: str) -> None:
        """Restart the worker; its episodes are discarded, and groups that wait start others.

        The policy may be using the views of a group that does not wait, so its environments start
        later.
        """
        envs = self.envs_of(worker)
        logger.warning("%s; restarted, episodes of environments %s discarded", why, envs)
        self._workers.restart(worker)
        self._new.add(worker)
        for env in envs:
            self._episodes[env] += 0 if env in self._lost else 1
        self._lost.update(envs)
        for group in range(len(self.groups)):
            self._early.pop((worker, group), None)
            if (worker, group) in self._sent:
                self._order(worker, group, steps=0)

    # --- results ---------------------------------------------------------------------------------

    def _note(self, outcomes: Iterable[EnvOutcome]) -> None:
        for outcome in outcomes:
            self._instructions[outcome.env] = outcome.instruction
            self._episodes[outcome.env] += outcome.ended is not None

    def _steps(self, envs: range, outcomes: list[EnvOutcome], before: list[str]) -> Steps:
        """Write results into rows; `before`: the instructions of the episodes before."""
        rows = sorted(outcomes, key=lambda outcome: outcome.env)
        truncated = np.array([outcome.truncated for outcome in rows])
        ended = np.array([outcome.ended is not None for outcome in rows])
        episodes: list[EpisodeResult] = [row.ended for row in rows if row.ended is not None]
        return Steps(
            reward=np.array([outcome.reward for outcome in rows], dtype=np.float32),
            steps=np.array([outcome.steps for outcome in rows], dtype=np.int64),
            terminated=ended & ~truncated,
            truncated=truncated,
            final=self._final(envs, np.flatnonzero(truncated), before),
            discarded=np.array([env in self._lost for env in envs]),
            episodes=tuple(episodes),
        )

    def _final(self, envs: range, rows: Any, before: list[str]) -> Views | None:
        if not len(rows):
            return None
        whole = len(rows) == len(envs)  # the usual case, without a copy
        part = slice(envs.start, envs.stop) if whole else rows + envs.start
        return Views(
            rows,
            self._shared.final_images[part],
            self._shared.final_state_rad[part],
            [before[row] for row in rows],
            self._shared.final_true_state[part] if self.config.true_state else None,
        )


def _shares(group: range, count: int) -> list[range]:
    """Return the environments of a group for each of `count` workers."""
    parts = spread(len(group), count)
    empty = [range(0)] * (count - len(parts))
    return [group[part.start : part.stop] for part in parts] + empty
