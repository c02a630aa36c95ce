"""Processes that die or hang: reported, replaced, their episodes discarded, nobody else harmed."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vector_rig
from vector_rig import FOUR, run, still, waving

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.cpu import LOSSES, CpuVectorEnv
from crane_x7_vla_rl.vector_config import VectorConfig, episode_seed

DEADLINE_S = 5.0


@pytest.fixture
def env() -> CpuVectorEnv:
    return vector_rig.four()


def test_a_killed_process_is_reported_and_replaced_and_its_episodes_are_discarded(
    env: CpuVectorEnv, caplog: pytest.LogCaptureFixture
) -> None:
    env.reset(3)
    run(env, 0, waving(range(2), 4))
    unharmed = env.look(0).state_rad[1].copy()
    env.reset(3)
    looked = env.look(1).images.copy()
    victim = env.process_ids[0]
    with caplog.at_level(logging.WARNING):
        env.send(0, waving(range(2), 4))
        os.kill(victim, signal.SIGKILL)
        steps = env.receive(0)
    assert "exit code -9" in caplog.text
    assert "episodes of environments [0, 2] discarded" in caplog.text
    assert env.process_ids[0] != victim
    # env 0 lives in the killed process, env 1 in the other one
    assert steps.discarded.tolist() == [True, False]
    assert steps.steps.tolist() == [0, 4]
    assert not steps.terminated.any()
    assert not steps.episodes
    np.testing.assert_array_equal(env.look(0).state_rad[1], unharmed)
    # env 2, too, but its view was being looked at: it stays until targets are sent
    np.testing.assert_array_equal(env.look(1).images, looked)
    steps = run(env, 1, waving(range(2, 4), 4))
    assert steps.discarded.tolist() == [True, False]
    assert (env.look(1).images[0] != looked[0]).any()
    assert env.state_dict()["episodes"] == [1, 0, 1, 0]
    for group in range(2):
        assert not run(env, group, still(env, group, 1)).discarded.any()


def test_a_process_that_died_while_nobody_waited_is_noticed_by_the_next_who_does(
    env: CpuVectorEnv, caplog: pytest.LogCaptureFixture
) -> None:
    env.reset(3)
    victim = env.process_ids[1]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{victim}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        steps = run(env, 0, waving(range(2), 4))
    assert steps.discarded.tolist() == [False, True]
    assert "environments [1, 3] discarded" in caplog.text
    os.kill(env.process_ids[1], signal.SIGKILL)
    env.reset(3)  # nothing was running: nothing is lost
    assert env.state_dict() == {"seed": 3, "episodes": [0, 0, 0, 0]}
    assert not run(env, 1, waving(range(2, 4), 4)).discarded.any()


def test_a_hung_process_is_replaced_after_its_deadline(
    env: CpuVectorEnv, caplog: pytest.LogCaptureFixture
) -> None:
    env.reset(3)
    env.config = replace(env.config, deadline_s=DEADLINE_S)
    victim = env.process_ids[0]
    os.kill(victim, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING):
        env.send(1, still(env, 1, 1))
        env.send(0, still(env, 0, 1))
        steps = env.receive(0)
    assert "did not answer within 5 s" in caplog.text
    assert steps.discarded.tolist() == [True, False]
    assert env.receive(1).discarded.tolist() == [True, False]  # its order died with the process
    assert not Path(f"/proc/{victim}").exists()
    seeds = [episode_seed(3, 0, 1), episode_seed(3, 2, 1)]
    assert env.state_dict()["episodes"] == [1, 0, 1, 0]
    env.config = replace(env.config, deadline_s=FOUR.deadline_s)
    ended = [run(env, group, still(env, group, 60)).episodes[0] for group in range(2)]
    assert [episode.seed for episode in ended] == seeds


def test_an_answer_that_came_before_its_process_died_is_discarded_with_the_episode(
    env: CpuVectorEnv,
) -> None:
    env.reset(3)
    for group in (1, 0):
        env.send(group, waving(env.groups[group], 4))
    assert not env.receive(0).discarded.any()  # those of group 1 have answered before
    os.kill(env.process_ids[0], signal.SIGKILL)
    assert run(env, 0, waving(range(2), 4)).discarded.tolist() == [True, False]
    steps = env.receive(1)
    assert steps.discarded.tolist() == [True, False]
    assert steps.steps.tolist() == [0, 4]
    assert env.state_dict()["episodes"] == [1, 0, 1, 0]
    for group in range(2):
        steps = run(env, group, still(env, group, 1))
        assert steps.steps.tolist() == [1, 1]
        assert not steps.discarded.any()


def test_a_process_that_is_lost_again_and_again_is_an_error() -> None:
    env = CpuVectorEnv(VectorConfig(world=FOUR.world, num_envs=1))
    env._workers.restart = str  # type: ignore[method-assign, assignment]  # starts nothing
    try:
        os.kill(env.process_ids[0], signal.SIGKILL)
        with pytest.raises(SimError, match=rf"simulation 0 was lost {LOSSES} times in a row"):
            env.reset()
    finally:
        env.close()
