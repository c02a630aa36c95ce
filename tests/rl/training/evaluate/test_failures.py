"""Where a failed episode failed: the true state of real scenes, and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from crane_x7_vla_rl.images import decode_picture
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import EVALUATION_SEED, LIFT_ID, PICK_PLACE_ID, WorldConfig
from crane_x7_vla_rl.sim.expert import Expert, ExpertPhase
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.training.evaluate import failures
from crane_x7_vla_rl.training.evaluate.rollout import Result
from crane_x7_vla_rl.training.evaluate.scene_worker import (
    PICTURES,
    Act,
    Begin,
    EvalWorker,
    Strip,
)
from crane_x7_vla_rl.training.evaluate.trace import Phase, Trace

WORLD = WorldConfig(task=PICK_PLACE_ID, control_hz=10, image_size=(64, 48))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World(WORLD)
    yield made
    made.close()


def trace_until(world: World, last: ExpertPhase | None) -> Trace:
    """Drive as the expert does until it enters a phase, then stay as it is for a second."""
    world.reset(EVALUATION_SEED + 1)
    expert, trace, gripper_rad = Expert(world), Trace(), HOME_RAD[-1]
    while not world.ended:
        target = expert.act()
        if expert.phase is last:
            break
        world.step(target)
        gripper_rad = target[-1]
        trace.note(world)
    for _ in range(10):
        world.step(np.append(world.position_rad()[:-1], gripper_rad))
        trace.note(world)
    return trace


@pytest.mark.parametrize(
    ("last", "phase"),
    [
        (ExpertPhase.DESCEND, Phase.REACH),
        (ExpertPhase.CLOSE, Phase.GRASP),
        (ExpertPhase.LIFT, Phase.LIFT),
        (ExpertPhase.CARRY, Phase.CARRY),
        (ExpertPhase.LOWER, Phase.RELEASE),
    ],
)
def test_an_expert_that_stops_early_failed_there(
    world: World, last: ExpertPhase, phase: Phase
) -> None:
    trace = trace_until(world, last)
    assert trace.phase(PICK_PLACE_ID, world.success) is phase
    assert not world.success


def test_one_that_does_not_stop_is_done(world: World) -> None:
    trace = trace_until(world, None)
    assert trace.phase(PICK_PLACE_ID, world.success) is Phase.DONE
    assert trace.first == world.named_colour


def test_a_cube_that_was_lifted_and_lost_failed_at_holding() -> None:
    trace = Trace(nearest_m=0.01, grasped=True, highest_m=0.12)
    assert trace.phase(LIFT_ID, success=False) is Phase.HOLD


def test_a_worker_keeps_what_the_policy_of_a_failed_episode_saw() -> None:
    worker = EvalWorker(WorldConfig(control_hz=10, image_size=(640, 480), episode_s=1.0))
    (look,) = worker({0: Begin(EVALUATION_SEED)}).values()
    while look.observation is not None:
        (look,) = worker({0: Act(np.tile(HOME_RAD, (2, 1)))}).values()
    assert not look.success
    assert look.phase is Phase.REACH
    assert look.nearest_m > 0.03
    assert [step for _, step in look.pictures] == [0, 2, 4, 6, 8, 10]
    for content, _ in look.pictures:
        assert decode_picture(content).shape == (240, 320, 3)


def test_a_strip_covers_the_whole_episode_with_few_images() -> None:
    strip = Strip()
    for step in range(500):
        strip.add(np.zeros((8, 8, 3), np.uint8), step)
    steps = [step for _, step in strip.pictures()]
    assert PICTURES // 2 <= len(steps) <= PICTURES
    assert steps[0] == 0
    assert steps[-1] > 400
    assert len(set(np.diff(steps))) == 1


def result(seed: int, success: bool, **changes: object) -> Result:
    values = {
        "seed": seed, "instruction": "pick up the red cube", "named": "red", "success": success,
        "steps": 20, "lifted": (), "phase": "done" if success else "grasp", "nearest_m": 0.0123,
        "pictures": () if success else ((b"\xff\xd8jpeg", 10),),
    }  # fmt: skip
    return Result(**(values | changes))


SUMMARY = {"checkpoint": "outputs/<b>", "policy": "openvla", "task": LIFT_ID,
           "world": {"control_hz": 5}}  # fmt: skip


def test_the_page_has_a_row_per_failed_episode() -> None:
    text = failures.render(
        SUMMARY,
        [result(1, True), result(2, False), result(3, False, lifted=("blue",))],
    )
    assert re.findall(r'<h2 id="(.*?)">', text) == ["seed-2", "seed-3"]
    assert "2 of 3 episodes failed: 2 at grasp" in text
    assert "the fingertips came within 1.2 cm of it" in text
    assert "at the end it held the blue cube instead of the red one" in text
    assert text.count("<img ") == 2
    assert "<figcaption>2.0 s</figcaption>" in text
    assert "outputs/&lt;b&gt;" in text
    assert "<script" not in text


def test_texts_are_escaped_and_a_page_without_failures_says_so() -> None:
    hostile = result(1, False, instruction="<script>alert(1)</script>\x1b[2J")
    text = failures.render(SUMMARY, [hostile])
    assert "<script" not in text
    assert "\x1b" not in text
    assert "No episode failed." in failures.render(SUMMARY, [result(1, True)])
