"""Demonstrations of a chain of tasks: lift a cube, place it on the plate, lift another one.

Seed → an `Episode` per task, each beginning where the one before it ended: a policy learns to start
with a hand that holds something and a table that has changed. Some chains begin with placing.
With `--from`, a policy drives first in each task, see policy_start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.recorder import NOISE_STREAM, manner, policy_start
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.scenes import EPISODE_S, LIFT_ID, LIFT_WORDS, PICK_PLACE_ID, PLACE_WORDS
from crane_x7_vla_rl.sim.expert import Expert
from crane_x7_vla_rl.sim.tasks import HOLD_S
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.types import Array, Image

BEGINS_LIFTING: Final = 0.75
"""Share of chains that lift the first cube as a separate task before they place it."""
HELD_S: Final = (0.5, 1.5)
"""Bounds of the time that the expert continues after success, in shares of --hold-s."""


@dataclass(frozen=True)
class Stage:
    """One task of a chain."""

    colour: str
    places: bool

    @property
    def instruction(self) -> str:
        """The task in words."""
        return (PLACE_WORDS if self.places else LIFT_WORDS).format(self.colour)

    @property
    def limit_s(self) -> float:
        """Time in which it must be done."""
        return EPISODE_S[PICK_PLACE_ID if self.places else LIFT_ID]

    def is_done(self, world: World) -> bool:
        """Whether the scene shows it done in this step."""
        status = world.scene.cube_status()[self.colour]
        return bool(status.placed if self.places else status.lifted)


def draw(generator: np.random.Generator, colours: tuple[str, ...]) -> list[Stage]:
    """Return the stages of a random chain with two of the colours."""
    first, second = generator.permutation(np.array(colours))[:2].tolist()
    lifts = [Stage(first, places=False)] if generator.uniform() < BEGINS_LIFTING else []
    return [*lifts, Stage(first, places=True), Stage(second, places=False)]


@dataclass
class _Record:
    """What an episode will hold."""

    images: list[bytes | Image] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)


class ChainRecorder:
    """Records chains in the scene of one seed after another."""

    def __init__(self, config: DemosConfig) -> None:
        """Start the simulation, and load the policy; raises SimError and PolicyLoadError."""
        self._config = config
        self._world = World(config.world)
        self._expert = Expert(self._world, manner(config))
        self._start = policy_start(config)

    def __call__(self, seed: int) -> list[Episode]:
        """Return the episodes of a chain, which ends with the first task that fails."""
        self._world.reset(seed)
        if self._start is not None:
            self._start.reset()
        noise = np.random.default_rng([seed, NOISE_STREAM])
        level_rad = self._config.joint_noise_rad * noise.uniform()
        episodes: list[Episode] = []
        for stage in draw(noise, self._config.world.colours):
            if self._start is not None:
                rest = episodes[-1].action[-1] if episodes else self._world.position_rad()
                self._start.drive(self._world, stage.instruction, noise, rest)
            self._expert.take(stage.colour, stage.places)
            if not self._expert.reaches():  # the cube was pushed away
                if episodes:
                    break
                self._world.reset(seed)
                self._expert.take(stage.colour, stage.places)
            episodes.append(self._record(stage, noise, level_rad, seed))
            if not episodes[-1].success:
                break
        return episodes

    def _record(
        self, stage: Stage, noise: np.random.Generator, level_rad: float, seed: int
    ) -> Episode:
        """Record the expert until the task is done and held, or its time is over."""
        world, record, hz = self._world, _Record(), self._world.config.control_hz
        held, wanted = 0, max(1, round(HOLD_S * hz))
        wanted += round(noise.uniform(*HELD_S) * self._config.hold_s * hz)
        for _ in range(round(stage.limit_s * hz) + wanted):
            image, state = world.image(), world.position_rad()
            try:
                action = self._expert.act()
            except UnreachableError:
                break  # a cube pushed out of reach: a failure like any other
            record.images.append(image)
            record.states.append(state)
            record.actions.append(action)
            world.step(action + noise.normal(0, level_rad, len(action)))
            held = held + 1 if stage.is_done(world) else 0
            if held >= wanted:
                break
        return Episode(
            images=record.images,
            state=np.array(record.states, dtype=np.float32),
            action=np.array(record.actions, dtype=np.float32),
            instruction=stage.instruction,
            fps=hz,
            success=held >= wanted,
            source=f"chain of seed {seed}, {stage.instruction}",
            seed=seed,
        )
