"""Genesis through the same interface; without it, the message says how to get it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from vector_rig import FOUR, WORLD, expert_targets, run, still, waving

from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.make import make
from crane_x7_vla_rl.vector_config import VectorConfig, episode_seed

INSTALLED = importlib.util.find_spec("genesis") is not None
needs_genesis = pytest.mark.skipif(not INSTALLED, reason="pip install genesis-world")


@pytest.mark.skipif(INSTALLED, reason="it is installed")
def test_without_genesis_the_message_says_how_to_install_it() -> None:
    with pytest.raises(SimError, match=r"genesis cannot be imported.*pip install.*\[genesis\]"):
        make(VectorConfig(simulator="genesis"))


@needs_genesis
def test_a_task_without_scenes_there_is_named() -> None:
    world = WorldConfig(task="PickPlace-CRANE-X7")
    with pytest.raises(SimError, match=r"PickPlace-CRANE-X7 has no scenes for Genesis, only Lift"):
        make(VectorConfig(world=world, simulator="genesis"))


@needs_genesis
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # its dependencies' own
def test_genesis_steps_sees_ends_and_repeats_itself() -> None:
    """The first run on a machine compiles for minutes."""
    env = make(VectorConfig(world=WORLD, num_envs=2, simulator="genesis"))
    try:
        first = env.look(0)
        assert first.images.shape == (2, 32, 32, 3)
        assert float(first.images.float().std()) > 10, "the picture is empty"
        assert not np.array_equal(first.images[0], first.images[1])
        assert all(words.startswith("pick up the ") for words in first.instructions)
        moved = run(env, 0, waving(env.groups[0], 10))
        after = env.look(0)
        assert float((after.state_rad - first.state_rad).abs().max()) > 0.1
        steps = run(env, 0, still(env, 0, 60))
        assert moved.steps.tolist() == [10, 10]
        assert steps.truncated.tolist() == [True, True]
        assert steps.steps.tolist() == [40, 40]
        assert [episode.seed for episode in steps.episodes] == [
            episode_seed(0, number, 0) for number in (0, 1)
        ]
        assert steps.final is not None
        env.reset(0)
        # What lifts the cubes in ManiSkill lifts those of the same seeds here.
        solutions = [expert_targets(0, number, 0) for number in env.groups[0]]
        longest = 4 + max(map(len, solutions))
        held = [np.pad(s, ((0, longest - len(s)), (0, 0)), mode="edge") for s in solutions]
        lifted = run(env, 0, np.stack(held))
        assert lifted.terminated.all()
        assert lifted.reward.tolist() == [1, 1]
        assert env.state_dict()["episodes"] == [1, 1]
        env.reset(0)
        np.testing.assert_array_equal(env.look(0).images, first.images)
        run(env, 0, waving(env.groups[0], 10))
        np.testing.assert_allclose(env.look(0).state_rad, after.state_rad, atol=1e-5)
    finally:
        env.close()


@needs_genesis
def test_options_that_genesis_lacks_are_refused() -> None:
    world = WorldConfig(camera_noise=2.0)
    with pytest.raises(SimError, match="camera_noise must be 0"):
        make(VectorConfig(world=world, simulator="genesis", num_envs=FOUR.num_envs))
