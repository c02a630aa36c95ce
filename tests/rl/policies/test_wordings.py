"""A policy of a few instructions follows other words for them, and holds the arm for all others."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from crane_x7_vla_rl.policies.base import Interpreter, ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.load import TINY, load_policy
from crane_x7_vla_rl.policies.skills import SKILLS, Skills
from crane_x7_vla_rl.policies.wordings import STOP_RAD_S2, WordedPolicy, Wordings
from crane_x7_vla_rl.policies.words import NotUnderstood
from crane_x7_vla_rl.reserved import WORDINGS, Group
from crane_x7_vla_rl.robot import DOF, HOME_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, JointState, Observation

OWN = (
    "pick up the red cube",
    "pick up the blue cube",
    "place the red cube on the plate",
)


class Noting:
    """Notes its instructions; its targets are counted up."""

    period_s = 0.1

    def __init__(self) -> None:
        self.told: list[str] = []
        self.resets = 0

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.told += [each.instruction for each in observations]
        return [ActionChunk(np.full((2, DOF), 0.1 * len(self.told)), 0.1) for _ in observations]

    def reset(self) -> None:
        self.resets += 1


def seen(instruction: str, at_rad: Array = HOME_RAD, velocity_rad_s: float = np.nan) -> Observation:
    joints = JointState(at_rad, np.full(DOF, velocity_rad_s))
    return Observation(np.zeros((4, 4, 3), np.uint8), joints, instruction, 0.0)


def worded() -> tuple[Noting, WordedPolicy]:
    inner = Noting()
    return inner, WordedPolicy(inner, Wordings(OWN, SKILLS))


@pytest.mark.parametrize(
    ("instruction", "own"),
    [
        *((text, text) for text in OWN),
        ("  Pick up the RED cube ", OWN[0]),
        ("grip the crimson brick", OWN[0]),
        ("青いやつをつかんでくれますか?", OWN[1]),
        ("move the scarlet box onto the dish", OWN[2]),
        ("赤い積み木を皿へ運んで", OWN[2]),
    ],
)
def test_other_words_for_a_task_become_the_words_of_training(instruction: str, own: str) -> None:
    assert Wordings(OWN, SKILLS).resolve(instruction) == own
    inner, policy = worded()
    assert policy.refusal(instruction) is None
    policy.predict([seen(instruction)])
    assert inner.told == [own]


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("pick up the yellow cube", "names the colour yellow, the cubes are red, blue"),
        ("紫色のキューブを拾って", "names the colour purple, the cubes are red, blue"),
        ("lift the green cube", "names the colour green, the cubes are red, blue"),
        ("place the blue cube on the plate", "has not learned to place the blue cube on the plate"),
        ("do not lift the red cube", "forbids"),
        ("dance", "no cube"),
        ("   ", "expected words"),
    ],
)
def test_any_other_task_is_refused_with_the_reason_and_what_it_knows(
    instruction: str, reason: str
) -> None:
    assert isinstance(Wordings(OWN, SKILLS).resolve(instruction), NotUnderstood)
    refusal = worded()[1].refusal(instruction)
    assert refusal is not None
    assert reason in refusal
    assert all(text in refusal for text in OWN)


def test_a_refused_task_holds_the_arm_where_it_was_when_the_task_came() -> None:
    inner, policy = worded()
    first = policy.predict([seen("dance", HOME_RAD)])[0]
    sunk = policy.predict([seen("dance", HOME_RAD - 0.02)])[0]
    assert inner.told == [OWN[0]] * 2, "the model stays warm"
    assert first.position_rad == pytest.approx(np.tile(HOME_RAD, (2, 1)))
    assert sunk.position_rad == pytest.approx(first.position_rad)
    policy.predict([seen(OWN[0])])
    later = policy.predict([seen("dance", HOME_RAD - 0.02)])[0]
    assert later.position_rad[0, :7] == pytest.approx(HOME_RAD[:7] - 0.02)


def test_a_refused_task_keeps_the_fingers_closed_on_what_they_hold() -> None:
    _, policy = worded()
    gripper_rad = policy.predict([seen(OWN[0])])[0].position_rad[-1, 7]
    stays = policy.predict([seen("dance", HOME_RAD + 0.5)])[0]
    assert stays.position_rad[:, 7] == pytest.approx(gripper_rad)


def test_a_moving_arm_is_told_to_stay_where_it_can_stop_within_its_limits() -> None:
    speed_rad_s = 1.2
    moving = worded()[1].predict([seen("dance", HOME_RAD, speed_rad_s)])[0].position_rad
    assert moving[0, 0] - HOME_RAD[0] == pytest.approx(speed_rad_s**2 / (2 * STOP_RAD_S2))
    at_limit = worded()[1].predict([seen("dance", UPPER_RAD, speed_rad_s)])[0].position_rad
    assert at_limit[0] == pytest.approx(UPPER_RAD)


def test_each_robot_has_its_own_task() -> None:
    inner, policy = worded()
    chunks = policy.predict([seen("dance"), seen("lift the blue one")])
    assert inner.told == [OWN[0], OWN[1]]
    assert chunks[0].position_rad[0] == pytest.approx(HOME_RAD)
    assert chunks[1].position_rad[0] == pytest.approx(np.full(DOF, 0.2))


def test_a_reset_forgets_where_the_arm_was() -> None:
    inner, policy = worded()
    policy.predict([seen("dance", HOME_RAD)])
    policy.reset()
    assert inner.resets == 1
    after = policy.predict([seen("dance", HOME_RAD + 0.1)])[0]
    assert after.position_rad[0] == pytest.approx(np.clip(HOME_RAD + 0.1, None, UPPER_RAD))


def test_only_a_refused_task_gives_equal_targets_for_different_images() -> None:
    _, policy = worded()
    policy.predict([seen("dance")])
    assert policy.may_answer_alike
    policy.predict([seen(OWN[1])])
    assert not policy.may_answer_alike


def test_what_other_words_mean_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    _, policy = worded()
    with caplog.at_level(logging.INFO, "crane_x7_vla_rl.policies.wordings"):
        for text in ("grab the crimson one", "grab the crimson one", OWN[0], "dance"):
            policy.predict([seen(text)])
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f'"grab the crimson one" is understood as "{OWN[0]}"'
    assert said[1].startswith('holding: "dance" is not understood')
    assert len(said) == 2


def test_the_page_states_how_many_reserved_wordings_are_answered_rightly() -> None:
    every = Wordings(tuple(dict.fromkeys(one.task for one in WORDINGS if one.task)), SKILLS)
    meant = {one: every.resolve(one.text) for one in WORDINGS}
    refused = {one for one, own in meant.items() if isinstance(own, NotUnderstood)}
    right = Counter(one.group for one in WORDINGS if one.task == meant[one])
    right += Counter(one.group for one in refused if one.task is None)
    of = Counter(one.group for one in WORDINGS)
    to_refuse = {Group.OTHER_COLOUR, Group.IMPOSSIBLE, Group.FORBIDDING}
    strangers = {Group.STRANGER, Group.NO_REQUEST}
    ours = set(of) - to_refuse - strangers
    stated = {group.value: f"{right[group]} of {of[group]}" for group in ours}
    stated["colour by comparison"] = stated.pop(Group.DESCRIBED.value)
    for row, groups in (
        ("all that name a task", ours),
        ("colours of no cube, impossible, forbidding: refused", to_refuse),
        ("**strangers' requests**", {Group.STRANGER}),
        ("**strangers' other sentences: refused**", {Group.NO_REQUEST}),
    ):
        done, count = (sum(found[group] for group in groups) for found in (right, of))
        stated[row] = f"{done} of {count}"
    page = (ROOT / "docs" / "words.md").read_text()
    assert [row for row, figure in stated.items() if f"| {row} | {figure} |" not in page] == []
    count = Counter(one.group in strangers for one in WORDINGS)
    assert f"has {count[False]} wordings" in page
    assert f"{count[True]} more" in page
    assert all(meant[one] == one.task for one in WORDINGS if one not in refused)


def test_no_sentence_of_those_that_widened_the_rules_becomes_another_task() -> None:
    """They were written without knowledge of the rules, and then read to find what those lack."""
    every = Wordings(tuple(dict.fromkeys(one.task for one in WORDINGS if one.task)), SKILLS)
    seen_before = json.loads((Path(__file__).parent / "wordings_seen.json").read_text())
    meant = [(task, every.resolve(text)) for text, task in seen_before]
    followed = [task for task, own in meant if not isinstance(own, NotUnderstood)]
    assert followed == [own for _, own in meant if not isinstance(own, NotUnderstood)]
    assert len(followed) >= 0.96 * sum(task is not None for task, _ in meant) > 400


def test_the_page_s_reasons_are_those_that_are_given() -> None:
    every = Wordings(tuple(dict.fromkeys(one.task for one in WORDINGS if one.task)), SKILLS)
    page = (ROOT / "docs" / "words.md").read_text()
    rows = re.findall(r'^\| "(.+?)".* \| `(.+)` \|$', page, re.MULTILINE)
    assert len(rows) >= 7
    for instruction, reason in rows:
        answer = every.resolve(instruction)
        assert isinstance(answer, NotUnderstood)
        assert answer.reason == reason


def checkpoint(folder: Path, **changes: object) -> str:
    """Copy the shipped policy with changed skills."""
    shutil.copytree(TINY, folder)
    path = folder / SKILLS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


def test_a_checkpoint_says_whether_it_follows_other_words(tmp_path: Path) -> None:
    free = load_policy("openvla", ModelOptions(path=checkpoint(tmp_path / "free", wordings=True)))
    assert isinstance(free, Interpreter)
    assert free.refusal("grab the crimson block") is None
    assert "red, blue" in (free.refusal("grab the purple block") or "")
    literal = load_policy("openvla", ModelOptions(path=checkpoint(tmp_path / "no", wordings=False)))
    assert not isinstance(literal, Interpreter)
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    joints = JointState(HOME_RAD, np.zeros(DOF))
    for text in ("grab the crimson block", "真っ赤なキューブを持って"):
        one = free.predict([Observation(image, joints, text, 0.0)])[0]
        other = literal.predict([Observation(image, joints, "pick up the red cube", 0.0)])[0]
        assert np.array_equal(one.position_rad, other.position_rad)


def test_skills_without_the_field_change_nothing() -> None:
    raw = json.loads((TINY / SKILLS).read_text())
    raw.pop("wordings", None)
    assert Skills.from_dict(raw).wordings is False


def test_instructions_that_cannot_be_resolved_are_an_error_that_names_them() -> None:
    raw = json.loads((TINY / SKILLS).read_text())
    with pytest.raises(PolicyLoadError, match=r'skills\.json: .*"open the drawer" in instructions'):
        Skills.from_dict(raw | {"wordings": True, "instructions": ["open the drawer"]})
    with pytest.raises(PolicyLoadError, match="wordings is 'maybe', expected"):
        Skills.from_dict(raw | {"wordings": "maybe"})
