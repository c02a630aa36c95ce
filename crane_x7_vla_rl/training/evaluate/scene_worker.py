"""One process of an evaluation: an order per slot → the scene's next observation.

An order starts an episode or executes a chunk of joint targets. An image is rendered only after
it, for the next prediction; in filmed episodes, after every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.types import Array, Image, Observation


@dataclass(frozen=True)
class Begin:
    """Start the episode of a seed."""

    seed: int
    film: bool = False


@dataclass(frozen=True, eq=False)
class Act:
    """Execute joint targets (T, 8), rad, one per period, or fewer if the episode ends."""

    targets: Array


@dataclass(frozen=True, eq=False)
class Look:
    """The observation after an order."""

    observation: Observation | None
    """None when the episode has ended."""
    named: str
    """The colour whose success is counted."""
    steps: int
    success: bool
    lifted: tuple[str, ...] = ()
    """Colours of the cubes in the air when it ended."""
    film: tuple[Image, ...] = ()
    """Every step's image, when it ended."""


class EvalWorker:
    """The handler of a process: scenes by slot, each created on first use."""

    def __init__(self, config: WorldConfig) -> None:
        self._config = config
        self._worlds: dict[int, World] = {}
        self._films: dict[int, list[Image]] = {}

    def __call__(self, orders: Mapping[int, Begin | Act]) -> dict[int, Look]:
        """Return a look per slot that has an order."""
        return {slot: self._obey(slot, order) for slot, order in orders.items()}

    def _obey(self, slot: int, order: Begin | Act) -> Look:
        if slot not in self._worlds:
            self._worlds[slot] = World(self._config)
        world = self._worlds[slot]
        if isinstance(order, Begin):
            world.reset(order.seed)
            self._films.pop(slot, None)
            if order.film:
                self._films[slot] = [world.image()]
            return self._look(slot, world)
        for target in order.targets:
            world.step(target)
            if slot in self._films:
                self._films[slot].append(world.image())
            if world.ended:
                break
        return self._look(slot, world)

    def _look(self, slot: int, world: World) -> Look:
        if not world.ended:
            return Look(world.observe(), world.named_colour, world.step_index, success=False)
        cubes = world.scene.cube_status()
        return Look(
            observation=None,
            named=world.named_colour,
            steps=world.step_index,
            success=world.success,
            lifted=tuple(colour for colour, status in cubes.items() if status.lifted),
            film=tuple(self._films.pop(slot, ())),
        )
