"""One process of an evaluation: an order per slot → the scene's next observation.

An order starts an episode or gives the chunk of joint targets for the last image; the scene then
runs until the next image is due, see `timing`. Only such images are rendered; in filmed episodes,
one after every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crane_x7_vla_rl import image_geometry
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.timing import Pace, Playback
from crane_x7_vla_rl.training.evaluate.trace import Phase, Trace
from crane_x7_vla_rl.types import Array, Image, Observation

PICTURES = 16
"""Most images of a failed episode that are kept."""
WIDTH = 320
"""Largest width of such an image."""
LOCKSTEP = Pace()


class Strip:
    """Images of one episode, thinned out as it gets longer, so that few cover all of it."""

    def __init__(self) -> None:
        self._kept: list[tuple[Image, int]] = []
        self._every, self._seen = 1, 0

    def add(self, image: Image, step: int) -> None:
        """Keep an image, or not."""
        if self._seen % self._every == 0:
            self._kept.append((image, step))
        self._seen += 1
        if len(self._kept) > PICTURES:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def pictures(self) -> tuple[tuple[bytes, int], ...]:
        """Return them as JPEG with their steps."""
        return tuple((jpeg(image, WIDTH), step) for image, step in self._kept)


@dataclass(frozen=True)
class Begin:
    """Start the episode of a seed."""

    seed: int
    film: bool = False
    colour: str | None = None
    """The cube whose success is counted; None: as the seed chooses."""


@dataclass(frozen=True, eq=False)
class Act:
    """The answer to the last image: joint targets (T, 8), rad, one per period of the policy."""

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
    phase: Phase = Phase.DONE
    """Where it failed, when it ended."""
    nearest_m: float = 0.0
    """Smallest distance from the fingertips to the named cube, when it ended."""
    pictures: tuple[tuple[bytes, int], ...] = ()
    """What a failed episode's policy saw, as JPEG, and the control step of each."""
    dropped: int = 0
    """Images that were lost until it ended."""
    first: str | None = None
    """Colour of the cube that was raised first, when it ended."""


def jpeg(image: Image, width: int) -> bytes:
    """Return the image as JPEG, at most `width` wide."""
    import simplejpeg

    if image.shape[1] > width:
        image = image_geometry.fit(
            image, (width, round(image.shape[0] * width / image.shape[1])), "stretch"
        )
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=80)
    return encoded


class EvalWorker:
    """The handler of a process: scenes by slot, each created on first use."""

    def __init__(self, config: WorldConfig, has_wrist: bool = False, pace: Pace = LOCKSTEP) -> None:
        """`has_wrist`: observations have the hand camera's image, too."""
        self._config, self._has_wrist, self._pace = config, has_wrist, pace
        self._playbacks: dict[int, Playback] = {}
        self._worlds: dict[int, World] = {}
        self._films: dict[int, list[Image]] = {}
        self._traces: dict[int, Trace] = {}
        self._strips: dict[int, Strip] = {}

    def __call__(self, orders: Mapping[int, Begin | Act]) -> dict[int, Look]:
        """Return a look per slot that has an order."""
        return {slot: self._obey(slot, order) for slot, order in orders.items()}

    def _obey(self, slot: int, order: Begin | Act) -> Look:
        if slot not in self._worlds:
            self._worlds[slot] = World(self._config, self._has_wrist)
        world = self._worlds[slot]
        if isinstance(order, Begin):
            world.reset(order.seed, order.colour)
            self._traces[slot], self._strips[slot] = Trace(), Strip()
            rest_rad = world.position_rad()
            self._playbacks[slot] = Playback(self._pace, rest_rad, order.seed)
            self._films.pop(slot, None)
            if order.film:
                self._films[slot] = [world.image()]
        else:
            self._playbacks[slot].answer(order.targets, world.step_index)
        self._play(slot, world)
        return self._look(slot, world)

    def _play(self, slot: int, world: World) -> None:
        """Step until the next image, or the end."""
        playback = self._playbacks[slot]
        while not (world.ended or playback.sees(world.step_index)):
            world.step(playback.target(world.step_index))
            self._traces[slot].note(world)
            if slot in self._films:
                self._films[slot].append(world.image())

    def _look(self, slot: int, world: World) -> Look:
        if not world.ended:
            seen = world.observe()
            self._strips[slot].add(seen.image, world.step_index)
            return Look(seen, world.named_colour, world.step_index, success=False)
        cubes, trace = world.scene.cube_status(), self._traces[slot]
        pictures: tuple[tuple[bytes, int], ...] = ()
        if not world.success:
            self._strips[slot].add(world.image(), world.step_index)
            pictures = self._strips[slot].pictures()
        return Look(
            observation=None,
            named=world.named_colour,
            steps=world.step_index,
            success=world.success,
            lifted=tuple(colour for colour, status in cubes.items() if status.lifted),
            film=tuple(self._films.pop(slot, ())),
            phase=trace.phase(world.config.task, world.success),
            nearest_m=trace.nearest_m,
            pictures=pictures,
            dropped=self._playbacks[slot].dropped,
            first=trace.first,
        )
