"""Environments whose answers arrive late: what is executed when, in stand-ins and in ManiSkill."""

from __future__ import annotations

import numpy as np
import pytest
from rl_rig import Scripted

from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.vector import make
from crane_x7_vla_rl.sim.vector.late import Late
from crane_x7_vla_rl.timing import Pace, Playback
from crane_x7_vla_rl.vector_config import VectorConfig


class Noted(Scripted):
    """Environments that write down what they execute."""

    def __init__(self, script: dict[tuple[int, int], str]) -> None:
        super().__init__(script)
        self.executed: list[list[float]] = [[], [], [], []]

    def send(self, group: int, targets_rad: np.ndarray) -> None:
        for env, chunk in zip(self.groups[group], targets_rad, strict=True):
            self.executed[env] += chunk[:, 1].tolist()


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
    drive(Late(inner, delay), 6, delay, each)
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
    drive(Late(inner, 3), 4, 3, 2)
    rest = float(HOME_RAD[1])
    assert inner.executed[0] == pytest.approx([rest, rest, rest, 0.3, 0.4, 1.3, 1.4, 2.3], abs=1e-6)
    assert inner.executed[2] == pytest.approx(
        [rest, rest, rest, 0.3, rest, rest, rest, 2.3], abs=1e-6
    )


@pytest.mark.parametrize("begin", ["reset", "load_state_dict"])
def test_nothing_is_under_way_when_new_episodes_begin(begin: str) -> None:
    inner = Noted({})
    env = Late(inner, 2)
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
