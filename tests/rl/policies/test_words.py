"""Words → a task, in English and Japanese; what is not clear becomes none, with the reason."""

from __future__ import annotations

import pytest

from crane_x7_vla_rl.policies.words import NotUnderstood, Task, Verb, parse


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
        ("seize the cobalt blue cube", Verb.LIFT, "blue"),
        ("collect the little wooden jade block", Verb.LIFT, "green"),
        ("lift the red thing that is on the plate", Verb.LIFT, "red"),
        ("pick the carmine up", Verb.LIFT, "red"),
        ("won't you take the red one?", Verb.LIFT, "red"),
        ("raise the blue cube, not the red block", Verb.LIFT, "blue"),
        ("get the green cube without touching the others", Verb.LIFT, "green"),
        ("take the blue cube to the plate", Verb.PLACE, "blue"),
        ("drop the green block on top of the dish", Verb.PLACE, "green"),
        ("青い物を拾ってもらえないでしょうか", Verb.LIFT, "blue"),
        ("緑ではなくて赤のキューブを持って", Verb.LIFT, "red"),
        ("REDのキューブを持ち上げて", Verb.LIFT, "red"),
        ("皿に置いてある赤いキューブを取って", Verb.LIFT, "red"),
        ("青いキューブを皿に持っていって", Verb.PLACE, "blue"),
        # A participle, a wish, the plate as what gets it.
        ("I need the green cube lifted", Verb.LIFT, "green"),
        ("it would be great if the blue block were placed on the plate", Verb.PLACE, "blue"),
        ("the dish should get the red cube", Verb.PLACE, "red"),
        ("I'd like the yellow cube on the plate", Verb.PLACE, "yellow"),
        ("get the red cube onto the plate", Verb.PLACE, "red"),
        ("緑のブロックを皿の真ん中にお願いします", Verb.PLACE, "green"),
        ("緑 の キューブ を 持ち上げ て ください", Verb.LIFT, "green"),
        ("青い ブロック を 皿 の 上 に 置い て", Verb.PLACE, "blue"),
        # No verb, or words for how the hand gets there.
        ("red cube on plate", Verb.PLACE, "red"),
        ("赤キューブ→皿", Verb.PLACE, "red"),
        ("move over to the green cube and pick it up", Verb.LIFT, "green"),
        ("close your gripper on the red block and raise it", Verb.LIFT, "red"),
        # Clauses that are about something else.
        ("my hands are wet, so please put the blue cube on the plate", Verb.PLACE, "blue"),
        ("両手がふさがっているので、赤いのを取ってください", Verb.LIFT, "red"),
        ("lift the red cube, leave the others alone", Verb.LIFT, "red"),
        # A letter missing, doubled or out of order, or one that sounds alike.
        ("plase the blue cube on the plete", Verb.PLACE, "blue"),
        ("pick up the yelow cube", Verb.LIFT, "yellow"),
        ("Lfit the bleu blokc", Verb.LIFT, "blue"),
        ("palce the greeen cueb on the pltae", Verb.PLACE, "green"),
        ("grabb the red cbue", Verb.LIFT, "red"),
        ("赤いキューブをpikcしてつかんで", Verb.LIFT, "red"),
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
        ("don´t pick up the red cube", "forbids"),
        ("donʼt pick up the red cube", "forbids"),
        ("do nt pick up the red cube", "forbids"),
        ("pick up anything but the red cube", "forbids"),
        ("pick up all but the red one", "forbids"),
        ("pick up any cube except the red one", "forbids"),
        ("ignore the red cube, pick up the blue one", "forbids"),
        ("I forbid you to lift the red cube", "forbids"),
        ("refuse to lift the red cube", "forbids"),
        ("quit lifting the red cube", "forbids"),
        ("the red cube is broken, take the blue cube", "forbids"),
        ("赤いキューブ以外を取って", "forbids"),
        ("赤いキューブを避けて青いキューブを取って", "forbids"),
        ("赤いキューブを無視して青いキューブを取って", "forbids"),
        ("赤いキューブを持ち上げるのは危険です", "forbids"),
        ("赤いキューブを取らんといて", "forbids"),
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
        ("lift the orange cube that stands by the red one", "colour orange"),
        ("pick up the blue-green cube", "two colours"),
        ("黄緑のキューブを取って", "colour yellow-green"),
        ("青緑のキューブを皿に置いて", "colour turquoise"),
        ("赤いキューブの隣の茶色のキューブを取って", "colour brown"),
        ("put the white cube on the plate, where the red cube was", "colour white"),
        ("pick up the cube between the red and the blue one", "colour"),
        ("pick up the cube on the red block", "colour"),
        ("grab the red mug", "another thing"),
        ("grasp the ball that is red", "another thing"),
        ("青いペンを取って", "another thing"),
        ("lift the red plate", "colour"),
        ("take the red cube and the green cube", "two colours"),
        ("赤いキューブと青いキューブを取って", "two colours"),
        ("青いキューブ、赤いキューブの隣の、取って", "several colours"),
        ("lift both red cubes", "several cubes"),
        ("赤いキューブを全部取って", "several cubes"),
        ("grasp the blue cube and shake it", "action"),
        ("赤いキューブを転がして", "action"),
        ("put the red cube on the blue cube", "place"),
        ("place the red cube next to the plate", "place"),
        ("where is the blue cube", "question"),
        ("赤いキューブはどこ", "question"),
        ("赤いキューブを持ってはなりません", "forbids"),
        ("赤いキューブを取らないでくれ", "forbids"),
        ("青いキューブを取るのは待って", "forbids"),
        ("hands off the red cube", "forbids"),
        # What is told, asked, supposed or quoted is no request.
        ("Anna will pick up the red cube", "word"),
        ("somebody put the red cube on the plate", "somebody does"),
        ("I have already put the red cube on the plate", "somebody does"),
        ("picking up the red cube is difficult", "somebody does"),
        ("青いキューブを皿に置きました", "somebody does"),
        ("赤いキューブはもう皿に置いてあります", "somebody does"),
        ("if it rains, pick up the red cube", "condition"),
        ("ベルが鳴ったら青いキューブを取って", "condition"),
        ('the note says "pick up the red cube"', "quotes"),
        ("「赤いキューブを取って」と書いて", "quotes"),
        ("tomorrow, pick up the red cube", "word"),
        ("pick up the red cube завтра", "word"),
        ("pick up the red cube à midi", "word"),
        ("pick up the red cube, I mean the blue one", "two colours"),
        ("lift the red one and then put the blue one on the plate", "two colours"),
        ("赤いのを取って、青いのも取って", "two colours"),
        ("lift the mug with the red cube", "another thing"),
        ("赤いキューブが載った皿を持ち上げて", "another thing"),
        ("緑のキューブの隣の鉛筆を取って", "word"),
        ("take the red cube to the kitchen", "place"),
        ("take the blue cube off the plate", "no known action"),
        ("forget about picking up the red cube", "forbids"),
        # Names of things that name a colour, too.
        ("pick up the lime", "another thing"),
        ("サファイアを取って", "no cube"),
        # Other typing mistakes, and other words.
        ("peck the red cube", "no known action"),
        ("kick the red cube", "action"),
        ("back up the red cube", "no known action"),
        ("pace the red cube on the plate", "no known action"),
        ("ick up the red cube", "no known action"),
        ("pick up the red cub", "another thing"),
        ("pick up the red cue", "another thing"),
        ("pick up the grey cube", "colour grey"),
        ("pick up the rde cube", "colour"),
        ("don't piick up the red cube", "forbids"),
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


def test_a_policy_with_fewer_colours_never_takes_another_cube() -> None:
    assert parse("lift the red cube", colours=("red", "blue")) == Task(Verb.LIFT, "red")
    answer = parse("lift the green cube", before="red", colours=("red", "blue"))
    assert isinstance(answer, NotUnderstood)
    assert answer.reason == "it names the colour green, the cubes are red, blue"


def test_each_colour_is_found_as_itself() -> None:
    for colour in ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black"):
        assert parse(f"pick up the {colour} cube", colours=(colour,)) == Task(Verb.LIFT, colour)
