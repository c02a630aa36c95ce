"""A task that the policy cannot follow is refused aloud; /vla/status tells what the loop does."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tick_rig import MovingPolicy, Rig

from crane_x7_remote.inference.command import _say_hint
from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.task import PERIOD_S, REMIND_S
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.rosbridge import loop_status
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.policies.wordings import WordedPolicy, Wordings


class ChoosyPolicy(MovingPolicy):
    """Knows one task."""

    def refusal(self, instruction: str) -> str | None:
        return None if instruction == "wave" else f'"{instruction}" is not understood; say "wave"'


def choosy(**config: object) -> Rig:
    return Rig(policy=ChoosyPolicy(), **config)


def test_a_task_that_is_not_understood_is_told_at_once_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = choosy(say_hint="Give a task: say it")
    with caplog.at_level(logging.WARNING, "crane_x7_remote.inference.task"):
        rig.tick()
        assert len(caplog.records) == 1
        told = caplog.records[0].getMessage()
        assert '"pick up the object" is not understood' in told
        assert told.endswith("Give a task: say it")
        rig.tick(int(REMIND_S * 10) - 5)
        assert len(caplog.records) == 1
        rig.tick(10)
        assert len(caplog.records) == 2
        rig.client.instructions.append("wave")
        rig.tick(int(REMIND_S * 10) + 5)
        assert len(caplog.records) == 2


def test_the_hint_can_be_typed_as_it_stands() -> None:
    plain = _say_hint(Settings())
    assert plain == 'Give a task: crane-x7-remote say "pick up the red cube"'
    there = _say_hint(Settings(rosbridge_host="127.0.0.1", rosbridge_port=9091))
    assert "say --rosbridge-host 127.0.0.1 --rosbridge-port 9091 " in there


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_status_is_told_once_a_second(dry_run: bool) -> None:
    rig = choosy(instruction="wave", dry_run=dry_run)
    rig.tick(5)
    told = len(rig.client.statuses)
    rig.tick(int(5 * PERIOD_S * 10))
    assert 4 <= len(rig.client.statuses) - told <= 6
    status = rig.client.statuses[-1]
    assert (status.session, status.task, status.task_state) == ("0a1b2c3d", "wave", "accepted")
    assert status.reason is None
    assert status.hold is None
    assert status.dry_run is dry_run
    assert 50 < status.trajectories <= rig.loop.metrics.counters["trajectories"]
    assert status.rate_hz == pytest.approx(10, rel=0.05)
    assert status.latency_ms is not None


def test_a_task_is_answered_in_the_tick_that_takes_it() -> None:
    rig = choosy(instruction="wave")
    rig.tick(10)
    for task, state in (("dance", "refused"), ("wave", "accepted"), ("wave", "accepted")):
        told = len(rig.client.statuses)
        rig.client.instructions.append(task)
        rig.tick()
        assert len(rig.client.statuses) == told + 1
        status = rig.client.statuses[-1]
        assert (status.task, status.task_state) == (task, state)
        assert (status.reason is None) == (state == "accepted")
    assert rig.policy.observations[-1].instruction == "wave"


def test_a_refused_task_reaches_the_policy_so_that_its_arm_stays() -> None:
    rig = choosy(instruction="wave")
    rig.client.instructions.append("stop")
    rig.tick(2)
    assert rig.policy.observations[-1].instruction == "stop"


def test_other_words_are_followed_and_a_colour_of_no_cube_keeps_the_arm_still() -> None:
    inner = MovingPolicy()
    own = ("pick up the red cube", "pick up the blue cube")
    rig = Rig(policy=WordedPolicy(inner, Wordings(own, "skills.json")), instruction="dance")  # type: ignore[arg-type]
    rig.client.instructions.append("grab the crimson block")
    moved = rig.tick(3)
    assert isinstance(moved, Sent)
    assert rig.client.statuses[-1].task_state == "accepted"
    assert inner.observations[-1].instruction == own[0]
    rig.client.instructions.append("grab the purple block")
    still = [rig.tick() for _ in range(3)]
    status = rig.client.statuses[-1]
    assert (status.task, status.task_state) == ("grab the purple block", "refused")
    assert "names the colour purple, the cubes are red, blue" in (status.reason or "")
    targets = [one.target_rad for one in still if isinstance(one, Sent)]
    assert len(targets) == 3
    assert np.ptp(targets, axis=0).max() == pytest.approx(0, abs=1e-6)
    assert np.ptp(moved.target_rad, axis=0).max() > 0.01


def test_a_hold_is_told_with_its_reason() -> None:
    rig = choosy(instruction="wave")
    rig.tick(10)
    rig.client.link.connected = False
    rig.tick(10)
    assert rig.client.statuses[-1].hold == HoldReason.LINK_DOWN


def test_a_slow_loop_answers_between_its_ticks() -> None:
    rig = choosy(instruction="wave", rate_hz=0.1)
    rig.tick()
    begun_s = rig.clock.now_s

    def sleep(seconds: float) -> None:
        rig.clock.now_s += seconds
        if not rig.client.instructions and rig.clock.now_s - begun_s < 0.5:
            rig.client.instructions.append("dance")

    rig.loop._sleep = sleep
    heard = []
    tell = rig.client.tell

    def note(operation: dict[str, object]) -> bool:
        heard.append(rig.clock.now_s)
        if operation["msg"] and rig.loop._task.instruction == "dance":
            rig.loop.stop()
        return tell(operation)

    rig.client.tell = note  # type: ignore[method-assign, assignment]
    rig.loop.run()
    assert rig.client.statuses[-1].task_state == "refused"
    assert heard[-1] - begun_s < 2.0


def test_openvla_takes_any_text() -> None:
    rig = Rig()
    rig.client.instructions.append("dance")
    rig.tick()
    assert rig.client.statuses[-1].task_state == "accepted"


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "{}", "[" * 3000, '{"session": "0a1b2c3d"}',
        '{"session": "../../etc", "task_state": "accepted", "trajectories": 1}',
        '{"session": "0a1b2c3d", "task_state": "maybe", "trajectories": 1}',
        '{"session": "0a1b2c3d", "task_state": "accepted", "trajectories": -1}',
        '{"session": "0a1b2c3d", "task_state": "accepted", "trajectories": 1, "rate_hz": NaN}',
        '{"session": "0a1b2c3d", "task_state": "accepted", "trajectories": 1, "hold": ["a"]}',
    ],
)  # fmt: skip
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(MessageError, match="/vla/status"):
        loop_status.read({"data": text})


def test_a_status_comes_through_whole_and_a_newer_loops_fields_are_ignored() -> None:
    text = Path(__file__).read_text()[:1500]
    status = loop_status.LoopStatus(
        "0a1b2c3d", "青いキューブ", "refused", text, 9.5, None, "no_frame", 3, True
    )
    again = loop_status.read(status.message())
    assert again.task == "青いキューブ"
    assert again.reason == text[: loop_status.LONGEST_TEXT]
    assert (again.rate_hz, again.hold, again.dry_run) == (9.5, "no_frame", True)
    data = status.message()["data"][:-1] + ', "mood": "good"}'
    assert loop_status.read({"data": data}) == again
