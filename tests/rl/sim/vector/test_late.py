"""Environments whose answers arrive late: what is executed when, in stand-ins and in ManiSkill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rl_rig import Scripted

from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.vector import make
from crane_x7_vla_rl.sim.vector.late import Late
from crane_x7_vla_rl.sim.vector.protocol import Steps
from crane_x7_vla_rl.timing import Pace, Playback
from crane_x7_vla_rl.vector_config import VectorConfig, VectorConfigError


class Noted(Scripted):
    """Environments that write down what they execute."""

    def __init__(self, script: dict[tuple[int, int], str]) -> None:
        super().__init__(script)
        self.executed: list[list[float]] = [[], [], [], []]
        self.seed, self.episodes = 0, [0, 0, 0, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "episodes": list(self.episodes)}

    def receive(self, group: int) -> Steps:
        steps = super().receive(group)
        for env, ended in zip(self.groups[group], steps.terminated | steps.truncated, strict=True):
            self.episodes[env] += ended
        return steps

    def send(self, group: int, targets_rad: np.ndarray) -> None:
        for env, chunk in zip(self.groups[group], targets_rad, strict=True):
            self.executed[env] += chunk[:, 1].tolist()


def late(inner: Noted, delay: int, **more: Any) -> Late:
    return Late(inner, VectorConfig(num_envs=4, delay=delay, **more))


def drive(env: Late, decisions: int, delay: int, each: int) -> None:
    """Send targets whose second joint says decision and step: 10.2 is step 2 of the tenth."""
    for decision in range(decisions):
        for group in (0, 1):
            env.look(group)
            chunk = np.zeros((2, delay + each, 8), np.float32)
            chunk[:, :, 1] = decision + np.arange(delay + each) / 10
            env.send(group, chunk)
            env.receive(group)


@pytest.mark.parametrize(("delay", "each"), [(1, 2), (2, 2), (3, 2), (5, 2), (2, 4), (4, 1)])
def test_the_arm_does_what_it_does_in_evaluation(delay: int, each: int) -> None:
    inner = Noted({})
    drive(late(inner, delay), 6, delay, each)
    playback = Playback(Pace(1, delay, each), HOME_RAD, seed=0)
    expected = []
    for step in range(6 * each):
        if playback.sees(step):
            chunk = np.zeros((delay + each, 8))
            chunk[:, 1] = step // each + np.arange(delay + each) / 10
            playback.answer(chunk, step)
        expected.append(playback.target(step)[1])
    for env in range(4):
        assert inner.executed[env] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", ["terminated", "truncated", "discarded"])
def test_a_new_episode_waits_for_its_own_answers(how: str) -> None:
    inner = Noted({(1, 2): how})
    drive(late(inner, 3), 4, 3, 2)
    rest = float(HOME_RAD[1])
    assert inner.executed[0] == pytest.approx([rest, rest, rest, 0.3, 0.4, 1.3, 1.4, 2.3], abs=1e-6)
    assert inner.executed[2] == pytest.approx(
        [rest, rest, rest, 0.3, rest, rest, rest, 2.3], abs=1e-6
    )


def delays(seed: int, **more: Any) -> list[list[int]]:
    """Return the delay of each episode of three decisions, by environment, as seen in the arm."""
    inner = Noted({(step, env): "truncated" for step in range(2, 60, 3) for env in range(4)})
    inner.seed = seed
    drive(late(inner, 4, **more), 60, 4, 2)
    found = []
    for executed in inner.executed:
        episodes = np.reshape(executed, (20, 6))
        found.append([int((steps == np.float32(HOME_RAD[1])).sum()) for steps in episodes])
    return found


def test_each_episode_draws_its_delay_by_its_scene() -> None:
    found = delays(0, least_delay=1)
    assert set(np.ravel(found).tolist()) == {1, 2, 3, 4}
    assert len({tuple(each) for each in found}) == 4
    assert delays(0, least_delay=1) == found
    assert delays(1, least_delay=1) != found
    assert delays(0, least_delay=0) != found
    pairs = delays(0, least_delay=1, same_scene=2)
    assert pairs[0] == pairs[1] != pairs[2] == pairs[3]


def test_a_drawn_delay_holds_for_the_whole_episode() -> None:
    inner = Noted({})
    drive(late(inner, 4, least_delay=1), 4, 4, 2)
    for executed in inner.executed:
        delay = int((executed == np.float32(HOME_RAD[1])).sum())
        playback = Playback(Pace(1, delay, 2), HOME_RAD, seed=0)
        for step, target in enumerate(executed):
            if playback.sees(step):
                chunk = np.zeros((6, 8))
                chunk[:, 1] = step // 2 + np.arange(6) / 10
                playback.answer(chunk, step)
            assert playback.target(step)[1] == pytest.approx(target, abs=1e-6)


def test_the_least_delay_is_no_longer_than_the_longest() -> None:
    with pytest.raises(VectorConfigError, match="least_delay is 3 steps, expected at most"):
        VectorConfig(num_envs=4, delay=2, least_delay=3)


@pytest.mark.parametrize("begin", ["reset", "load_state_dict"])
def test_nothing_is_under_way_when_new_episodes_begin(begin: str) -> None:
    inner = Noted({})
    env = late(inner, 2)
    drive(env, 2, 2, 2)
    if begin == "reset":
        env.reset()
    else:
        env.load_state_dict(env.state_dict())
    inner.executed = [[], [], [], []]
    drive(env, 1, 2, 2)
    assert inner.executed[0] == pytest.approx([HOME_RAD[1]] * 2, abs=1e-6)


def test_a_real_arm_stands_still_until_the_answer_comes_and_then_moves() -> None:
    world = WorldConfig(task="Lift-CRANE-X7", image_size=(48, 48), control_hz=10, home_noise_rad=0)
    env = make.make(VectorConfig(world=world, num_envs=1, processes=1, groups=1, delay=3))
    try:
        assert isinstance(env, Late)
        assert (env.num_envs, env.groups) == (1, (range(1),))
        began = np.array(env.look(0).state_rad[0])
        chunk = np.repeat(began[None, None], 5, axis=1)
        chunk[:, :, 0] += 0.3
        moved = []
        for _ in range(4):
            env.send(0, chunk)
            assert env.receive(0).steps.tolist() == [2]
            moved.append(float(env.look(0).state_rad[0][0] - began[0]))
        assert abs(moved[0]) < 0.02
        assert moved[-1] > 0.2
    finally:
        env.close()
