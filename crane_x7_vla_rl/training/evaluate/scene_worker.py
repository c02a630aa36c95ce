"""One process of an evaluation: an order per slot → what its scene shows then.

An order begins an episode or carries out a chunk of joint targets. A picture is drawn only after
it, when the policy looks again; in episodes that are filmed, after every step.
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
    """Carry out joint targets (T, 8), rad, one per period, or fewer where the episode ends."""

    targets: Array


@dataclass(frozen=True, eq=False)
class Look:
    """What there is to see after an order."""

    observation: Observation | None
    """None once the episode has ended."""
    named: str
    """The colour that counts."""
    steps: int
    success: bool
    lifted: tuple[str, ...] = ()
    """Colours of the cubes in the air when it ended."""
    film: tuple[Image, ...] = ()
    """Every step's picture, when it ended."""


class EvalWorker:
    """The handler of a process: scenes by slot, each made when it is first used."""

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
