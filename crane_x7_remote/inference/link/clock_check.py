"""Whether the robot's clocks allow driving. `ClockReport` → `Hold` or None. Pure.

Also computes a trajectory's stamp: its frame's, on the clock of the arm's controller.
"""

from __future__ import annotations

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.rosbridge.robot_clocks import ClockReport

LONGEST_REPLAY_S = 0.5
"""A controller whose clock was set back runs its path later by as much; the longest wait for it."""
TAI_S = 37.0
"""TAI minus UTC since 2017: some cameras and PTP clocks use TAI."""
SAME_STAMP_S = 1e-3


def check_clocks(
    report: ClockReport, now_s: float, max_difference_s: float, path_ends_s: float
) -> Hold | None:
    """Return why the clocks forbid driving, or None.

    `max_difference_s`: how far the clocks of camera and joint states may differ; `path_ends_s`:
    when the path that ran at the last step of a clock ends, on our clock, as `now_s`.
    """
    if report.joints_are_unstamped:
        return Hold(
            HoldReason.CLOCK_UNKNOWN,
            f"{report.joints_topic} has no stamp (header.stamp is 0): the controller's time is"
            " unknown; the publisher of the joint states must set the stamp",
        )
    if report.robot_s is None or not report.is_settled:
        return Hold(
            HoldReason.CLOCK_UNKNOWN, f"too few stamps received on {report.joints_topic} so far"
        )
    return (
        _check_rate(report)
        or _check_steps(report, now_s, path_ends_s)
        or _check_difference(report, max_difference_s)
    )


def answered_stamp_s(stamp_s: float, age_s: float, robot_s: float) -> float:
    """Return the stamp of a frame's trajectory, on the controller's clock.

    It is the frame's own stamp, unless the camera's clock is ahead: then it is the controller's
    time at which the frame was taken. `age_s` is the frame's age now, at `robot_s`. The stamp is
    never later than `robot_s`, and never makes the frame look younger than it is.
    """
    taken_s = robot_s - max(age_s, 0.0)
    return stamp_s if stamp_s <= taken_s + SAME_STAMP_S and stamp_s <= robot_s else taken_s


def _check_rate(report: ClockReport) -> Hold | None:
    if report.rate is None:
        return None
    pace = "slower" if report.rate < 1 else "faster"
    return Hold(
        HoldReason.CLOCK_RATE,
        f"stamps on {report.joints_topic} advance {report.rate:.2f} s per second,"
        f" expected 1: is this a simulation {pace} than real time? Run it in real time",
    )


def _check_steps(report: ClockReport, now_s: float, path_ends_s: float) -> Hold | None:
    for doubt_s, topic in (
        (report.joints_doubt_s, report.joints_topic),
        (report.camera_doubt_s, report.camera_topic),
    ):
        if doubt_s is not None:
            way = "ahead of" if doubt_s > 0 else "behind"
            return Hold(
                HoldReason.CLOCK_STEPPED,
                f"newest stamp on {topic} is {abs(doubt_s):.3f} s {way} the ones before;"
                " waiting for the next ones to confirm it",
            )
    if report.step is None:
        return None
    replay_s = min(max(-report.step.by_s, 0.0), LONGEST_REPLAY_S)
    if now_s >= path_ends_s + replay_s:
        return None
    return Hold(
        HoldReason.CLOCK_STEPPED,
        f"the robot's clock was stepped by {report.step.by_s:+.3f} s; waiting until the"
        " trajectories sent before have ended",
    )


def _check_difference(report: ClockReport, max_difference_s: float) -> Hold | None:
    difference_s = report.difference_s
    if difference_s is None:  # to drive now would be to trust a clock that nobody has checked
        return Hold(
            HoldReason.CLOCK_UNKNOWN, f"too few stamps received on {report.camera_topic} so far"
        )
    if abs(difference_s) <= max_difference_s:
        return None
    way = "ahead of" if difference_s > 0 else "behind"
    cause = "synchronise both machines (chrony)"
    if abs(abs(difference_s) - TAI_S) < 1:
        cause = "one of them uses TAI; synchronise both machines in UTC (chrony)"
    elif difference_s < 0:
        cause += ", or find out why images arrive so late"
    return Hold(
        HoldReason.CLOCKS_DIFFER,
        f"clock of {report.camera_topic} is {abs(difference_s):.3f} s {way} that of"
        f" {report.joints_topic}, expected at most {max_difference_s:g} s (MAX_FRAME_AGE); {cause}",
    )
