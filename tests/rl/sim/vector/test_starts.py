"""Episodes that begin in the middle of a demonstration: exactly there, by seed and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import vector_rig
from vector_rig import ALONE, WORLD, expert_targets, expert_world

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.batched import BatchedVectorEnv
from crane_x7_vla_rl.sim.vector.env_worker import EnvOrder, EnvOutcome, EnvWorker, GroupOrder
from crane_x7_vla_rl.sim.vector.make import make
from crane_x7_vla_rl.sim.vector.shared_memory import release, reserve
from crane_x7_vla_rl.sim.vector.starts import (
    STAGES,
    Demonstration,
    MiddleStart,
    Starts,
)
from crane_x7_vla_rl.vector_config import VectorConfigError, episode_seed

SEED = episode_seed(0, 0, 0)


@pytest.fixture(scope="module")
def shown() -> Demonstration:
    """Return what solves episode 0, as `demos` records it: single precision, joints before each."""
    targets, world = expert_targets(0, 0, 0), expert_world()
    world.reset(SEED)
    states = []
    for target in targets:
        states.append(world.position_rad())
        world.step(target)
    return Demonstration(SEED, targets, np.array(states, np.float32))


@pytest.fixture(scope="module")
def worker() -> Iterator[EnvWorker]:
    plan = reserve(1, WORLD.image_size)
    worker = EnvWorker(replace(ALONE, true_state=True), plan)
    yield worker
    release(plan)


def order(
    worker: EnvWorker, steps: int, start: MiddleStart | None = None, fresh: bool = False
) -> EnvOutcome:
    return worker(GroupOrder(0, (EnvOrder(0, SEED, steps, start, fresh),))).outcomes[0]


def run(worker: EnvWorker, targets: np.ndarray) -> EnvOutcome:
    worker.shared.targets_rad[0, : len(targets)] = targets
    return order(worker, len(targets))


def at(shown: Demonstration, count: int, stage: int = 5) -> MiddleStart:
    return MiddleStart(shown.seed, stage, shown.targets_rad[:count], shown.state_rad[: count + 1])


def test_an_episode_goes_on_as_the_demonstration_did_bit_for_bit(
    worker: EnvWorker, shown: Demonstration
) -> None:
    """Image and true state in the middle, with a cube in the hand, and the success at the end."""
    count = len(shown.targets_rad) - 2
    order(worker, 0, fresh=True)
    run(worker, shown.targets_rad[:count])
    image, truth = worker.shared.images[0].copy(), worker.shared.true_state[0].copy()
    assert worker.slots[0].world.is_grasped
    run(worker, np.repeat(worker.shared.state_rad[:1], 3, 0))  # something else comes in between
    order(worker, 0, at(shown, count), fresh=True)
    assert np.array_equal(worker.shared.images[0], image)
    assert np.array_equal(worker.shared.true_state[0], truth)
    ended = run(worker, shown.targets_rad[count:]).ended
    assert ended is not None
    assert (ended.success, ended.stage, ended.seed) == (True, 5, SEED)
    assert ended.steps == 2, "those before it began are not its own"


def test_a_scene_is_built_again_only_where_it_has_moved_and_must_be_fresh(
    worker: EnvWorker, shown: Demonstration
) -> None:
    order(worker, 0, fresh=True)
    new = worker.slots[0].world
    order(worker, 0, fresh=True)
    assert worker.slots[0].world is new, "it has never moved"
    run(worker, shown.targets_rad[:2])
    order(worker, 0)
    assert worker.slots[0].world is new
    order(worker, 0, fresh=True)
    assert worker.slots[0].world is not new


def test_the_next_episode_starts_as_the_task_does(worker: EnvWorker, shown: Demonstration) -> None:
    order(worker, 0, at(shown, len(shown.targets_rad) - 1))
    ended = run(worker, shown.targets_rad[-1:]).ended
    assert ended is not None
    again = run(worker, shown.targets_rad).ended
    assert again is not None
    assert (again.stage, again.steps, again.success) == (None, len(shown.targets_rad), True)


def test_no_episode_begins_at_its_end(worker: EnvWorker, shown: Demonstration) -> None:
    whole = replace(shown, state_rad=np.concatenate([shown.state_rad, shown.state_rad[-1:]]))
    order(worker, 0, at(whole, len(shown.targets_rad)))
    assert not worker.slots[0].world.success
    assert worker.slots[0].world.step_index == len(shown.targets_rad) // 2


def test_a_demonstration_that_does_not_repeat_itself_is_named(
    worker: EnvWorker, shown: Demonstration
) -> None:
    noisy = replace(shown, state_rad=shown.state_rad + np.float32(0.03))
    with pytest.raises(SimError, match=rf"seed {SEED} does not repeat .* after 7 steps .* again"):
        order(worker, 0, at(noisy, 7))


def test_only_scenes_in_processes_can_repeat_it(shown: Demonstration) -> None:
    with pytest.raises(SimError, match="use --backend cpu"):
        BatchedVectorEnv.start_from(object(), Starts([shown], 0.5))  # type: ignore[arg-type]


# --- the choice -----------------------------------------------------------------------------------


def fake(steps: int = 50) -> Demonstration:
    return Demonstration(3, np.zeros((steps, 8), np.float32), np.zeros((steps, 8), np.float32))


def test_the_choice_follows_from_seed_environment_and_episode_alone() -> None:
    starts = Starts([fake(), replace(fake(), seed=4)], 0.5)
    found = [starts.of(0, env, episode) for env in range(8) for episode in range(50)]
    again = [starts.of(0, env, episode) for env in range(8) for episode in range(50)]
    told = [None if x is None else (x.seed, x.stage, len(x.targets_rad)) for x in found]
    assert told == [None if x is None else (x.seed, x.stage, len(x.targets_rad)) for x in again]
    middle = [x for x in found if x is not None]
    assert 0.4 < len(middle) / len(found) < 0.6
    assert {x.seed for x in middle} == {3, 4}
    assert {x.stage for x in middle} == set(range(STAGES))
    for x in middle:
        assert x.stage * 5 <= len(x.targets_rad) <= x.stage * 5 + 5
        assert len(x.state_rad) == len(x.targets_rad) + 1


def test_weights_decide_how_often_a_stage_is_chosen() -> None:
    starts = Starts([fake()], 1.0).weighted([3.0, *[0.0] * 8, 1.0])
    count = Counter(
        start.stage for episode in range(400) if (start := starts.of(0, 0, episode)) is not None
    )
    assert set(count) == {0, STAGES - 1}
    assert 2 < count[0] / count[STAGES - 1] < 4.5
    assert Starts([fake()], 0.0).of(0, 0, 0) is None


def test_the_shortest_demonstration_has_a_middle() -> None:
    starts = Starts([fake(1)], 1.0)
    found = starts.of(0, 0, 0)
    assert found is not None
    assert found.targets_rad.shape == (0, 8)
    assert found.state_rad.shape == (1, 8)


# --- the same scene -------------------------------------------------------------------------------


def test_environments_in_a_row_share_a_scene() -> None:
    config = replace(ALONE, num_envs=4, same_scene=2, first_env=4)
    seeds = [config.seed_of(0, env, 3) for env in range(4)]
    assert seeds[0] == seeds[1] == episode_seed(0, 2, 3)
    assert seeds[2] == seeds[3] == episode_seed(0, 3, 3)
    assert seeds[0] != seeds[2]
    with pytest.raises(VectorConfigError, match="same_scene is 3, expected a divisor of the 4"):
        replace(config, same_scene=3)


@pytest.mark.slow
def test_processes_begin_where_they_are_told_and_a_resumed_run_does_so_again(
    shown: Demonstration,
) -> None:
    env = make(replace(vector_rig.FOUR, same_scene=2))
    try:
        assert np.array_equal(*env.look(0).images)
        env.start_from(Starts([shown], 1.0))
        env.load_state_dict({"seed": 5, "episodes": [2, 0, 1, 7]})
        one = env.look(1).images.copy()
        assert not np.array_equal(one[0], one[1]), "stages differ"
        ends = vector_rig.run(env, 1, vector_rig.waving(env.groups[1], 50)).episodes
        assert all(episode.stage is not None and episode.seed == SEED for episode in ends)
        env.load_state_dict({"seed": 5, "episodes": [2, 0, 1, 7]})
        assert np.array_equal(env.look(1).images, one)
    finally:
        env.close()
