"""What only evaluations may use: seeds, wordings and the conditions of sweeps. Constants.

Nothing here may reach a training: tests/rl/test_reserved.py compares this file with every training
configuration, script and list of instructions of the project. The wordings below were written
before the rules of policies/words.py were widened first, and known when that was done again. Those
of reserved_wordings.json were written without knowledge of the rules, measured once, and the rules
were not changed since for any of them: an evaluation reports those that it gets wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Final

EVALUATION_SEED: Final = 1_000_000
"""Demonstrations use seeds below, evaluation this and above: no scene is in both."""


class Group(StrEnum):
    """Kind of a wording."""

    ENGLISH = "English"
    JAPANESE = "Japanese"
    POLITE = "polite"
    LONG = "long"
    DESCRIBED = "described"
    """The colour by comparison, without its name."""
    MISSPELT = "misspelt"
    OTHER_COLOUR = "other colour"
    """A colour that is no cube's."""
    IMPOSSIBLE = "impossible"
    FORBIDDING = "forbidding"
    STRANGER = "strangers"
    """Ordinary requests by somebody who knew neither the rules nor this list."""
    NO_REQUEST = "strangers: no request"
    """Anything else that a stranger says, much of it in the words of a request."""


@dataclass(frozen=True)
class Wording:
    """One instruction as a stranger gives it."""

    text: str
    group: Group
    task: str | None
    """The instruction in the words of training; None where a policy must refuse."""


_LIFT: Final = {colour: f"pick up the {colour} cube" for colour in ("red", "green", "blue")}
_PLACE: Final = {colour: f"place the {colour} cube on the plate" for colour in _LIFT}
_TO_LIFT: Final[dict[Group, dict[str, tuple[str, ...]]]] = {
    Group.ENGLISH: {
        "red": (
            "grab the crimson block",
            "lift the scarlet cube",
            "grasp the ruby coloured cube and lift it",
            "hoist the red box",
            "snatch up the red block",
            "red cube up",
        ),
        "green": (
            "pick the green block up",
            "raise the emerald cube off the table",
            "fetch the green die",
            "collect the green cube",
        ),
        "blue": (
            "take the blue brick",
            "get the navy block",
            "Lift up the blue one.",
            "elevate the blue cube",
            "PICK UP THE BLUE BLOCK",
        ),
    },
    Group.JAPANESE: {
        "red": (
            "赤いブロックを持ち上げて",
            "真っ赤な積み木を持ち上げろ",
            "紅いブロックを拾って",
            "赤のを取ってくれ",
        ),
        "green": (
            "緑色のブロックをつかんで",
            "みどりのやつを上げて",
            "エメラルドグリーンのブロックを持って",
        ),
        "blue": (
            "青いキューブを取って",
            "紺色のキューブを持ち上げて",
            "青いサイコロをつまみ上げて",
        ),
    },
    Group.POLITE: {
        "red": (
            "Could you please pick up the red block?",
            "can u get the red cube pls",
            "赤いブロックを持ち上げてくれない?",
        ),
        "green": (
            "Why don't you pick up the green cube?",
            "Robot, lift the green block now please",
            "緑のキューブを取ってもらえませんか",
        ),
        "blue": (
            "Would you mind lifting the blue cube?",
            "I'd like you to grab the blue cube, thanks",
            "すみませんが、青いブロックを持ち上げていただけますか",
        ),
    },
    Group.LONG: {
        "red": (
            "There are several cubes on the table in front of you; I want you to reach for the red"
            " one, close your gripper around it and lift it into the air.",
            "Pick up the red cube, not the blue one.",
            "青いキューブではなく赤いキューブを持ち上げて",
        ),
        "green": (
            "机の上にある三つのブロックのうち、緑色のものをゆっくりつかんで、少し持ち上げてください。",
        ),
        "blue": (
            "Find the blue cube wherever it is, grasp it carefully without knocking anything over,"
            " and raise it a few centimetres.",
            "Pick up the blue cube, which is next to the red one.",
            "赤いブロックの隣にある青いブロックを取って",
        ),
    },
    Group.DESCRIBED: {
        "red": ("pick up the cube that has the colour of a tomato",),
        "green": ("grab the cube with the colour of grass",),
        "blue": ("lift the block that is as blue as the sea",),
    },
    Group.MISSPELT: {
        "red": ("pik up the red cube",),
        "green": ("pick up the gren cube",),
    },
}
_TO_PLACE: Final[dict[Group, dict[str, tuple[str, ...]]]] = {
    Group.ENGLISH: {
        "red": (
            "put the red block on the plate",
            "lay the crimson brick on the white plate",
            "deposit the red cube on the plate",
            "stick the red one on the plate",
            "bring the cherry red block to the plate",
        ),
        "green": (
            "drop the green cube onto the plate",
            "transfer the green block to the dish",
            "place the lime green cube on the plate",
        ),
        "blue": (
            "set the azure cube down on the dish",
            "move the blue block to the plate",
            "put the sapphire cube onto the saucer",
            "the blue cube belongs on the plate",
        ),
    },
    Group.JAPANESE: {
        "red": ("赤いブロックをお皿に置いて", "皿に赤い箱を乗せて"),
        "green": ("緑のキューブをプレートに載せて", "緑色のブロックを皿の上にそっと下ろして"),
        "blue": ("青い立方体を皿の上に移動して", "藍色のブロックを皿に運んで"),
    },
    Group.POLITE: {
        "red": ("赤いキューブをお皿の上に置いてください。お願いします。",),
        "green": ("Please be so kind as to put the green block on the plate",),
        "blue": ("青いのをお皿にのせてほしい",),
    },
    Group.LONG: {
        "red": ("Take the red cube from the table and put it on the plate in the middle.",),
        "green": (
            "After opening the gripper, go down to the green block, close the fingers and then"
            " carry it over to the plate and let go of it there.",
            "First pick up the green cube, then place it on the plate.",
        ),
        "blue": ("The plate should have the blue cube on it when you are finished.",),
    },
    Group.MISSPELT: {
        "blue": ("plase the blue cube on the plate",),
    },
}
_TO_REFUSE: Final[dict[Group, tuple[str, ...]]] = {
    Group.OTHER_COLOUR: (
        "get the yellow cube please",
        "grab the purple block",
        "please put the orange cube on the plate",
        "lift the pink one",
        "take the white cube",
        "could you get the black block",
        "pick up the turquoise cube",
        "lift the grey brick",
        "pick up the golden block next to the red cube",
        "put the purple cube on the plate, beside the green one",
        "紫のブロックを持ち上げて",
        "黄色いキューブを皿に置いて",
        "オレンジ色のブロックを取って",
        "水色の積み木を持ち上げて",
        "赤いキューブの横の白いブロックを取って",
    ),
    Group.IMPOSSIBLE: (
        "stack the red cube on the blue cube",
        "throw the green cube off the table",
        "push the red block to the left",
        "put the red cube into the drawer",
        "pick up the plate",
        "rotate the blue cube by ninety degrees",
        "pick up all the cubes",
        "pick up the red and the blue cube",
        "make me a cup of coffee",
        "wipe the table",
        "place the red cube next to the blue one",
        "pick up the red ball",
        "put the plate on top of the green cube",
        "pick up a cube",
        "put it over there",
        "hello",
        "what colour is the red cube?",
        "paint the blue cube red",
        "cut the red cube in half",
        "let go of the red cube",
        "赤いブロックを青いブロックの上に積んで",
        "テーブルを拭いて",
        "緑のブロックを左に押して",
        "全部のブロックを持ち上げて",
        "赤いボールを取って",
        "コーヒーをいれて",
    ),
    Group.FORBIDDING: (
        "do not pick up the red cube",
        "don't touch the blue block",
        "never lift the green cube",
        "leave the red cube where it is",
        "stop right there",
        "freeze",
        "hold still",
        "keep your hands off the blue cube",
        "I told you not to take the green block",
        "赤いブロックに触らないで",
        "青いブロックを持ち上げるな",
        "動くな",
        "緑のキューブはそのままにして",
        "赤いブロックを取ってはいけません",
    ),
}
_STRANGERS: Final[list[tuple[str, str | None]]] = json.loads(
    resources.files("crane_x7_vla_rl").joinpath("reserved_wordings.json").read_text("utf-8")
)
WORDINGS: Final = (
    *(
        Wording(text, group, tasks[colour])
        for tasks, groups in ((_LIFT, _TO_LIFT), (_PLACE, _TO_PLACE))
        for group, colours in groups.items()
        for colour, texts in colours.items()
        for text in texts
    ),
    *(Wording(text, group, None) for group, texts in _TO_REFUSE.items() for text in texts),
    *(
        Wording(text, Group.NO_REQUEST if task is None else Group.STRANGER, task)
        for text, task in _STRANGERS
    ),
)
"""Held-out wordings for the tasks of a policy that lifts and places red, green and blue cubes."""


@dataclass(frozen=True)
class Sweep:
    """One condition under which a policy is measured, at several values."""

    name: str
    about: str
    """What it changes, for the head of a table and a plot."""
    option: str
    """Field that it sets, of an evaluation's `timing` or of its world's `variation`."""
    values: tuple[float, ...]
    unit: str = ""
    """Of the values; empty for a factor or share."""
    targets: tuple[tuple[float, float], ...] = ()
    """(value, least success there as a share of the baseline's)."""


SWEEPS: Final = (
    Sweep(
        "delay", "delay from image to arm", "timing.delay_s", (0.05, 0.1, 0.15, 0.2, 0.3), "s",
        targets=((0.15, 0.9),),
    ),
    Sweep("rate", "answers per second", "timing.answers_hz", (2, 3, 5, 10, 20), "Hz"),
    Sweep("dropped", "share of images lost", "timing.dropped", (0.1, 0.2, 0.4), "",
          targets=((0.1, 0.9),)),
    Sweep("camera", "camera moved", "variation.camera_offset_m", (0.005, 0.01, 0.02, 0.04), "m"),
    Sweep("light", "brightness of the lamps", "variation.light", (0.5, 0.75, 1.25, 1.5)),
    Sweep("hue", "cubes of another hue", "variation.hue_deg", (-30, -15, 15, 30), "degrees"),
    Sweep("lightness", "cubes lighter or darker", "variation.lightness", (0.6, 0.8, 1.2, 1.4)),
    Sweep("size", "size of the cubes", "variation.cube_size", (0.7, 0.85, 1.15, 1.3)),
    Sweep("friction", "friction of fingers and cubes", "variation.friction",
          (0.05, 0.1, 0.25, 0.5)),
    Sweep("speed", "arm slowed to a share of its limits", "variation.arm_speed",
          (0.25, 0.5, 0.75, 1)),
)  # fmt: skip
"""Conditions of `evaluate --sweep`."""
