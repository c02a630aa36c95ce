"""The true state is true, is the same from every backend, and is told only where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import sapien
import torch
import vector_rig
from vector_rig import ALONE, WORLD, expert_targets

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.scenes import COLOUR_NAMES
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector import genesis
from crane_x7_vla_rl.sim.vector.env_worker import EnvOrder, EnvOutcome, EnvWorker, GroupOrder
from crane_x7_vla_rl.sim.vector.maniskill_gpu import lone_scene
from crane_x7_vla_rl.sim.vector.shared_memory import release, reserve
from crane_x7_vla_rl.sim.vector.true_state import DM_PER_M, FIELDS, LIMIT, TRUE_STATE, true_state
from crane_x7_vla_rl.vector_config import episode_seed

TELLING = replace(ALONE, true_state=True)


@pytest.fixture(scope="module")
def worker() -> Iterator[EnvWorker]:
    plan = reserve(1, WORLD.image_size)
    worker = EnvWorker(TELLING, plan)
    order(worker, 0, 0)
    yield worker
    release(plan)


def order(worker: EnvWorker, seed: int, steps: int) -> EnvOutcome:
    return worker(GroupOrder(0, (EnvOrder(0, seed, steps),))).outcomes[0]


def part(state: np.ndarray, name: str) -> np.ndarray:
    start = sum(list(FIELDS.values())[: list(FIELDS).index(name)])
    return state[start : start + FIELDS[name]]


def run(worker: EnvWorker, targets: np.ndarray) -> EnvOutcome:
    worker.shared.targets_rad[0, : len(targets)] = targets
    return order(worker, episode_seed(0, 0, 1), len(targets))


def test_it_holds_what_the_simulator_knows(worker: EnvWorker) -> None:
    order(worker, episode_seed(0, 0, 0), 0)
    start = worker.shared.true_state[0].copy()
    world, scene = worker.slots[0].world, worker.slots[0].world.scene
    assert start.shape == (TRUE_STATE,)
    assert np.allclose(part(start, "joints"), worker.shared.state_rad[0])
    assert np.allclose(part(start, "plate"), DM_PER_M * scene.plate.pose.p[0].numpy())
    cube = scene.cubes[world.named_colour].pose.p[0].numpy()
    assert np.allclose(part(start, "named_cube"), DM_PER_M * cube)
    number = COLOUR_NAMES.index(world.named_colour)
    assert part(start, "named").tolist() == [float(index == number) for index in range(3)]
    assert np.allclose(part(start, "cubes")[3 * number :][:3], DM_PER_M * cube)
    assert part(start, "present").tolist() == [1, 1, 1]
    assert (part(start, "grasped")[0], part(start, "elapsed")[0]) == (0, 0)


def test_it_follows_the_grasp_and_the_clock(worker: EnvWorker) -> None:
    order(worker, episode_seed(0, 0, 0), 0)
    targets = expert_targets(0, 0, 0)
    run(worker, targets[:-1])
    held = worker.shared.true_state[0].copy()
    assert part(held, "grasped")[0] == 1
    assert part(held, "elapsed")[0] == pytest.approx((len(targets) - 1) / WORLD.max_steps)
    assert np.abs(part(held, "tool_to_named_cube")).max() < 0.3, "dm"
    assert part(held, "named_cube")[2] > 1, "lifted by a decimetre"


def test_the_last_state_of_an_episode_out_of_time_is_kept_apart(worker: EnvWorker) -> None:
    order(worker, episode_seed(0, 0, 0), 0)
    outcome = run(worker, np.repeat(worker.shared.state_rad[:1], WORLD.max_steps, 0))
    assert outcome.truncated
    assert part(worker.shared.final_true_state[0], "elapsed")[0] == 1
    assert part(worker.shared.true_state[0], "elapsed")[0] == 0


def test_a_cube_that_was_flung_away_is_no_huge_number(worker: EnvWorker) -> None:
    order(worker, episode_seed(0, 0, 0), 0)
    world = worker.slots[0].world
    world.scene.cubes[world.named_colour].set_pose(sapien.Pose([50.0, 0.1, -2000.0]))
    told = true_state(world.scene, torch.tensor([False]), torch.tensor([0.5]))[0].numpy()
    assert part(told, "named_cube").tolist() == [LIMIT, pytest.approx(1), -LIMIT]
    assert part(told, "named_cube_to_plate")[2] == LIMIT
    assert np.abs(told).max() == LIMIT


def test_scenes_in_one_simulation_tell_what_processes_do(worker: EnvWorker) -> None:
    scene = lone_scene(TELLING)
    try:
        scene.reset(0)
        order(worker, episode_seed(0, 0, 0), 0)
        targets = expert_targets(0, 0, 0)[:12]
        run(worker, targets)
        vector_rig.run(scene, 0, targets[None])
        told = scene.look(0).true_state
        assert isinstance(told, torch.Tensor)
        assert np.allclose(told[0].numpy(), worker.shared.true_state[0], atol=1e-4)
        steps = vector_rig.run(scene, 0, vector_rig.still(scene, 0, WORLD.max_steps))
        assert steps.final is not None
        assert part(steps.final.true_state[0].numpy(), "elapsed")[0] == 1
    finally:
        scene.close()


def test_genesis_says_that_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    with pytest.raises(SimError, match="use --critic own or shared"):
        genesis.make(replace(TELLING, simulator="genesis"))


def test_parts_add_up() -> None:
    assert FIELDS["joints"] == DOF
    assert sum(FIELDS.values()) == TRUE_STATE
