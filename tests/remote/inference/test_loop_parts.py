"""Pacing, peers, metrics and the policy's thread, each alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.link.delay import FIRST_S, HEADROOM, MARGIN_S, WINDOW_S, LinkDelay
from crane_x7_remote.inference.link.guard_state import GuardState
from crane_x7_remote.inference.link.peers import Peers
from crane_x7_remote.inference.metrics import Distribution, LoopMetrics, MetricsWriter
from crane_x7_remote.inference.pacing import ATTEMPTS, LONGEST_WAIT_S, MAX_SLEW, Pacer
from crane_x7_remote.inference.worker import Meanwhile, PolicyWorker, Prediction
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation


def test_a_late_tick_does_not_move_the_ones_after_it() -> None:
    pacer = Pacer(0.1, 50.0)
    assert pacer.advance(50.07) == 0
    assert pacer.deadline_s == pytest.approx(50.1)
    assert pacer.advance(50.45) == 2
    assert pacer.deadline_s == pytest.approx(50.4)
    assert pacer.advance(50.47) == 0
    assert pacer.deadline_s == pytest.approx(50.5)


def test_a_tick_that_overran_runs_the_next_at_once_and_is_not_late_for_it() -> None:
    pacer = Pacer(0.1, 50.0)
    assert pacer.advance(50.115) == 0
    assert pacer.is_behind
    assert pacer.deadline_s == pytest.approx(50.1)
    assert pacer.aim_s == 50.115
    pacer.advance(50.15)
    assert not pacer.is_behind
    assert pacer.aim_s == pytest.approx(50.2)


def test_only_deadlines_that_are_overdue_are_skipped() -> None:
    pacer = Pacer(0.1, 50.0)
    pacer.overdue_periods = 2
    assert pacer.advance(50.25) == 0
    assert pacer.deadline_s == pytest.approx(50.1)
    assert pacer.advance(50.45) == 1
    assert pacer.deadline_s == pytest.approx(50.3)


def test_behind_a_frame_at_hand_is_used_and_a_missing_one_waited_for() -> None:
    pacer = Pacer(0.1, 50.0)
    pacer.advance(50.13)
    assert pacer.patience_s(50.13, has_frame=True) < 0
    assert pacer.patience_s(50.13, has_frame=False) == pytest.approx(0.07)
    slow = Pacer(5.0, 50.0)
    slow.advance(56.0)
    assert slow.patience_s(56.0, has_frame=False) == LONGEST_WAIT_S


def test_the_phase_may_be_set_anew_after_the_loop_was_behind_for_long() -> None:
    pacer = Pacer(1 / 30, 0.0)
    pacer.observe(0.002)
    for tick in range(1, 61):
        pacer.advance(tick * 0.035)
        assert pacer.is_behind
        assert not pacer.observe(pacer.deadline_s + 0.002)
    pacer.advance(pacer.deadline_s + 0.02)
    assert pacer.observe(pacer.deadline_s - 0.016)
    pacer.advance(pacer.deadline_s + 0.02)
    assert not pacer.observe(pacer.deadline_s + 0.002)
    pacer.advance(pacer.deadline_s + 0.02)
    assert not pacer.observe(pacer.deadline_s - 0.016)


@pytest.mark.parametrize("drift", [-200e-6, 0.0, 200e-6])
def test_deadlines_follow_a_camera_whose_clock_drifts(drift: float) -> None:
    pacer = Pacer(1 / 30, 0.0)
    frames = 0.011 + np.arange(1, 9000) / 30 * (1 + drift)
    early = []
    for arrival_s in frames:
        pacer.observe(float(arrival_s))
        early.append(arrival_s - pacer.deadline_s)
        pacer.advance(max(arrival_s, pacer.deadline_s) + 0.002)
    assert max(abs(np.array(early[1:]) - 0.002)) < 0.001


def test_a_first_frame_that_came_late_is_corrected_within_seconds() -> None:
    pacer = Pacer(0.1, 0.0)
    frames = 0.05 + 0.1 * np.arange(60)
    frames[0] += 0.012
    for arrival_s in frames:
        pacer.observe(float(arrival_s))
        early_s = arrival_s - pacer.deadline_s
        pacer.advance(max(arrival_s, pacer.deadline_s) + 0.002)
    assert abs(early_s - 0.002) < 0.0005


def test_slewing_keeps_the_rate_within_its_bound() -> None:
    """A camera at 29.97 Hz under a loop of 30 Hz: the phase cannot be kept, the rate is."""
    pacer = Pacer(1 / 30, 0.0)
    ticks = 0
    while pacer.deadline_s < 300:
        due_s = pacer.deadline_s
        pacer.observe(np.floor(due_s * 29.97) / 29.97)
        pacer.advance(due_s + 0.001)
        ticks += 1
    assert ticks / 300 == pytest.approx(30, rel=MAX_SLEW + (ATTEMPTS + 1) / 9000)


def test_the_phase_is_set_anew_only_while_it_settles() -> None:
    pacer = Pacer(0.1, 0.0)
    assert pacer.observe(-0.05)
    pacer.advance(0.0)
    assert not pacer.observe(pacer.deadline_s + 0.002)
    assert not pacer.observe(pacer.deadline_s - 0.05)
    pacer.settle()
    assert pacer.observe(pacer.deadline_s - 0.05)


def test_a_new_link_is_listened_to_first() -> None:
    peers = Peers("0a1b2c3d", listen_s=1.0)
    assert peers.verdict(10.0) is not None
    peers.link_came_up(10.0)
    hold = peers.verdict(10.9)
    assert hold is not None
    assert hold.reason is HoldReason.LISTENING
    assert peers.verdict(11.1) is None


def test_a_loop_that_was_driving_listens_for_a_moment_only() -> None:
    """Others wait for two seconds after its last trajectory."""
    peers = Peers("0a1b2c3d", listen_s=1.0)
    peers.link_came_up(0.0)
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    peers.link_came_up(6.0)
    assert peers.verdict(6.2) is not None
    assert peers.verdict(6.4) is None
    peers.published(2, 6.4, lead_s=0.05, expires_s=7.0)
    peers.link_came_up(9.0)
    assert peers.verdict(9.9) is not None


def test_a_loop_that_drives_is_not_stopped_by_a_larger_name() -> None:
    peers = Peers("0a1b2c3d", listen_s=0.0)
    peers.link_came_up(0.0)
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    peers.heard("ffffffff", 1, 5.1)
    assert peers.verdict(5.2) is None
    peers.heard("00000000", 1, 5.3)
    assert peers.verdict(5.4) is not None


def test_own_trajectories_do_not_count_as_another_loop() -> None:
    peers = Peers("0a1b2c3d", listen_s=0.0)
    peers.link_came_up(0.0)
    peers.heard("0a1b2c3d", 1, 5.0)
    assert peers.verdict(5.1) is None


def _guard_says(you: int, stopped: str | None, stops: int) -> dict[str, str]:
    return {"data": json.dumps({"you": you, "stopped": stopped, "stops": stops})}


def test_a_guard_that_stopped_and_passed_again_unheard_has_stopped() -> None:
    guard = GuardState()
    guard.hear(_guard_says(1, None, 4), 0.0)
    assert guard.stops == 0, "stops before the first state concern nobody here"
    guard.link_came_up()
    guard.link_came_up()  # the link goes down and up meanwhile
    guard.hear(_guard_says(2, None, 5), 3.0)
    assert guard.stops == 1
    assert guard.last_stop
    guard.link_came_up()
    guard.hear(_guard_says(1, None, 0), 6.0)  # another guard, or a restarted one
    assert guard.stops == 2


def test_one_stop_of_the_guard_counts_once_on_every_link() -> None:
    guard = GuardState()
    guard.hear(_guard_says(1, None, 0), 0.0)
    guard.link_came_up()
    guard.hear(_guard_says(1, "by hand", 1), 1.0)
    for link in (2, 3):
        guard.link_came_up()
        guard.hear(_guard_says(link, "by hand", 1), float(link))
    assert (guard.stops, guard.last_stop) == (1, "by hand")


def test_a_state_of_a_new_link_outlives_the_news_that_the_link_came_up() -> None:
    guard = GuardState()
    for link, stopped in enumerate(("by hand", None, "again"), 1):
        guard.hear(_guard_says(link, stopped, link), float(link))
        guard.link_came_up()  # called on the loop's thread, later
        assert guard.is_there(float(link))
        assert guard.stopped(float(link)) == stopped
    guard.link_came_up()  # a link without a guard
    assert not guard.is_there(3.0)
    guard.link_came_up()
    guard.hear(_guard_says(5, None, 3), 5.0)
    assert guard.is_there(5.0)


def test_a_trajectory_is_overdue_from_its_lead_until_it_comes_back() -> None:
    peers = Peers("0a1b2c3d")
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    assert peers.overdue_s(5.04) is None
    assert peers.overdue_s(5.1) == pytest.approx(0.1)
    peers.heard("0a1b2c3d", 1, 5.2)
    assert peers.overdue_s(5.3) is None
    assert not peers.is_lost(1)
    assert peers.take_echoes_s() == [pytest.approx(0.2)]


def test_a_trajectory_that_expired_before_it_came_back_is_lost() -> None:
    peers = Peers("0a1b2c3d")
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    assert not peers.is_lost(1)
    assert peers.overdue_s(5.51) is None
    assert peers.is_lost(1)
    peers.published(2, 6.0, lead_s=0.05, expires_s=6.5)
    peers.heard("0a1b2c3d", 2, 6.01)
    assert not peers.is_lost(2)


def test_a_trajectory_that_comes_back_after_it_expired_is_lost() -> None:
    """A robot repeats one that its controller refused. The arm does not stand at its end."""
    peers = Peers("0a1b2c3d")
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    peers.published(2, 5.4, lead_s=0.05, expires_s=5.9)
    peers.heard("0a1b2c3d", 1, 6.3)
    peers.heard("0a1b2c3d", 2, 6.3)
    assert peers.is_lost(1)
    assert peers.is_lost(2)
    assert peers.take_echoes_s() == pytest.approx([1.3, 0.9])


def test_the_oldest_that_is_missing_counts_until_a_newer_one_comes_back() -> None:
    """A link keeps the order: one that came back shows that those before it arrived or were
    refused."""
    peers = Peers("0a1b2c3d")
    peers.published(1, 5.0, lead_s=0.05, expires_s=5.5)
    peers.published(2, 5.04, lead_s=0.05, expires_s=5.54)
    assert peers.overdue_s(5.06) == pytest.approx(0.06)
    peers.heard("0a1b2c3d", 2, 5.07)
    assert peers.overdue_s(5.4) is None


def test_the_lead_rises_at_once_and_sinks_slowly() -> None:
    delay = LinkDelay()
    assert delay.lead_s(0.5) == pytest.approx(HEADROOM * FIRST_S + MARGIN_S)
    for second in range(-60, 60):
        delay.observe(0.01, float(second))
    assert delay.lead_s(0.5) == pytest.approx(HEADROOM * 0.01 + MARGIN_S, rel=0.02)
    delay.observe(0.12, 60.0)
    raised_s = delay.lead_s(0.5)
    assert raised_s == pytest.approx(HEADROOM * 0.12 + MARGIN_S)
    for second in range(61, int(60 + WINDOW_S)):
        delay.observe(0.01, float(second))
    assert delay.lead_s(0.5) == raised_s
    for second in range(int(60 + WINDOW_S), int(60 + WINDOW_S) + 20):
        delay.observe(0.01, float(second))
    assert 0.1 < delay.lead_s(0.5) < raised_s
    for second in range(int(80 + WINDOW_S), int(300 + WINDOW_S)):
        delay.observe(0.01, float(second))
    assert delay.lead_s(0.5) == pytest.approx(HEADROOM * 0.01 + MARGIN_S, rel=0.02)


def test_an_answer_that_is_still_missing_raises_the_lead() -> None:
    delay = LinkDelay()
    delay.observe(0.01, 0.0)
    delay.observe_missing(0.1, 0.2)
    assert delay.lead_s(0.5) == pytest.approx(HEADROOM * 0.1 + MARGIN_S)
    assert delay.typical_s == 0.01


def test_the_lead_is_bounded_by_the_validity_but_covers_a_usual_round_trip() -> None:
    delay = LinkDelay()
    for second in range(10):
        delay.observe(0.05, float(second))
    delay.observe(2.0, 10.0)
    assert delay.lead_s(0.5) == 0.25
    assert delay.lead_s(1.0) == 0.5
    for second in range(11, 60):
        delay.observe(0.4, float(second))
    assert delay.lead_s(0.5) == pytest.approx(0.4 + MARGIN_S)


def test_quantiles_are_exact_to_two_percent() -> None:
    values = np.random.default_rng(0).lognormal(-5, 1, 5000)
    distribution = Distribution()
    for value in values:
        distribution.add(float(value))
    for share in (0.5, 0.9, 0.99):
        exact_ms = float(np.quantile(values, share)) * 1e3
        assert distribution.quantile_ms(share) == pytest.approx(exact_ms, rel=0.025)
    assert distribution.summary()["max"] == pytest.approx(values.max() * 1e3)


def test_an_empty_distribution_has_no_quantiles() -> None:
    assert Distribution().summary()["p50"] is None


def test_rates_count_intervals_not_events() -> None:
    metrics = LoopMetrics("0a1b2c3d", 10.0)
    for tick in range(11):
        metrics.tick(100 + tick * 0.1)
    assert metrics.snapshot()["rate_hz"] == pytest.approx(10.0)
    assert metrics.snapshot()["trajectory_rate_hz"] is None


def test_metrics_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    metrics = LoopMetrics("0a1b2c3d", 10.0)
    metrics.holds[HoldReason.JUMP] += 2
    metrics.latency.add(0.003)
    writer = MetricsWriter(path)
    writer.offer(metrics.snapshot())
    writer.close()
    written = json.loads(path.read_text())
    assert written["holds"] == {"jump": 2}
    assert written["latency_ms"]["count"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(Path, "with_name", lambda *_: full)
    writer = MetricsWriter(tmp_path / "metrics.json")
    for _ in range(3):
        writer.offer({"ticks": 1})
        time.sleep(0.02)
    writer.close()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1


class _Policy:
    def __init__(self) -> None:
        self.release = threading.Event()
        self.release.set()
        self.calls: list[str] = []

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.release.wait(5)
        self.calls.append("predict")
        return [ActionChunk(robot.HOME_RAD[None], 0.1) for _ in observations]

    def reset(self) -> None:
        self.calls.append("reset")


OBSERVATION = Observation(
    np.zeros((4, 4, 3), np.uint8), JointState(robot.HOME_RAD, np.zeros(8)), "wave", 0.0
)


def test_a_prediction_comes_back_with_its_duration() -> None:
    worker = PolicyWorker(_Policy(), time.monotonic)
    prediction = worker.predict(OBSERVATION, 1.0)
    worker.close()
    assert isinstance(prediction, Prediction)
    assert isinstance(prediction.chunk, ActionChunk)
    assert 0 <= prediction.duration_s < 1


def test_the_result_of_a_stalled_prediction_is_never_given_to_the_next() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    first = worker.predict(OBSERVATION, 0.02)
    second = worker.predict(OBSERVATION, 0.02)
    policy.release.set()
    while worker.is_busy:
        time.sleep(0.001)
    third = worker.predict(OBSERVATION, 1.0)
    worker.close()
    assert isinstance(first, Hold)
    assert first.reason is HoldReason.POLICY_TIMEOUT
    assert isinstance(second, Hold)
    assert second.reason is HoldReason.POLICY_BUSY
    assert isinstance(third, Prediction)
    assert policy.calls == ["predict", "predict"]


def _answer(
    worker: PolicyWorker, timeout_s: float, *meanwhile: Meanwhile
) -> Prediction | Hold | None:
    job = worker.ask(OBSERVATION)
    assert not isinstance(job, Hold)
    return worker.answer(job, timeout_s, meanwhile)


def test_work_is_done_while_a_slow_policy_computes() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    prediction = _answer(worker, 4.0, Meanwhile(0.01, policy.release.set))
    assert isinstance(prediction, Prediction)
    policy.release.clear()
    hold = _answer(worker, 0.05, Meanwhile(0.01, lambda: policy.calls.append("work")))
    policy.release.set()
    worker.close()
    assert isinstance(hold, Hold)
    assert hold.reason is HoldReason.POLICY_TIMEOUT
    assert policy.calls[:2] == ["predict", "work"]


def test_several_works_are_done_in_the_order_of_their_times() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    works = [
        Meanwhile(at_s, lambda name=name: policy.calls.append(name))
        for at_s, name in ((0.02, "second"), (0.0, "first"), (4.0, "never"))
    ]
    prediction = _answer(worker, 5.0, *works, Meanwhile(0.03, policy.release.set))
    worker.close()
    assert isinstance(prediction, Prediction)
    assert [call for call in policy.calls if call != "predict"] == ["first", "second"]


def test_no_work_is_done_once_a_quick_policy_has_answered() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    _answer(worker, 5.0, Meanwhile(4.0, lambda: policy.calls.append("work")))
    worker.close()
    assert policy.calls == ["predict"]


def test_the_policy_goes_on_with_the_next_observation_by_itself() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    first = worker.ask(OBSERVATION)
    assert not isinstance(first, Hold)
    second = worker.ask_next(OBSERVATION, begin_by_s=float("inf"))
    assert not second.has_begun
    policy.release.set()
    assert isinstance(worker.answer(first, 4.0), Prediction)
    assert second.has_begun
    assert isinstance(worker.answer(second, 4.0), Prediction)
    worker.close()
    assert policy.calls == ["predict", "predict"]


def test_an_observation_that_has_waited_too_long_is_dropped() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    first = worker.ask(OBSERVATION)
    assert not isinstance(first, Hold)
    second = worker.ask_next(OBSERVATION, begin_by_s=time.monotonic() - 0.001)
    policy.release.set()
    assert isinstance(worker.answer(first, 4.0), Prediction)
    assert not second.has_begun
    assert isinstance(worker.predict(OBSERVATION, 4.0), Prediction)
    worker.close()
    assert policy.calls == ["predict", "predict"]


def test_a_policy_that_timed_out_does_not_go_on_with_the_next_observation() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    policy.release.clear()
    first = worker.ask(OBSERVATION)
    assert not isinstance(first, Hold)
    second = worker.ask_next(OBSERVATION, begin_by_s=float("inf"))
    assert isinstance(worker.answer(first, 0.01), Hold)
    policy.release.set()
    while worker.is_busy:
        time.sleep(0.001)
    worker.close()
    assert not second.has_begun
    assert policy.calls == ["predict"]


def test_a_reset_comes_before_the_next_prediction() -> None:
    policy = _Policy()
    worker = PolicyWorker(policy, time.monotonic)
    worker.reset_next()
    worker.predict(OBSERVATION, 1.0)
    worker.predict(OBSERVATION, 1.0)
    worker.close()
    assert policy.calls == ["reset", "predict", "predict"]


def test_an_interrupt_ends_the_waiting_at_once() -> None:
    policy = _Policy()
    policy.release.clear()
    worker = PolicyWorker(policy, time.monotonic)
    threading.Timer(0.05, worker.interrupt).start()
    started_s = time.monotonic()
    assert worker.predict(OBSERVATION, 4.0) is None
    assert time.monotonic() - started_s < 1.0
    policy.release.set()
    worker.close()
