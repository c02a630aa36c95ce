"""Pictures of random scenes with the arm anywhere. Seeds → images, joints, places of things.

The arm is put there, not driven: about a hundred pictures per second and core. A third of them have
the hand near a thing, some the arm at rest. In a third the hand holds a cube; in the others the
fingers are open or shut by chance, so that only the picture tells what they hold.

Legend: N pictures, S pixels of a side, C cubes; m and rad, in the world's frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.data.progress import episode_bar
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.openvla.image import View, cut_and_resize
from crane_x7_vla_rl.robot import ARM_DOF, DOF, HOME_RAD
from crane_x7_vla_rl.scenes import EVALUATION_SEED, PICK_PLACE_ID, WorldConfig
from crane_x7_vla_rl.types import Array, Image

BATCH: Final = 200
"""Pictures of one request to a worker, which begins in a new scene."""
VARIED_BATCH: Final = 25
"""The same, where each scene has its own light and place of the camera."""
AT_HOME, NEAR_A_THING, HELD = 0.15, 0.35, 0.35
"""Shares of the pictures."""
NEAR_M: Final = 0.02
JOINT_NOISE_RAD: Final = 0.03
LOW_M, HIGH_M = (0.14, -0.20, 0.05), (0.34, 0.20, 0.20)
"""Corners of where the fingertips are."""
FINGERS_RAD: Final = 0.6
AROUND_CUBE_RAD: Final = 0.27
"""Measured angle of fingers that hold a cube."""
AROUND_NOISE_RAD: Final = 0.01
HELD_ABOVE_M: Final = 0.004
"""Of a held cube's centre, above the fingertips."""
HELD_NOISE_M: Final = 0.003
OPENS_RAD: Final = 0.2
"""How much further the fingers are open around a cube of twice the size."""


@dataclass(frozen=True, eq=False)
class Views:
    """N pictures and what is true in them."""

    images: Image
    """(N, S, S, 3) uint8, as the policy sees them."""
    joints_rad: Array
    """(N, 8)."""
    things_m: Array
    """(N, C + 1, 2) x and y of the cubes, then the plate."""
    held: Array
    """(N,) number of the cube in the hand; -1 for none."""


def scenes(colours: tuple[str, ...], vary: float = 0.0) -> WorldConfig:
    """Return the scenes that are drawn: those of demonstrations of chains."""
    return WorldConfig(
        task=PICK_PLACE_ID, control_hz=10, image_size=(320, 240), colours=colours, vary=vary
    )


def draw(count: int, seed: int, config: WorldConfig, view: View, size: int) -> Views:
    """Return `count` pictures; the same seed gives the same ones. Raises SimError."""
    from crane_x7_vla_rl.sim.workers import Workers

    parts: list[Views] = []
    size_of = VARIED_BATCH if config.vary else BATCH
    requests = [(seed, start, min(size_of, count - start)) for start in range(0, count, size_of)]
    number = min(os.cpu_count() or 1, len(requests))
    with (
        Workers(number, partial(_Drawer, config, view, size)) as workers,
        episode_bar("pictures", count) as show,
    ):
        for first in range(0, len(requests), number):
            some = requests[first : first + number]
            for worker, request in enumerate(some):
                workers.send(worker, request)
            parts += [workers.receive(worker) for worker in range(len(some))]
            show(sum(len(part.images) for part in parts))
    return Views(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Views.__annotations__)
    )


class _Drawer:
    """One simulation; answers (seed, number of the first picture, count) with pictures."""

    def __init__(self, config: WorldConfig, view: View, size: int) -> None:
        from crane_x7_vla_rl.sim.world import World

        self._world, self._view, self._size = World(config), view, size

    def __call__(self, request: tuple[int, int, int]) -> Views:
        seed, first, count = request
        generator = np.random.default_rng([seed, first])
        self._world.reset(int(generator.integers(EVALUATION_SEED)))
        rows: list[tuple[Any, ...]] = []
        while len(rows) < count:
            things = self._rearranged(generator)
            try:
                joints = random_joints(generator, things)
            except UnreachableError:
                continue
            held = -1
            if generator.uniform() < HELD:
                held = int(generator.integers(len(things) - 1))
                joints, things[held] = self._put_in_hand(held, joints, generator)
            self._world.put_arm(joints)
            picture = cut_and_resize(self._world.image(), self._view, self._size)
            rows.append((picture, joints, things, held))
        return Views(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _put_in_hand(
        self, number: int, joints: Array, generator: np.random.Generator
    ) -> tuple[Array, Array]:
        """Put a cube between the fingers; returns the joints (8,) that hold it, and its place."""
        import sapien
        from mani_skill.utils.structs import Pose

        from crane_x7_vla_rl.sim.scene import CUBE_HALF_M

        tool = kinematics.tool_frame(joints[:ARM_DOF])
        tool[:3, 3] += generator.normal((0, 0, HELD_ABOVE_M), HELD_NOISE_M)
        cube = list(self._world.scene.cubes.values())[number]
        cube.set_pose(Pose.create(sapien.Pose(tool)))
        larger = self._world.scene.cube_half_m / CUBE_HALF_M - 1
        fingers = AROUND_CUBE_RAD + OPENS_RAD * larger + generator.normal(0, AROUND_NOISE_RAD)
        return np.append(joints[:ARM_DOF], fingers), tool[:2, 3]

    def _rearranged(self, generator: np.random.Generator) -> Array:
        """Return where the things are now, (C + 1, 2)."""
        from crane_x7_vla_rl.sim.layout import Arrangement

        self._world.rearrange(generator, Arrangement.ANY)
        scene = self._world.scene
        actors = (*scene.cubes.values(), scene.plate)
        return np.stack([actor.pose.p[0].numpy()[:2] for actor in actors]).astype(np.float64)


def random_joints(generator: np.random.Generator, things_m: Array) -> Array:
    """Return joints (8,), for things at (C + 1, 2); raises UnreachableError."""
    point = generator.uniform(LOW_M, HIGH_M)
    kind = generator.uniform()
    if kind < NEAR_A_THING:
        thing = things_m[generator.integers(len(things_m))]
        point[:2] = thing + generator.normal(0, NEAR_M, 2)
    arm = above(point[:2], point[2])
    if kind > 1 - AT_HOME:
        arm = HOME_RAD[:ARM_DOF].copy()
    arm = arm + generator.normal(0, JOINT_NOISE_RAD, ARM_DOF)
    found: Array = np.append(arm, generator.uniform(0, FINGERS_RAD))
    assert found.shape == (DOF,)
    return found


def above(place_m: Array, height_m: float) -> Array:
    """Return the arm's joints (7,) over (x, y), the wrist as at home; raises UnreachableError."""
    x, y = place_m
    return kinematics.reach((x, y, height_m), float(np.arctan2(y, x) - HOME_RAD[ARM_DOF - 1]))
