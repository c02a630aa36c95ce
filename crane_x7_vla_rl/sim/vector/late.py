"""Environments whose answers arrive late: a `VectorEnv` → one whose arms follow targets later.

An image is taken, and only some steps later the targets that it led to are in force. Until then
the arm follows the prediction before, and in the first steps of an episode holds its pose, as in
evaluation (`timing.Playback`) and in the inference loop. Each episode has one delay.

Legend: n environments of a group, K steps of the longest delay, k of an episode's, E steps of a
decision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from crane_x7_vla_rl.sim.vector.protocol import Steps, VectorEnv, Views, checked_state
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.types import Array
from crane_x7_vla_rl.vector_config import VectorConfig

DELAYS = 0xDE1A
"""Separates the delays' random numbers from the scenes'."""


class Late:
    """See the module's docstring; otherwise as the environments inside it."""

    def __init__(self, env: VectorEnv, config: VectorConfig) -> None:
        """`config.delay`: steps from an image to the first one that uses its answer; each episode
        draws its own from `config.least_delay` to that, by its scene's seed."""
        self._env, self._config = env, config
        self._delays: dict[int, int] = {}
        """k of the running episode, by environment; none before the first answer."""
        self._under_way: dict[int, Array] = {}
        """(k, 8) targets that are still to come, by environment; none before the first answer."""
        self._seen_rad: dict[int, Array] = {}
        """(n, 8) joints when a group was last looked at."""

    @property
    def num_envs(self) -> int:
        """See VectorEnv."""
        return self._env.num_envs

    @property
    def groups(self) -> tuple[range, ...]:
        """See VectorEnv."""
        return self._env.groups

    def reset(self, seed: int | None = None) -> None:
        """See VectorEnv."""
        self._forget()
        self._env.reset(seed)

    def look(self, group: int) -> Views:
        """See VectorEnv."""
        views = self._env.look(group)
        state: Any = views.state_rad
        self._seen_rad[group] = state.cpu().numpy() if isinstance(state, Tensor) else state.copy()
        return views

    def send(self, group: int, targets_rad: Any) -> None:
        """Execute E steps for targets (n, K + E, 8), target i meant for i steps after the image."""
        played = np.empty_like(targets_rad[:, self._config.delay :])
        steps = played.shape[1]
        for row, env in enumerate(self._env.groups[group]):
            delay = self._delay(env)
            held = np.repeat(self._seen_rad[group][row : row + 1], delay, axis=0)
            coming = np.concatenate(
                [self._under_way.get(env, held), targets_rad[row, delay : delay + steps]]
            )
            played[row], self._under_way[env] = np.split(coming, [steps])
        self._env.send(group, played)

    def receive(self, group: int) -> Steps:
        """See VectorEnv."""
        envs = self._env.groups[group]
        late = np.array([self._delay(env) for env in envs])  # before new episodes draw theirs
        steps = replace(self._env.receive(group), late=late)
        ended = steps.terminated | steps.truncated | steps.discarded
        for row, env in enumerate(envs):
            if ended[row]:
                self._under_way.pop(env, None)
                self._delays.pop(env, None)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """See VectorEnv."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See VectorEnv."""
        self._forget()
        self._env.load_state_dict(state)

    def start_from(self, starts: Starts) -> None:
        """See VectorEnv."""
        self._env.start_from(starts)

    def close(self) -> None:
        """See VectorEnv."""
        self._env.close()

    def _delay(self, env: int) -> int:
        """Return the delay of the episode that runs in this environment, in steps."""
        if env not in self._delays:
            config = self._config
            least = config.delay if config.least_delay is None else config.least_delay
            seed, episodes = checked_state(self._env.state_dict(), self.num_envs)
            scene = config.seed_of(seed, env, episodes[env])
            drawn = np.random.default_rng([scene, DELAYS]).integers(least, config.delay + 1)
            self._delays[env] = int(drawn)
        return self._delays[env]

    def _forget(self) -> None:
        self._under_way.clear()
        self._delays.clear()
