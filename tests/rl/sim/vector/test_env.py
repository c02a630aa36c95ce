"""Environments in processes: reproducible, nothing copied, every end told as what it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import vector_rig
from vector_rig import ALONE, FOUR, WORLD, expert_targets, run, still, waving

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.cpu import CpuVectorEnv
from crane_x7_vla_rl.sim.vector.env_worker import EnvOrder, EnvOutcome, EnvWorker, GroupOrder
from crane_x7_vla_rl.sim.vector.make import make
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv, Views
from crane_x7_vla_rl.sim.vector.shared_memory import SharedPlan, release, reserve
from crane_x7_vla_rl.vector_config import RewardKind, Rewards, VectorConfig, episode_seed

WAIT_S = 60.0


@pytest.fixture
def four() -> CpuVectorEnv:
    return vector_rig.four()


@pytest.fixture(scope="module")
def worker() -> Iterator[EnvWorker]:
    plan = reserve(1, WORLD.image_size)
    worker = EnvWorker(ALONE, plan)
    order(worker, 0, 0)
    yield worker
    release(plan)


def paying(worker: EnvWorker, kind: RewardKind) -> EnvWorker:
    """Return the worker, its slot paying in another way: a scene takes seconds to build."""
    worker.slots[0]._rewards = Rewards(kind)
    return worker


def order(worker: EnvWorker, seed: int, steps: int) -> EnvOutcome:
    return worker(GroupOrder(0, (EnvOrder(0, seed, steps),))).outcomes[0]


def solve(worker: EnvWorker, steps: int | None = None) -> EnvOutcome:
    """Carry out what solves episode 0, after a fresh start."""
    targets = expert_targets(0, 0, 0)[:steps]
    order(worker, episode_seed(0, 0, 0), 0)
    worker.shared.targets_rad[0, : len(targets)] = targets
    return order(worker, episode_seed(0, 0, 1), len(targets))


def copied(views: Views) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return views.images.copy(), views.state_rad.copy(), list(views.instructions)


def trace(env: VectorEnv, envs: range) -> list[list[object]]:
    """Return what there is to see in the last group, `envs`, over the end of an episode."""
    env.reset(7)
    seen = []
    group = len(env.groups) - 1
    for chunk in range(4):
        run(env, group, waving(envs, 16, seed=chunk))
        images, state_rad, words = copied(env.look(group))
        seen.append([images.tolist(), state_rad.tolist(), words])
    return seen


def test_the_same_seeds_make_the_same_episodes_whatever_process_and_rank_holds_them(
    four: CpuVectorEnv,
) -> None:
    in_two = trace(four, range(2, 4))
    other = make(replace(FOUR, num_envs=2, first_env=2, processes=1, groups=1))
    try:
        assert trace(other, range(2, 4)) == in_two
    finally:
        other.close()


def test_no_true_state_is_told_to_who_did_not_want_it(four: CpuVectorEnv) -> None:
    assert four.look(0).true_state is None


def test_out_of_time_is_truncated_and_shows_the_final_view_and_then_the_next_episode(
    four: CpuVectorEnv,
) -> None:
    four.reset(0)
    told = list(four.look(0).instructions)
    run(four, 0, waving(four.groups[0], 30))
    steps = run(four, 0, waving(four.groups[0], 30, seed=1))
    assert steps.steps.tolist() == [20, 20]
    assert steps.truncated.all()
    assert not steps.terminated.any()
    assert not steps.discarded.any()
    assert steps.reward.tolist() == [0, 0]
    assert [(e.env, e.seed, e.success, e.steps) for e in steps.episodes] == [
        (env, episode_seed(0, env, 0), False, 50) for env in (0, 1)
    ]
    assert steps.final is not None
    assert steps.final.instructions == told
    assert np.shares_memory(steps.final.images, four._shared.final_images)
    final, now = copied(steps.final), copied(four.look(0))
    assert np.abs(final[1] - now[1]).max() > 0.1  # the arm is at home again
    assert (final[0] != now[0]).any()
    assert four.state_dict() == {"seed": 0, "episodes": [1, 1, 0, 0]}
    four.load_state_dict(four.state_dict())
    for resumed, seen in zip(copied(four.look(0)), now, strict=True):
        np.testing.assert_array_equal(resumed, seen)


def test_success_is_terminated_and_resets_that_environment_alone(four: CpuVectorEnv) -> None:
    targets = expert_targets(0, 0, 0)
    four.reset(0)
    both = np.concatenate([targets[None], np.repeat(still(four, 0, 1)[1:], len(targets), 1)])
    steps = run(four, 0, both)
    assert steps.terminated.tolist() == [True, False]
    assert not steps.truncated.any()
    assert steps.final is None
    assert steps.reward.tolist() == [1, 0]
    assert steps.episodes[0].success
    assert four.state_dict()["episodes"] == [1, 0, 0, 0]
    left = WORLD.max_steps - len(targets)
    before = four.look(0).images.astype(int)
    steps = run(four, 0, still(four, 0, left))
    assert steps.truncated.tolist() == [False, True]
    assert steps.final is not None
    assert steps.final.rows.tolist() == [1]
    apart = np.abs(steps.final.images - before).mean((1, 2, 3))
    assert apart[1] < apart[0], "the final view is that of another environment"
    steps = run(four, 0, still(four, 0, 60))
    assert steps.truncated.all()
    assert steps.steps.tolist() == [50 - left, 50]


def test_groups_step_while_another_is_looked_at(four: CpuVectorEnv) -> None:
    four.reset(0)
    looked = four.look(0)
    before = copied(looked)
    started = four.look(1).state_rad.copy()
    four.send(1, waving(four.groups[1], 20))
    deadline = time.monotonic() + WAIT_S
    while np.array_equal(four._shared.state_rad[2:], started):
        assert time.monotonic() < deadline, "group 1 does not step until its results are received"
        time.sleep(0.01)
    np.testing.assert_array_equal(looked.images, before[0])
    np.testing.assert_array_equal(looked.state_rad, before[1])
    four.send(0, still(four, 0, 2))  # answers come in the order of orders, not of questions
    assert four.receive(0).steps.tolist() == [2, 2]
    assert four.receive(1).steps.tolist() == [20, 20]


def test_views_are_shared_memory(four: CpuVectorEnv) -> None:
    four.reset(0)
    views = four.look(1)
    assert np.shares_memory(views.images, four.look(1).images)
    assert np.shares_memory(views.images, four._shared.images)
    assert np.shares_memory(views.state_rad, four._shared.state_rad)
    assert not np.shares_memory(views.images, four.look(0).images)
    assert views.images.dtype == np.uint8
    assert views.state_rad.shape == (2, 8)


def test_the_whole_is_reset_in_the_midst_of_a_chunk(four: CpuVectorEnv) -> None:
    four.reset(0)
    first = copied(four.look(0))
    four.send(0, waving(four.groups[0], 20))
    four.reset(0)
    np.testing.assert_array_equal(four.look(0).images, first[0])


def test_wrong_use_says_what_was_expected(four: CpuVectorEnv) -> None:
    four.reset(0)
    with pytest.raises(SimError, match="group 0 has no targets"):
        four.receive(0)
    with pytest.raises(SimError, match=r"shape \(2, 3\), expected \(2, T, 8\)"):
        four.send(0, np.zeros((2, 3)))
    with pytest.raises(SimError, match="65 steps, expected 1 to 64"):
        four.send(0, np.zeros((2, 65, 8)))
    with pytest.raises(SimError, match="environment 3 is not finite"):
        four.send(1, np.stack([np.zeros((1, 8)), np.full((1, 8), np.nan)]))
    targets = still(four, 0, 1)
    four.send(0, targets)
    with pytest.raises(SimError, match="group 0 has targets already; call receive next"):
        four.send(0, targets)
    with pytest.raises(SimError, match="group 0 has targets already; call receive next"):
        four.look(0)
    four.receive(0)
    with pytest.raises(SimError, match="holds 3 environments, expected a seed and 4"):
        four.load_state_dict({"seed": 0, "episodes": [0, 0, 0]})


# --- rewards, in this process ---------------------------------------------------------------------


def test_binary_pays_in_the_step_of_success(worker: EnvWorker) -> None:
    scenes = paying(worker, "binary")
    targets = expert_targets(0, 0, 0)
    assert solve(scenes, len(targets) - 1).reward == 0
    outcome = solve(scenes)
    assert outcome.reward == 1
    assert outcome.ended is not None
    assert outcome.ended.steps == len(targets)
    assert not outcome.truncated


def test_sparse_pays_at_the_end_and_only_where_success_holds_then(worker: EnvWorker) -> None:
    scenes = paying(worker, "sparse")
    targets = expert_targets(0, 0, 0)
    left = WORLD.max_steps - len(targets)
    for holds in (True, False):
        outcome = solve(scenes)
        assert (outcome.reward, outcome.ended) == (0, None)
        dropped = targets[-1] + (0 if holds else np.array([0, 0, 0, 0, 0, 0, 0, 1]))
        scenes.shared.targets_rad[0, :left] = dropped
        outcome = order(scenes, 1, left)
        assert outcome.reward == holds
        assert outcome.ended is not None
        assert outcome.ended.success is holds
        assert not outcome.truncated  # the end is part of the task: nothing is worth anything after


def test_dense_adds_up_to_what_was_gained(worker: EnvWorker) -> None:
    scenes = paying(worker, "dense")
    order(scenes, episode_seed(0, 0, 0), 0)
    began = scenes.slots[0].world.progress()
    outcome = solve(scenes)
    assert outcome.ended is not None
    assert outcome.ended.success
    assert 0.4 < outcome.reward < 1 - began + 1e-6
    assert outcome.ended.total_reward == outcome.reward
    away = solve(scenes, len(expert_targets(0, 0, 0)) - 3)
    assert away.reward < outcome.reward


def test_nan_in_an_observation_or_reward_names_environment_and_seed(worker: EnvWorker) -> None:
    for kind, what in (("binary", "observation state_rad"), ("dense", "reward")):
        scenes = paying(worker, kind)  # type: ignore[arg-type]
        order(scenes, 77, 0)
        robot = scenes.slots[0].world.scene.agent.robot
        if kind == "dense":
            scenes.slots[0]._progress = float("nan")
        else:
            robot.set_qpos(np.full((1, 9), np.nan, dtype=np.float32))
        scenes.shared.targets_rad[0, :1] = 0
        with pytest.raises(SimError, match=rf"environment 0 \(seed 77\), step 1: {what} is .*nan"):
            order(scenes, 78, 1)


def test_memory_of_a_process_that_has_ended_cannot_be_mapped() -> None:
    with pytest.raises(SimError, match=r"shared memory of process \d+ cannot be opened"):
        SharedPlan(1, (4, 4), file=999_999).map()


def test_more_processes_than_environments_are_not_started() -> None:
    env = CpuVectorEnv(VectorConfig(world=WORLD, num_envs=2, processes=8, groups=2))
    try:
        assert len(env.process_ids) == 1
        assert env.envs_of(0) == [0, 1]
    finally:
        env.close()
