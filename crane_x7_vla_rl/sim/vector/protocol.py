"""The protocol of environments that are stepped together: joint targets → views, rewards, ends.

Legend: N environments, n of them in a group, T steps of a chunk, H × W pixels.

    env = make(config)
    env.reset()
    for group in cycle(range(len(env.groups))):
        views = env.look(group)                      # observations for the policy
        env.send(group, policy(views))               # the simulation runs
        ...                                          # while the policy runs on another group
        steps = env.receive(group)                   # rewards, and which episodes ended

After an episode the next one starts at once: `look` returns the first view of the new episode,
`Steps` tells how the old one ended and, if it was truncated, holds its last view, for the value of
that observation. A group's views are valid until its next `send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.starts import Starts
from crane_x7_vla_rl.vector_config import LONGEST_CHUNK

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Views:
    """Observations of some environments of a group, one row each."""

    rows: Indices
    """Numbers of these environments in the group, from 0."""
    images: Any
    """(rows, H, W, 3) uint8: numpy in shared memory, or a tensor on the device."""
    state_rad: Any
    """(rows, 8) float32 measured joints, the gripper last; numpy or a tensor as the images."""
    instructions: list[str]
    true_state: Any = None
    """(rows, S) float32 of `true_state`, as the joints; None unless VectorConfig.true_state is set.
    For a critic alone: no policy and no Observation ever holds it."""


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended."""

    env: int
    """Index among the N environments."""
    seed: int
    success: bool
    total_reward: float
    """Sum of rewards, not discounted."""
    steps: int
    """Control steps since it began."""
    stage: int | None = None
    """Where in a demonstration it began, see `starts`; None: as the task does."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Results of a chunk of targets in a group, one row per environment."""

    reward: Floats
    """(n,) summed over the steps taken."""
    steps: Indices
    """(n,) executed: T, or less if the episode ended; 0 if it was discarded."""
    terminated: Bools
    """(n,) the task ended the episode: no value follows."""
    truncated: Bools
    """(n,) the time limit ended it: the value of the final observation follows."""
    final: Views | None
    """The last views of truncated episodes; None without any."""
    discarded: Bools
    """(n,) the process died or hung: this chunk and its episode must not be learned from."""
    episodes: tuple[EpisodeResult, ...]
    """Episodes that ended in this chunk, by environment, without discarded ones."""
    late: Indices | None = None
    """(n,) steps from the image to the first target that the arm followed; None: 0."""


class VectorEnv(Protocol):
    """See the module's docstring. Methods raise SimError, naming environment and seed."""

    @property
    def num_envs(self) -> int:
        """N."""

    @property
    def groups(self) -> tuple[range, ...]:
        """The environments of each group."""

    def reset(self, seed: int | None = None) -> None:
        """Start episode 0 in all environments; None keeps the base seed."""

    def look(self, group: int) -> Views:
        """Return the observations, after `reset` or `receive`, before `send`."""

    def send(self, group: int, targets_rad: Any) -> None:
        """Start to execute (n, T, 8) joint targets, rad, in the group; returns at once."""

    def receive(self, group: int) -> Steps:
        """Wait for the results of `send`."""

    def state_dict(self) -> dict[str, Any]:
        """Return base seed and every environment's episode number, for JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the episodes with these numbers, in all environments."""

    def start_from(self, starts: Starts) -> None:
        """Let coming episodes begin in the middle of demonstrations, some of them; raises SimError
        where the simulation cannot repeat any. Running episodes stay as they are."""

    def close(self) -> None:
        """End the simulation."""


def checked_targets(targets_rad: Any, envs: range) -> Any:
    """Return the targets, array or tensor; raises SimError for another shape or NaN."""
    shape = tuple(targets_rad.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (len(envs), DOF):
        raise SimError(f"targets_rad has shape {shape}, expected ({len(envs)}, T, {DOF})")
    if not 1 <= shape[1] <= LONGEST_CHUNK:
        raise SimError(f"targets_rad has {shape[1]} steps, expected 1 to {LONGEST_CHUNK}")
    numpy = isinstance(targets_rad, np.ndarray)
    finite: Any = np.isfinite(targets_rad) if numpy else targets_rad.isfinite()
    rows = finite.reshape(len(envs), -1).all(1).tolist()
    if not all(rows):
        bad = envs[rows.index(False)]
        raise SimError(f"targets_rad for environment {bad} is not finite: check the policy")
    return targets_rad


def not_finite(what: str, env: int, seed: int, step: int, came: Any) -> SimError:
    """Return the error of a simulation that has become unstable."""
    return SimError(
        f"environment {env} (seed {seed}), step {step}: {what} is {came}, expected finite numbers;"
        f" the simulation has become unstable. Replay seed {seed}, and use smaller steps"
    )


def checked_state(state: dict[str, Any], num_envs: int) -> tuple[int, list[int]]:
    """Return base seed and episode numbers of a state_dict; raises SimError."""
    seed, episodes = state.get("seed"), state.get("episodes")
    if not isinstance(seed, int) or not isinstance(episodes, list) or len(episodes) != num_envs:
        came = f"{len(episodes)} environments" if isinstance(episodes, list) else sorted(state)
        raise SimError(
            f"the state of the environments holds {came}, expected a seed and {num_envs} episode"
            " numbers; resume with the same --num-parallel-envs"
        )
    return seed, list(episodes)
