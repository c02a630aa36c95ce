"""Words → the colour servo's task, in English and Japanese; what is not clear becomes none."""

from __future__ import annotations

import pytest

from crane_x7_vla_rl.policies.color_servo.instruction import NotUnderstood, Task, Verb, parse


@pytest.mark.parametrize(
    ("instruction", "verb", "colour"),
    [
        ("pick up the red cube", Verb.LIFT, "red"),
        ("  Grasp the BLUE block, please", Verb.LIFT, "blue"),
        ("lift the yellow one", Verb.LIFT, "yellow"),
        ("place the blue cube on the plate", Verb.PLACE, "blue"),
        ("pick up the green cube and put it on the plate", Verb.PLACE, "green"),
        ("put the red cube on the plate beside the blue cube", Verb.PLACE, "red"),
        ("lift the red cube onto the white plate", Verb.PLACE, "red"),
        ("pick up the red cube next to the plate", Verb.LIFT, "red"),
        ("pick up the blue cube that lies on the plate", Verb.LIFT, "blue"),
        ("赤いキューブを持ち上げて", Verb.LIFT, "red"),
        ("緑色のブロックをつかんでください", Verb.LIFT, "green"),
        ("黄色いキューブを取って", Verb.LIFT, "yellow"),
        ("青いキューブを皿に置いて", Verb.PLACE, "blue"),
        ("青のキューブをプレートにのせる", Verb.PLACE, "blue"),
        ("赤いキューブをお皿の上に置いてください", Verb.PLACE, "red"),
        ("青いキューブの隣の赤いキューブを取って", Verb.LIFT, "red"),
        ("皿の上の緑のキューブを持ち上げて", Verb.LIFT, "green"),
        ("あかいキューブを掴む", Verb.LIFT, "red"),
        ("イエローのブロックを拾って", Verb.LIFT, "yellow"),
    ],
)
def test_what_is_clearly_asked_becomes_a_task(instruction: str, verb: Verb, colour: str) -> None:
    assert parse(instruction) == Task(verb, colour)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("pick up the object", "colour"),
        ("pick up the purple cube", "colour"),
        ("紫のキューブを取って", "colour"),
        ("pick up the cube next to the red one", "colour"),
        ("", "colour"),
        ("   ", "colour"),
        ("\x00\ufffd" * 1000, "colour"),
        ("a colored, layered thing", "colour"),
        ("don't touch the red cube", "forbids"),
        ("never pick up the red cube", "forbids"),
        ("you shouldn't grab the red cube", "forbids"),
        ("赤いキューブに触らないで", "forbids"),
        ("赤いキューブを取るな", "forbids"),
        ("赤いキューブを取るのをやめて", "forbids"),
        ("赤いキューブを取ってはだめ", "forbids"),
        ("place the red cube on the shelf", "place"),
        ("put the red cube beside the plate", "place"),
        ("赤いキューブを皿の横に置いて", "place"),
        ("look at the red cube", "no known action"),
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
        "put it on the plate next to the blue cube",
        "キューブを皿に置いて",
        "それを皿に置いて",
    ],
)
def test_the_cube_means_the_one_spoken_of_before(instruction: str) -> None:
    assert parse(instruction, before="red") == Task(Verb.PLACE, "red")
    assert isinstance(parse(instruction), NotUnderstood)


@pytest.mark.parametrize(
    "instruction",
    [
        "place the purple cube on the plate",
        "紫のキューブを取って",
        "pick up the cube next to the purple one",
    ],
)
def test_an_unknown_colour_never_becomes_the_one_before(instruction: str) -> None:
    assert isinstance(parse(instruction, before="red"), NotUnderstood)


def test_a_clause_that_only_supposes_is_no_prohibition() -> None:
    assert parse("つかむなら赤いキューブを取って") == Task(Verb.LIFT, "red")
