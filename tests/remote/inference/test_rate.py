"""A loop that cannot keep the asked rate drives as fast as it can and names the cause."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from loop_rig import FaultyRobot, RunningLoop, SwingingPolicy, wait_until
from tick_rig import TRAVEL_S, FakeClient, Rig

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.intake import Asked
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.inference.worker import Job
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_vla_rl.types import Observation

ASKED = "VLA_INFERENCE_RATE"


@dataclass
class Camera(FakeClient):
    """Frames at any rate, the first one `phase_s` after a round second."""

    camera_hz: float = 30.0
    phase_s: float = 0.0

    def latest_frame(self) -> EncodedFrame | None:
        since_s = self.clock.now_s - TRAVEL_S - self.phase_s + 1e-9
        taken_s = int(since_s * self.camera_hz) / self.camera_hz + self.phase_s
        if self._frame is None or taken_s + TRAVEL_S > self._frame.arrival_s + 1e-6:
            stamp_s = taken_s + self.stamp_offset_s
            self._frame = EncodedFrame(self.jpeg, "jpeg", stamp_s, taken_s + TRAVEL_S)
        return self._frame


class Drive:
    """A loop on fake time whose policy takes `policy_s(time since the start)`."""

    def __init__(
        self,
        policy_s: Callable[[float], float],
        rate_hz: float = 30.0,
        camera_hz: float = 30.0,
        phase_s: float = 0.0,
    ) -> None:
        self.rig = Rig(
            lambda clock: Camera(clock, camera_hz=camera_hz, phase_s=phase_s), rate_hz=rate_hz
        )
        self.rig.policy.answer = self._answer
        # It would begin while the loop's thread computes, on the same fake clock.
        self.rig.loop._meanwhile = list  # type: ignore[method-assign]
        self.started_s = self.rig.clock.now_s
        self.took_s: list[float] = []
        self.began_s: list[float] = []
        self._policy_s = policy_s

    def _answer(self, observation: Observation) -> object:
        self.began_s.append(self.rig.clock.now_s - self.started_s)
        self.took_s.append(self._policy_s(self.began_s[-1]))
        self.rig.clock.sleep(self.took_s[-1])
        return self.rig.policy._further(observation)

    def run(self, seconds: float) -> dict[str, Any]:
        """Return the loop's figures; no frame was used twice."""
        self.rig.loop.run(duration_s=seconds)
        stamps = [bundle[0]["msg"]["header"]["stamp"] for bundle in self.rig.client.published]
        times = [(stamp["sec"], stamp["nanosec"]) for stamp in stamps]
        assert len(set(times)) == len(times)
        return self.rig.loop.metrics.snapshot()

    def rate_hz(self, since_s: float) -> float:
        began_s = [began_s for began_s in self.began_s if began_s >= since_s]
        return (len(began_s) - 1) / (began_s[-1] - began_s[0])


def takes(*seconds: float) -> Callable[[float], float]:
    """A policy that takes these times, one after another."""
    times = itertools.cycle(seconds)
    return lambda _: next(times)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level("INFO", logger="crane_x7_remote.inference.rate")
    name = "crane_x7_remote.inference.rate"
    return lambda: [record.message for record in caplog.records if record.name == name]


@pytest.mark.parametrize("phase_s", [0.0, 0.021])
@pytest.mark.parametrize(
    ("rate_hz", "camera_hz", "policy_s"),
    [
        (30, 30, (0.035,)),
        (30, 30, (0.0334,)),
        (30, 30, (0.1,)),
        (30, 30, (0.02, 0.06)),
        (30, 60, (0.02, 0.06)),
        (30, 60, (0.035,)),
        (30, 29.97, (0.035,)),
        (10, 30, (0.25,)),
        (10, 30, (0.101,)),
        (200, 60, (0.02,)),
    ],
)
def test_a_policy_slower_than_the_period_drives_as_fast_as_it_can(
    rate_hz: float, camera_hz: float, policy_s: Sequence[float], phase_s: float
) -> None:
    drive = Drive(takes(*policy_s), rate_hz, camera_hz, phase_s)
    figures = drive.run(8.0)
    share = figures["trajectory_rate_hz"] * statistics.fmean(policy_s)
    assert 0.95 <= share <= 1.001
    assert figures["trajectories"] == len(drive.took_s)
    assert not figures["holds"]


@pytest.mark.parametrize("policy_ms", [1, 31, 32, 33, 33.3])
def test_a_policy_that_just_fits_into_the_period_keeps_the_asked_rate(
    policy_ms: float, said: Callable[[], list[str]]
) -> None:
    """The frame comes after the deadline: a tick that takes 31 to 33 ms ends after the next one."""
    figures = Drive(takes(policy_ms / 1e3)).run(8.0)
    assert figures["trajectory_rate_hz"] == pytest.approx(30.0, rel=0.001)
    assert figures["skipped_ticks"] == 0
    assert figures["rate_limit"] is None
    assert not said()


def test_a_policy_faster_than_the_period_changes_nothing(said: Callable[[], list[str]]) -> None:
    drive = Drive(takes(0.035), rate_hz=10.0)
    figures = drive.run(15.0)
    intervals = [after - before for before, after in itertools.pairwise(drive.began_s)]
    assert intervals[60:] == pytest.approx([0.1] * len(intervals[60:]), abs=0.0006)
    assert figures["rate_hz"] == pytest.approx(10.0, rel=0.001)
    assert figures["skipped_ticks"] == 0
    assert not said()


def test_a_slow_policy_is_named_once_with_the_rate_and_the_setting(
    said: Callable[[], list[str]],
) -> None:
    figures = Drive(takes(0.035)).run(20.0)
    assert said() == [
        f"policy takes 35 ms: driving at 28.4 Hz instead of the requested 30 Hz ({ASKED})"
    ]
    assert figures["rate_limit"] == "policy"
    assert figures["rate_lost_hz"] == pytest.approx(30 - 1 / 0.035, abs=0.3)
    missed = (30 - 1 / 0.035) * 20
    assert figures["skipped_ticks"] == pytest.approx(missed, abs=3)


def test_a_policy_whose_time_varies_is_named_with_its_range(
    said: Callable[[], list[str]],
) -> None:
    Drive(takes(0.02, 0.06)).run(8.0)
    assert len(said()) == 1
    assert said()[0].startswith("policy takes 20 to 60 ms: driving at 24.")


def test_lateness_says_how_the_machine_wakes_up_not_how_slow_the_policy_is() -> None:
    figures = Drive(takes(0.1)).run(5.0)
    assert figures["lateness_ms"]["max"] < 1.0


def test_a_policy_that_is_fast_again_returns_to_the_deadlines_and_the_phase(
    said: Callable[[], list[str]],
) -> None:
    drive = Drive(lambda since_s: 0.035 if since_s < 8 else 0.02)
    figures = drive.run(16.0)
    assert [line.split(":")[0] for line in said()] == [
        "policy takes 35 ms",
        "driving at the requested 30 Hz again",
    ]
    assert drive.rate_hz(since_s=9.0) == pytest.approx(30.0, rel=0.001)
    late_s = [began_s - used_s for began_s, used_s in _frames(drive) if began_s > 10]
    assert max(late_s) < 0.002
    assert figures["rate_limit"] is None
    assert figures["rate_lost_hz"] == 0.0


def _frames(drive: Drive) -> list[tuple[float, float]]:
    """When the policy began, and when the frame had arrived that it was given."""
    arrived_s = [seen.time_s + TRAVEL_S - drive.started_s for seen in drive.rig.policy.observations]
    return list(zip(drive.began_s, arrived_s, strict=True))


@pytest.mark.parametrize("pause_s", [0.04, 0.1, 0.3])
def test_one_slow_answer_is_no_slow_policy(pause_s: float, said: Callable[[], list[str]]) -> None:
    drive = Drive(lambda since_s: pause_s if 5 <= since_s < 5.034 else 0.02)
    figures = drive.run(10.0)
    assert not said()
    assert figures["rate_limit"] is None
    assert figures["skipped_ticks"] <= pause_s * 30
    assert drive.rate_hz(since_s=6) == pytest.approx(30.0, rel=0.001)


def test_slow_answers_that_come_again_and_again_are_named(
    said: Callable[[], list[str]],
) -> None:
    """A policy that computes eight steps at once and hands them out one by one."""
    Drive(takes(0.1, *[0.001] * 7)).run(10.0)
    assert len(said()) == 1
    assert said()[0].startswith("policy takes 1 to 100 ms: driving at 2")


def test_a_policy_that_is_now_slow_now_fast_is_not_named_each_time(
    said: Callable[[], list[str]],
) -> None:
    Drive(lambda since_s: 0.036 if since_s % 2 < 1 else 0.03).run(20.0)
    assert len(said()) <= 1


def test_a_slow_policy_is_named_once_a_minute_at_most(said: Callable[[], list[str]]) -> None:
    """It is slow, then fast, then slow to the end: the second line waits for its minute."""
    lines_by_s: list[tuple[float, int]] = []

    def policy_s(since_s: float) -> float:
        lines_by_s.append((since_s, len(said())))
        return 0.15 if since_s < 5 or since_s > 12 else 0.05

    Drive(policy_s, rate_hz=10).run(70.0)
    assert max(lines for since_s, lines in lines_by_s if since_s < 60) == 2
    assert [line.split(":")[0] for line in said()] == [
        "policy takes 150 ms",
        "driving at the requested 10 Hz again",
        "policy takes 150 ms",
    ]


@pytest.mark.parametrize("policy_s", [0.002, 0.035])
@pytest.mark.parametrize("camera_hz", [1.0, 10.0, 25.0])
def test_a_camera_slower_than_the_asked_rate_is_named_once(
    camera_hz: float, policy_s: float, said: Callable[[], list[str]]
) -> None:
    figures = Drive(takes(policy_s), camera_hz=camera_hz).run(14.0)
    assert len(said()) == 1
    assert said()[0].startswith("camera and link deliver ")
    assert figures["trajectory_rate_hz"] == pytest.approx(camera_hz, rel=0.02)
    assert figures["rate_limit"] == "camera"
    assert figures["rate_lost_hz"] == pytest.approx(30 - camera_hz, abs=0.5)


def test_a_camera_of_the_asked_rate_is_no_limit(said: Callable[[], list[str]]) -> None:
    for camera_hz in (29.97, 30.0, 30.03):
        Drive(takes(0.02), camera_hz=camera_hz).run(8.0)
    assert not said()


def test_what_limits_follows_the_true_cause(said: Callable[[], list[str]]) -> None:
    """The camera's 10 Hz limit first; then the policy becomes slower still."""
    drive = Drive(lambda since_s: 0.035 if since_s < 5 else 0.15, camera_hz=10.0)
    figures = drive.run(15.0)
    assert [line.split(" ")[0] for line in said()] == ["camera", "policy"]
    assert figures["rate_limit"] == "policy"


def test_holds_for_other_reasons_are_no_slow_policy(said: Callable[[], list[str]]) -> None:
    drive = Drive(takes(0.02))
    link = drive.rig.client.link
    drive.rig.policy.answer = lambda seen: setattr(link, "connected", False) or drive._answer(seen)
    sleep = drive.rig.clock.sleep

    def sleep_and_connect(seconds: float) -> None:
        link.connected = True
        sleep(seconds)

    drive.rig.loop._sleep = sleep_and_connect
    figures = drive.run(8.0)
    assert figures["holds"]["link_down"] > 100
    assert not said()


def _asked_ahead(rig: Rig) -> EncodedFrame:
    """Let the policy have been asked about the next frame while it computed the last answer."""
    rig.tick()
    rig.clock.sleep(0.05)
    frame = rig.client.latest_frame()
    assert frame is not None
    asked = rig.loop._intake._ask(frame)
    assert not isinstance(asked, Hold)
    rig.loop._intake._ahead = asked
    rig.clock.sleep(0.04)
    return frame


def test_what_was_asked_ahead_is_answered_by_the_next_tick() -> None:
    rig = Rig()
    frame = _asked_ahead(rig)
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.frame is frame
    assert len(rig.policy.observations) == 2
    assert rig.loop._intake._ahead is None


def test_what_was_asked_before_a_new_link_is_not_answered_behind_it() -> None:
    rig = Rig()
    frame = _asked_ahead(rig)
    rig.client.link.reconnects += 1
    while rig.loop._worker.is_busy:
        time.sleep(0.001)
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.frame is not frame
    assert rig.policy.resets == 1


def test_a_link_that_went_down_forgets_what_was_asked_ahead() -> None:
    rig = Rig()
    _asked_ahead(rig)
    rig.client.link.connected = False
    assert rig.reason() is HoldReason.LINK_DOWN
    assert rig.loop._intake._ahead is None


def test_the_gates_hold_for_an_answer_that_was_asked_ahead() -> None:
    rig = Rig()
    _asked_ahead(rig)
    joints = rig.client.joints()
    assert joints is not None
    rig.client.measured = replace(joints, arrival_s=joints.arrival_s - 1.0)
    assert rig.reason() is HoldReason.JOINTS_STALE


def _dropped(rig: Rig, frame: EncodedFrame, before: EncodedFrame | None) -> None:
    """Let `frame` have been given to the policy too late to begin."""
    image, joints = rig.policy.observations[-1].image, rig.policy.observations[-1].joints
    rig.loop._intake._ahead = Asked(frame, Job(Observation(image, joints, "wave", 0.0)), before)
    rig.loop._intake._used = frame


def test_an_observation_that_waited_too_long_makes_way_for_a_newer_frame() -> None:
    rig = Rig()
    rig.tick()
    before = rig.client.latest_frame()
    rig.clock.sleep(0.04)
    frame = rig.client.latest_frame()
    assert frame is not None
    assert frame is not before
    _dropped(rig, frame, before)
    rig.clock.sleep(0.04)
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.frame is rig.client.latest_frame()
    assert outcome.frame is not frame


def test_an_observation_that_waited_too_long_is_made_again_from_its_frame() -> None:
    """Without a newer one; a wait for the next frame would cost up to a camera period."""
    rig = Rig()
    rig.tick()
    before = rig.client.latest_frame()
    rig.clock.sleep(0.15)  # behind the deadline, as a slow policy is
    rig.loop._pacer.is_behind = True
    frame = rig.client.latest_frame()
    assert frame is not None
    _dropped(rig, frame, before)
    began_s = rig.clock.now_s
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.frame is frame
    assert rig.clock.now_s - began_s < 0.005
    assert rig.loop._intake._used is frame


def test_a_frame_that_was_used_is_not_used_again_after_a_dropped_one() -> None:
    rig = Rig()
    rig.tick()
    frame = rig.client.latest_frame()
    assert frame is not None
    _dropped(rig, frame, frame)
    outcome = rig.tick()
    assert isinstance(outcome, Sent)
    assert outcome.frame is not frame


class _StampedRobot(FaultyRobot):
    """Notes which frame each trajectory answers."""

    def __init__(self) -> None:
        self.stamps: list[tuple[int, int]] = []
        super().__init__()

    def receive(self, topic: str, message: Any) -> None:
        if topic.endswith("arm_controller/joint_trajectory"):
            stamp = message["header"]["stamp"]
            self.stamps.append((stamp["sec"], stamp["nanosec"]))
        super().receive(topic, message)


class _SlowPolicy(SwingingPolicy):
    """Takes 35 ms; records the start and end of each prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_s: list[tuple[float, float]] = []

    def predict(self, observations: Sequence[Observation]) -> list[Any]:
        began_s = time.monotonic()
        time.sleep(0.035)
        answer = super().predict(observations)
        self.calls_s.append((began_s, time.monotonic()))
        return answer


class _Counted:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.calls = 0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._function(*arguments)


def test_a_real_loop_asks_a_slow_policy_again_as_soon_as_it_has_answered() -> None:
    """Waiting for every second deadline would leave 31 ms between the answers and the questions."""
    policy = _SlowPolicy()
    with _StampedRobot() as robot, RunningLoop(robot.port, policy, rate_hz=30.0) as running:
        ahead = _Counted(running.loop._worker.ask_next)
        running.loop._worker.ask_next = ahead  # type: ignore[method-assign, assignment]
        running.wait_driving(ticks=100, timeout_s=30.0)
        wait_until(lambda: len(robot.stamps) >= 100, 5.0, "trajectories at the robot")
    idle_s = [after[0] - before[1] for before, after in itertools.pairwise(policy.calls_s)]
    assert statistics.median(idle_s) < 0.015
    assert ahead.calls > 25
    assert len(set(robot.stamps)) == len(robot.stamps)
    assert running.sent() >= 0.9 * len(policy.calls_s)
    robot.assert_nothing_bad_arrived()
