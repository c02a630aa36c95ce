"""Words → the colour servo's task, in English and Japanese; what is not clear becomes none."""

from __future__ import annotations

import pytest

from crane_x7_vla_rl.policies.instruction import NotUnderstood, Task, Verb, parse


@pytest.mark.parametrize(
    ("instruction", "verb", "colour"),
    [
        ("pick up the red cube", Verb.LIFT, "red"),
        ("  Grasp the BLUE block, please", Verb.LIFT, "blue"),
        ("lift the yellow one", Verb.LIFT, "yellow"),
        ("place the blue cube on the plate", Verb.PLACE, "blue"),
        ("pick up the green cube and put it on the plate", Verb.PLACE, "green"),
        ("put the red cube on the plate beside the blue cube", Verb.PLACE, "red"),
        ("赤いキューブを持ち上げて", Verb.LIFT, "red"),
        ("緑色のブロックをつかんでください", Verb.LIFT, "green"),
        ("黄色いキューブを取って", Verb.LIFT, "yellow"),
        ("青いキューブを皿に置いて", Verb.PLACE, "blue"),
        ("青のキューブをプレートにのせる", Verb.PLACE, "blue"),
    ],
)
def test_what_is_clearly_asked_becomes_a_task(instruction: str, verb: Verb, colour: str) -> None:
    assert parse(instruction) == Task(verb, colour)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("pick up the object", "colour"),
        ("pick up the purple cube", "colour"),
        ("", "colour"),
        ("a colored, layered thing", "colour"),
        ("don't touch the red cube", "forbids"),
        ("never pick up the red cube", "forbids"),
        ("赤いキューブに触らないで", "forbids"),
        ("place the red cube on the shelf", "place"),
        ("look at the red cube", "nothing to do"),
    ],
)
def test_what_is_not_clear_becomes_no_task_with_the_reason(instruction: str, reason: str) -> None:
    answer = parse(instruction)
    assert isinstance(answer, NotUnderstood)
    assert reason in answer.reason


@pytest.mark.parametrize(
    "instruction",
    [
        "place the cube on the plate",
        "put it on the plate",
        "キューブを皿に置いて",
        "それを皿に置いて",
    ],
)
def test_the_cube_means_the_one_spoken_of_before(instruction: str) -> None:
    assert parse(instruction, before="red") == Task(Verb.PLACE, "red")
    assert isinstance(parse(instruction), NotUnderstood)


@pytest.mark.parametrize(
    "instruction", ["place the purple cube on the plate", "紫のキューブを取って"]
)
def test_an_unknown_colour_never_becomes_the_one_before(instruction: str) -> None:
    assert isinstance(parse(instruction, before="red"), NotUnderstood)
