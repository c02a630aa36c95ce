"""Environments whose answers arrive late: a `VectorEnv` → one whose arms follow targets later.

An image is taken, and only `delay` steps later the targets that it led to are in force. Until then
the arm follows the prediction before, and in the first steps of an episode holds its pose, as in
evaluation (`timing.Playback`) and in the inference loop.

Legend: n environments of a group, k steps of delay, E steps of a decision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from crane_x7_vla_rl.sim.vector.protocol import Steps, VectorEnv, Views
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.types import Array


class Late:
    """See the module's docstring; otherwise as the environments inside it."""

    def __init__(self, env: VectorEnv, delay: int) -> None:
        """`delay`: steps from an image to the first one that uses its answer, 1 or more."""
        self._env, self._delay = env, delay
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
        self._under_way.clear()
        self._env.reset(seed)

    def look(self, group: int) -> Views:
        """See VectorEnv."""
        views = self._env.look(group)
        state: Any = views.state_rad
        self._seen_rad[group] = state.cpu().numpy() if isinstance(state, Tensor) else state.copy()
        return views

    def send(self, group: int, targets_rad: Any) -> None:
        """Execute E steps for targets (n, k + E, 8), target i meant for i steps after the image."""
        played = np.empty_like(targets_rad[:, self._delay :])
        for row, env in enumerate(self._env.groups[group]):
            held = np.repeat(self._seen_rad[group][row : row + 1], self._delay, axis=0)
            coming = np.concatenate(
                [self._under_way.get(env, held), targets_rad[row, self._delay :]]
            )
            played[row], self._under_way[env] = np.split(coming, [played.shape[1]])
        self._env.send(group, played)

    def receive(self, group: int) -> Steps:
        """See VectorEnv."""
        steps = self._env.receive(group)
        ended = steps.terminated | steps.truncated | steps.discarded
        for row, env in enumerate(self._env.groups[group]):
            if ended[row]:
                self._under_way.pop(env, None)
        return steps

    def state_dict(self) -> dict[str, Any]:
        """See VectorEnv."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See VectorEnv."""
        self._under_way.clear()
        self._env.load_state_dict(state)

    def start_from(self, starts: Starts) -> None:
        """See VectorEnv."""
        self._env.start_from(starts)

    def close(self) -> None:
        """See VectorEnv."""
        self._env.close()
