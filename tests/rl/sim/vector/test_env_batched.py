"""All scenes in one simulation: the same episodes as in processes; what a machine lacks is said.

GPU PhysX is not available, so its code runs with one scene on the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from vector_rig import ALONE, expert_targets, run, still, waving

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.batched import BatchedVectorEnv
from crane_x7_vla_rl.sim.vector.make import make
from crane_x7_vla_rl.sim.vector.maniskill_gpu import Machine, lone_scene, this_machine
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from crane_x7_vla_rl.vector_config import Rewards, VectorConfig, episode_seed

HERE = Path(__file__)


DENSE = replace(ALONE, rewards=Rewards("dense"))


@pytest.fixture(scope="module")
def scene() -> Iterator[BatchedVectorEnv]:
    """Return a scene that can pay in any way."""
    env = lone_scene(DENSE)
    env.reset()
    yield env
    env.close()


@pytest.fixture
def batched(scene: BatchedVectorEnv) -> BatchedVectorEnv:
    """Return it, paying for success alone."""
    scene.config = ALONE
    return scene


def story(env: VectorEnv) -> list[list[object]]:
    """Return copies of all that is told, over a success and over the end of time."""
    env.reset(0)
    solution = expert_targets(0, 0, 0)[None]
    told: list[list[object]] = []
    for targets in (solution, *(waving(range(1), 20, seed) for seed in range(3))):
        steps = run(env, 0, targets)
        views = env.look(0)
        final = steps.final
        told.append([
            np.round(steps.reward, 5).tolist(), steps.steps.tolist(), steps.terminated.tolist(),
            steps.truncated.tolist(), steps.discarded.tolist(),
            [replace(e, total_reward=round(e.total_reward, 5)) for e in steps.episodes],
            views.instructions, np.asarray(views.images).copy(), np.asarray(views.state_rad).copy(),
            None if final is None else np.asarray(final.images).copy(),
            None if final is None else (np.asarray(final.state_rad).copy(), final.instructions),
        ])  # fmt: skip
    return told


def test_it_tells_the_same_story_as_processes(scene: BatchedVectorEnv) -> None:
    scene.config = DENSE
    process = make(DENSE)
    try:
        np.testing.assert_equal(story(scene), story(process))
    finally:
        process.close()


def test_binary_pays_success_alone_and_tells_both_ends_apart(batched: BatchedVectorEnv) -> None:
    told = story(batched)
    assert [line[0] for line in told] == [[1], [0], [0], [0]]
    assert [line[2] for line in told] == [[True], [False], [False], [False]]  # terminated
    assert [line[3] for line in told] == [[False], [False], [False], [True]]  # truncated


def test_sparse_runs_its_whole_time(batched: BatchedVectorEnv) -> None:
    batched.config = replace(ALONE, rewards=Rewards("sparse"))
    batched.reset(0)
    solution = expert_targets(0, 0, 0)[None]
    steps = run(batched, 0, solution)
    assert not steps.terminated.any()
    held = np.repeat(solution[:, -1:], 50 - solution.shape[1], axis=1)
    steps = run(batched, 0, held)
    assert steps.terminated.tolist() == [True]
    assert steps.reward.tolist() == [1.0]


def test_tensors_stay_and_earlier_views_are_not_overwritten(batched: BatchedVectorEnv) -> None:
    batched.reset(0)
    views = batched.look(0)
    assert isinstance(views.images, torch.Tensor)
    assert isinstance(views.state_rad, torch.Tensor)
    before = views.images.clone()
    run(batched, 0, waving(range(1), 4))
    assert torch.equal(views.images, before)
    assert not torch.equal(batched.look(0).images, before)


def test_nan_names_environment_and_seed(batched: BatchedVectorEnv) -> None:
    batched.reset(0)
    scene = batched.scenes._scene  # type: ignore[attr-defined]
    with pytest.raises(SimError, match="environment 0 is not finite"):
        batched.send(0, torch.full((1, 1, 8), torch.nan))
    run(batched, 0, still(batched, 0, 1))
    scene.agent.robot.set_qpos(torch.full((1, 9), torch.nan))
    says = rf"environment 0 \(seed {episode_seed(0, 0, 0)}\), step 1: observation state_rad"
    with pytest.raises(SimError, match=says):
        batched.look(0)
    batched.reset(0)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (Machine(False, HERE, False), "no CUDA GPU.*nvidia-smi.*--gpus all"),
        (Machine(True, HERE / "105/gone.so", True), "GPU PhysX library .* is missing.*release 105"),
        (Machine(True, HERE, False), "no Vulkan device.*NVIDIA_DRIVER_CAPABILITIES"),
    ],
)
def test_what_a_gpu_machine_lacks_is_said_with_its_remedy(machine: Machine, says: str) -> None:
    with pytest.raises(SimError, match=says):
        machine.check()


def test_a_machine_that_has_all_is_let_through() -> None:
    library = next(Path(np.__file__).parent.rglob("*.so"))  # of a version without a checksum
    Machine(True, library, True).check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_backend_without_a_gpu_says_so() -> None:
    assert not this_machine().cuda
    with pytest.raises(SimError, match="no CUDA GPU"):
        make(VectorConfig(backend="gpu"))


@pytest.mark.skipif(importlib.util.find_spec("isaacsim") is not None, reason="it is installed")
def test_isaac_sim_says_what_to_install() -> None:
    with pytest.raises(SimError, match=r"isaacsim and isaaclab cannot be imported.*pip install"):
        make(VectorConfig(simulator="isaacsim"))
