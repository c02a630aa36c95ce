"""A varied scene differs from training's in what its name says, in the real simulation on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from crane_x7_vla_rl.scenes import Variation, WorldConfig
from crane_x7_vla_rl.sim.agent import LOOP_ACCELERATION, LOOP_VELOCITY
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.expert import Expert
from crane_x7_vla_rl.sim.scene import COLOURS, CUBE_HALF_M, cube_rgb
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.vector_config import VectorConfig, VectorConfigError

SEED = 1_000_000
HZ = 20
Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a function that makes a world with these variations, at the start of one seed."""
    made: list[World] = []

    def one(**values: float) -> World:
        world = World(
            WorldConfig(control_hz=HZ, image_size=(64, 48), variation=Variation(**values))
        )
        made.append(world)
        world.reset(SEED)
        return world

    yield one
    for world in made:
        world.close()


def lifts(world: World) -> bool:
    """Whether the scripted expert succeeds."""
    expert = Expert(world)
    expert.reset()
    while not world.ended:
        world.step(expert.act())
    return world.success


def named_cube(world: World) -> np.ndarray:
    """(3,) position of the named cube."""
    return np.asarray(world.scene.cubes[world.named_colour].pose.p[0], dtype=np.float64)


def test_light_changes_the_images_brightness_and_nothing_else(make: Make) -> None:
    plain, dark, bright = make(), make(light=0.5), make(light=1.5)
    means = [float(world.image().mean()) for world in (dark, plain, bright)]
    assert means[0] < 0.85 * means[1] < means[1] < means[2]
    assert np.array_equal(named_cube(dark), named_cube(plain))
    assert dark.named_colour == plain.named_colour


def test_hue_and_lightness_recolour_the_cubes(make: Make) -> None:
    assert cube_rgb("red", Variation()) == COLOURS["red"]
    red, green, blue = cube_rgb("red", Variation(hue_deg=30))
    assert red > green > 2 * blue
    assert sum(cube_rgb("blue", Variation(lightness=1.4))) > 1.2 * sum(COLOURS["blue"])
    assert max(cube_rgb("green", Variation(lightness=2))) <= 1
    plain, other = make(), make(hue_deg=30)
    changed = np.abs(plain.image().astype(int) - other.image()).max(axis=2) > 30
    assert 0 < changed.mean() < 0.05


@pytest.mark.parametrize("size", [0.7, 1.3])
def test_a_cube_of_another_size_rests_on_the_table_and_can_be_lifted(
    make: Make, size: float
) -> None:
    world = make(cube_size=size)
    assert named_cube(world)[2] == pytest.approx(CUBE_HALF_M * size, abs=1e-4)
    world.step(world.position_rad())
    assert named_cube(world)[2] == pytest.approx(CUBE_HALF_M * size, abs=1e-3)
    assert world.height_m == pytest.approx(0, abs=1e-3)
    assert lifts(world)


def test_without_friction_the_cube_slips_out_of_the_hand(make: Make) -> None:
    assert lifts(make())
    slippery = make(friction=0)
    assert not lifts(slippery)
    assert named_cube(slippery)[2] < 0.03


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_slow_arm_keeps_its_limits_and_arrives(make: Make, share: float) -> None:
    world = make(arm_speed=share)
    start = world.position_rad()
    target = start.copy()
    target[0] += 1.0
    positions = [start[0]]
    for _ in range(60):
        world.step(target)
        positions.append(world.position_rad()[0])
    speeds = np.diff(positions) * HZ
    most = share * LOOP_ACCELERATION[0]
    assert positions[-1] == pytest.approx(target[0], abs=0.01)
    assert max(positions) < target[0] + 0.01
    assert speeds.max() < share * LOOP_VELOCITY[0]
    # Half the way is sped up: 1 rad takes no less than 2·√(1 rad / a).
    arrived = next(index for index, at in enumerate(positions) if at > target[0] - 0.02)
    assert 0.9 * 2 * most**-0.5 < arrived / HZ < 1.5 * 2 * most**-0.5
    assert np.abs(np.diff(speeds)).max() * HZ < 1.5 * most


def test_a_slow_arm_starts_each_episode_at_rest(make: Make) -> None:
    world = make(arm_speed=0.5)
    target = world.position_rad().copy()
    target[0] += 1.0
    for _ in range(10):
        world.step(target)
    world.reset(SEED)
    start = world.position_rad()
    for _ in range(5):
        world.step(start)
    assert np.abs(world.position_rad() - start)[:7].max() < 0.02


def test_the_camera_moves_by_exactly_its_distance_in_a_direction_per_seed(make: Make) -> None:
    world = make(camera_offset_m=0.02)
    shifts = []
    for seed in (SEED, SEED + 1, SEED):
        world.reset(seed)
        shifts.append(world._camera.get_local_pose().p - world._camera_at.p)
    assert [float(np.linalg.norm(shift)) for shift in shifts] == pytest.approx([0.02] * 3, abs=1e-6)
    assert np.array_equal(shifts[0], shifts[2])
    assert not np.allclose(shifts[0], shifts[1], atol=1e-3)


def test_a_variation_is_in_the_results_only_where_there_is_one() -> None:
    assert "variation" not in WorldConfig().as_dict()
    varied = WorldConfig(variation=Variation(light=0.5)).as_dict()
    assert varied["variation"]["light"] == 0.5


def test_values_out_of_range_are_refused(make: Make) -> None:
    with pytest.raises(SimError, match=r"variation\.light is -1, expected 0 to 4"):
        make(light=-1)


def test_only_the_cpu_backend_varies_scenes() -> None:
    world = WorldConfig(variation=Variation(light=0.5))
    assert VectorConfig(world=world).world is world
    with pytest.raises(VectorConfigError, match="maniskill on the gpu backend cannot vary"):
        VectorConfig(world=world, backend="gpu")
