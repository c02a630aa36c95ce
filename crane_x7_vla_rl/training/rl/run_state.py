"""How far a run of reinforcement learning is after its last whole update.

A run and the progress it was opened with → a `RunState`, which the loop moves on, and of which a
checkpoint is a `Snapshot`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Final

import numpy as np
from accelerate.utils import gather_object

from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from crane_x7_vla_rl.training.checkpoints.training_state import Progress
from crane_x7_vla_rl.training.rl.episode_stats import Outcomes, Recent
from crane_x7_vla_rl.training.rl.rollout import Collected
from crane_x7_vla_rl.training.rl.run import RlRun
from crane_x7_vla_rl.training.rl.start_scores import StartScores, by_stage
from crane_x7_vla_rl.training.session import Snapshot

NEVER: Final = -1.0
"""The best success so far of a run that has not been evaluated."""


class Scenes:
    """The episodes that run in the environments of this process."""

    def __init__(self, env: VectorEnv, outcomes: Outcomes) -> None:
        self._env, self._outcomes = env, outcomes
        self.state: dict[str, Any] = env.state_dict()
        """Which episodes were running when the update that is not done yet began."""

    def add(self, found: Collected, steps: int) -> tuple[int, int]:
        """Return how many episodes count now, and their successes; see `Outcomes.add`.

        Those that began in the middle of a demonstration never count.
        """
        whole = [episode.stage is None for episode in found.episodes]
        episodes = tuple(compress(found.episodes, whole))
        return self._outcomes.add(episodes, tuple(compress(found.ended, whole)), steps)

    def note(self) -> None:
        """Note which episodes are running: the update that began before is done."""
        self.state = self._env.state_dict()

    def restart(self) -> None:
        """Restart the running episodes, as a run does that resumes from what is saved now."""
        self._begin(self._env.state_dict())

    def begin_next(self, same_scene: int = 1) -> None:
        """Begin a new episode in every environment: grpo learns from whole ones alone.

        The `same_scene` environments in a row that are compared begin one of the same number, which
        is the same scene, however many episodes each of them had.
        """
        state = self._env.state_dict()
        numbers = np.reshape(state["episodes"], (-1, same_scene)).max(1) + 1
        self._begin(state | {"episodes": np.repeat(numbers, same_scene).tolist()})

    def _begin(self, state: dict[str, Any]) -> None:
        self._env.load_state_dict(state)
        self._outcomes.restart()
        self.note()


@dataclass
class RunState:
    """Counters, scenes and scores of a run between two updates."""

    progress: Progress
    scenes: Scenes
    best: float
    """The best success in evaluation."""
    recent: Recent
    kl_coefficient: float
    """Of the next update."""
    starts: StartScores
    """How episodes ended that began in the middle of demonstrations."""
    about: dict[str, Any] = field(default_factory=dict)
    """The newest update's success, for the checkpoint's lineage."""

    @classmethod
    def of(cls, run: RlRun, progress: Progress) -> RunState:
        """Return the state that a run begins with."""
        before = progress.position or {}
        outcomes = Outcomes(run.rollout.longest, run.rollout.executed)
        best, recent = NEVER, Recent(before.get("recent", ()))
        if before.get("evaluated", _evaluated(run)) == _evaluated(run):
            best = float(before.get("best", NEVER))
        coefficient = configured = run.config.ppo.kl_coefficient
        adapts = run.config.ppo.ref_kl_target is not None
        if adapts and before.get("kl_configured", configured) == configured:
            coefficient = float(before.get("kl_coefficient", configured))
        starts = StartScores(before.get("starts", ()))
        return cls(progress, Scenes(run.env, outcomes), best, recent, coefficient, starts)

    def advance(self, env_steps: int) -> None:
        """Count an update that is done, and the control steps of its rollout."""
        before = self.progress
        self.progress = replace(before, step=before.step + 1, samples=before.samples + env_steps)

    def weigh_starts(self, run: RlRun, found: Collected) -> None:
        """Let coming episodes begin where the policy succeeds sometimes; every process calls it."""
        if run.starts is None:
            return
        mine = by_stage(found.episodes).to(run.agent.accelerator.device)
        episodes, successes = run.agent.sum(mine).tolist()
        self.starts.add(episodes, successes)
        run.env.start_from(run.starts.weighted(self.starts.weights()))

    def snapshot(self, run: RlRun) -> Snapshot:
        """Return what a checkpoint holds; every process must call it."""
        tensors, others = run.agent.tensors(self.progress.step)
        optimizer = run.agent.optimizer_state()
        position = {
            "environments": gather_object([self.scenes.state]),
            "best": self.best,
            "evaluated": _evaluated(run),
            "recent": self.recent.state(),
            "kl_coefficient": self.kl_coefficient,
            "kl_configured": run.config.ppo.kl_coefficient,
            "starts": self.starts.state(),
        }
        progress = replace(self.progress, position=position)
        return Snapshot(progress, tensors, optimizer, self.about, others)


def _evaluated(run: RlRun) -> dict[str, Any]:
    """Return how evaluations measure: successes of other scenes cannot be compared."""
    settings = run.config.evaluation
    return {
        "episodes": settings.episodes,
        "temperature": settings.temperature,
        "first_seed": settings.first_seed,
    }
