"""The first answers: NaN ends the start, and a policy that does not look is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from crane_x7_remote.inference.warm_up import pictures, warm_up
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.base import NotFiniteError
from crane_x7_vla_rl.policies.color_servo.memory import COLOURS
from crane_x7_vla_rl.policies.color_servo.policy import ColorServo
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import ActionChunk, Observation

NAMED = "does not depend on the image"
RED = "pick up the red cube"


class Fake:
    """Predicts by a function of the observation; counts predictions and resets."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[Observation] = []
        self.resets = 0

    def predict(self, observations: Sequence[Observation]) -> list[Any]:
        self.seen += observations
        return [self.answer(observations[0])]

    def reset(self) -> None:
        self.resets += 1


def still(_: Observation) -> ActionChunk:
    return ActionChunk(HOME_RAD[None], 0.1)


def looking(seen: Observation) -> ActionChunk:
    return ActionChunk(HOME_RAD[None] + 1e-3 * seen.image.std(), 0.1)


def test_one_that_does_not_look_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = Fake(still)
    warm_up(policy, RED, 1.0)
    (line,) = [record.message for record in caplog.records]
    assert NAMED in line
    assert str(HOME_RAD.round(3).tolist()) in line


def test_one_that_looks_is_asked_twice_and_not_named(caplog: pytest.LogCaptureFixture) -> None:
    policy = Fake(looking)
    warm_up(policy, RED, 1.0)
    assert len(policy.seen) == policy.resets == 2
    assert not caplog.records


def test_pictures_alone_differ_between_the_questions() -> None:
    policy = Fake(still)
    warm_up(policy, RED, 7.0)
    assert {(one.instruction, one.time_s) for one in policy.seen} == {(RED, 7.0)}
    assert len({one.joints.position_rad.tobytes() for one in policy.seen}) == 1
    assert len({one.image.tobytes() for one in policy.seen}) == len(policy.seen)


def test_made_up_pictures_are_far_from_each_other() -> None:
    found = [picture.astype(float) for picture in pictures()]
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert np.abs(one - other).mean() > 20


def test_one_that_sees_something_late_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    table = list(pictures())[2]
    policy = Fake(lambda seen: (looking if np.array_equal(seen.image, table) else still)(seen))
    warm_up(policy, RED, 1.0)
    assert not caplog.records


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("picture", [0, 1])
def test_targets_that_are_no_numbers_end_it(value: float, picture: int) -> None:
    def answer(seen: Observation) -> ActionChunk:
        targets = np.tile(HOME_RAD, (3, 1))
        if np.array_equal(seen.image, list(pictures())[picture]):
            targets[1, 4] = value
        return ActionChunk(targets, 0.1)

    with pytest.raises(NotFiniteError, match=rf"{value} for crane_x7_lower_arm_fixed.* step 2 of"):
        warm_up(Fake(answer), RED, 1.0)


@pytest.mark.parametrize("fails_at", [0, 1])
def test_what_the_policy_raises_leaves(fails_at: int, caplog: pytest.LogCaptureFixture) -> None:
    policy = Fake(lambda seen: 1 / 0 if len(policy.seen) > fails_at else still(seen))
    with pytest.raises(ZeroDivisionError):
        warm_up(policy, RED, 1.0)
    assert not caplog.records


def test_a_step_out_of_reach_is_an_answer_that_differs(caplog: pytest.LogCaptureFixture) -> None:
    def answer(seen: Observation) -> ActionChunk:
        if len(policy.seen) > 1:
            raise UnreachableError("too far")
        return still(seen)

    policy = Fake(answer)
    warm_up(policy, RED, 1.0)
    assert not caplog.records


@pytest.mark.parametrize("answer", [None, 5, [HOME_RAD]])
def test_what_is_no_chunk_is_left_to_the_safety_check(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    warm_up(Fake(lambda _: answer), RED, 1.0)
    assert not caplog.records


@pytest.mark.parametrize(
    "instruction", ["pick up the object", *(f"pick up the {colour} cube" for colour in COLOURS)]
)
def test_the_colour_servo_is_not_named(instruction: str, caplog: pytest.LogCaptureFixture) -> None:
    warm_up(ColorServo(), instruction, 1.0)
    assert NAMED not in caplog.text
