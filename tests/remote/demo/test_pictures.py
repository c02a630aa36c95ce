"""The demo's pictures, plots and summary, from a synthetic run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from crane_x7_remote.demo import pictures, plots, report, summary
from crane_x7_remote.demo.pictures import Film
from crane_x7_remote.demo.recorder import Hand, Recording, RunRecorder
from crane_x7_remote.demo.report import DemoResult, TaskResult
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import ParsedTrajectory
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import still_picture
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import Trajectory

EPOCH_S = 1000.0
"""The robot's clock when the recorder begins."""
LOOP_S = EPOCH_S + 5.0
"""The same at the loop's first trajectory."""
RESULT = DemoResult(
    0, (TaskResult("first", 4.0), TaskResult("second", 8.0)), (), (), 8.0, put_back=("red",)
)


def undone(instruction: str, duration_s: float) -> DemoResult:
    return DemoResult(0, (TaskResult(instruction, None),), (), (), duration_s)


def flat(red: int, size: tuple[int, int] = (160, 120)) -> bytes:
    width, height = size
    ok, jpeg = cv2.imencode(".png", np.full((height, width, 3), (0, 0, red), np.uint8))
    assert ok
    return jpeg.tobytes()


def recording(lag_s: float = 0.3) -> Recording:
    """Fifteen seconds, the loop driving from the fifth on; each joint follows its target late, and
    the predicted trajectories tell of the gripper only after it has moved."""
    made = Recording(instructions=[(EPOCH_S, "first"), (LOOP_S + 4.0, "second")])
    made.hands.append(Hand(LOOP_S + 4.0, "red", (0.2, 0.0, 0.1), (0.2, 0.0, 0.015)))
    picture = still_picture(160, 120)
    for tick in range(150):
        time_s = EPOCH_S + 0.1 * tick
        since_s = time_s - LOOP_S
        made.views.append(EncodedFrame(picture, "jpeg", time_s, 0.0))
        made.frames.append(EncodedFrame(flat(tick), "png", time_s, 0.0))
        made.target_times_s.append(time_s)
        made.joint_times_s.append(time_s)
        made.target_rad.append(HOME_RAD + 0.1 * max(0.0, since_s))
        made.joint_rad.append(HOME_RAD + 0.1 * max(0.0, since_s - lag_s))
        if since_s >= 0 and tick % 5 == 0:
            made.trajectories.append(trajectory(time_s - 0.2, tick))
            made.arrivals_s.append(time_s)
    return made


def trajectory(stamp_s: float, tick: int) -> ParsedTrajectory:
    offsets = np.array([0.9, 1.2])
    wanted = HOME_RAD + np.zeros((2, 8))
    return ParsedTrajectory(JOINT_NAMES, wanted, None, None, offsets, stamp_s, "0" * 8, tick, 0.5)


def crossing_s(line: Any, value: float) -> float:
    times_s, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    return float(times_s[np.argmax(values > value)])


def test_the_video_starts_with_the_loop_and_ends_shortly_after_the_run(tmp_path: Path) -> None:
    film = Film(recording(), RESULT)
    count = pictures.write_video(film, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.frames == count
        assert float(stream.duration * stream.time_base) == pytest.approx(9.0, abs=0.1)
    assert film.times(10)[0] == 0.0


def test_a_video_keeps_real_time_though_pictures_came_unevenly() -> None:
    made = recording()
    made.views = [made.views[50], made.views[60], *made.views[61:]]  # none for a second
    times = Film(made, RESULT).times(15)
    np.testing.assert_allclose(np.diff(times), 1 / 15)


def test_captions_use_the_reports_clock() -> None:
    film = Film(recording(), RESULT)
    assert film.instruction_at(3.9) == "first"
    assert film.instruction_at(4.0) == "second"
    assert film.notes_at(3.9) == []
    assert film.notes_at(4.1) == ["done after 4.0 s: first", "a hand takes the red cube"]
    assert film.notes_at(8.1) == ["done after 8.0 s: second"]
    assert film.telling_times() == pytest.approx([0.0, 3.9, 9.0])


def test_the_hand_is_drawn_while_it_takes_the_cube() -> None:
    film = Film(recording(), RESULT)
    before, during = film.at(3.9)[:120], film.at(4.1)[:120]
    amber = np.abs(during.astype(int) - pictures.AMBER).sum(axis=2) < 60
    assert amber.sum() > 20
    assert (np.abs(before.astype(int) - pictures.AMBER).sum(axis=2) < 60).sum() == 0


def test_the_inset_shows_the_picture_behind_the_newest_trajectory() -> None:
    made = recording()
    film = Film(made, RESULT, rate_hz=2.0)
    found = film.policy_picture(1.3)
    assert found is not None
    frame, age_s = found
    assert frame is made.frames[58]  # of 0.8 s, behind the trajectory of 1.0 s
    assert age_s == pytest.approx(0.2)
    inset = film.at(1.3)[3:30, 115:155]
    np.testing.assert_allclose(inset[5:20, 5:30], np.broadcast_to([58, 0, 0], (15, 25, 3)), atol=2)
    assert film.policy_picture(-0.5) is None


def test_a_run_without_a_trajectory_is_still_shown(tmp_path: Path) -> None:
    made = recording()
    made.trajectories, made.arrivals_s = [], []
    film = Film(made, undone("first", 2.0))
    assert pictures.write_video(film, tmp_path / "video.mp4") == 46
    assert pictures.write_video(Film(Recording(), RESULT), tmp_path / "empty.mp4") == 0


def test_a_gif_holds_the_same_seconds_and_keeps_rare_colours(tmp_path: Path) -> None:
    from PIL import Image

    made = recording()
    made.views = [EncodedFrame(flat(90), "png", made.views[50].stamp_s, 0.0)] + [
        EncodedFrame(flat(90), "png", view.stamp_s, 0.0) for view in made.views[85:]
    ]
    made.hands = [Hand(LOOP_S + 0.5, "red", (0.2, 0.0, 0.1), (0.2, 0.0, 0.015))]
    result = undone("first", 0.5)
    pictures.write_gif(Film(made, result), tmp_path / "demo.gif")
    with Image.open(tmp_path / "demo.gif") as gif:
        assert gif.size[0] == pictures.GIF_WIDTH
        times_s = [0.0]
        for index in range(getattr(gif, "n_frames", 1)):
            gif.seek(index)
            times_s.append(times_s[-1] + gif.info["duration"] / 1000)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert times_s[-1] == pytest.approx(1.5 + 1 / pictures.GIF_HZ, abs=0.05)
    assert (np.abs(shown - pictures.AMBER).sum(axis=2) < 30).sum() > 20, "the hand"


def test_targets_are_plotted_when_the_controllers_had_them() -> None:
    figure = plots.joint_plot(recording(lag_s=0.3), 8.0)
    for axis in figure.axes:
        measured, target = axis.lines[:2]
        value = float(np.mean(axis.get_ylim()))
        assert crossing_s(measured, value) == pytest.approx(crossing_s(target, value) + 0.3)
        assert min(measured.get_xdata()) == pytest.approx(-plots.BEFORE_S, abs=0.01)
        assert axis.lines[2].get_xdata()[0] == pytest.approx(4.0)  # the new instruction


def test_tracking_error_is_the_lag_times_the_speed() -> None:
    made = recording(lag_s=0.3)
    error = report.tracking_error_rad(made)
    assert error is not None
    assert error["p50"] == pytest.approx(0.03, abs=1e-6)
    assert report.tracking_error_rad(Recording()) is None


def summarised(counts: list[int]) -> dict[str, Any]:
    bins = [[10.0 * 1.02**index, count] for index, count in enumerate(counts)]
    return {"latency_ms": {"count": sum(counts), "histogram": bins}}


def test_few_samples_are_dots_with_their_median() -> None:
    (axis,) = plots.latency_plot(summarised([4, 6, 4])).axes
    dots, median = axis.lines
    assert len(dots.get_xdata()) == 14
    assert dots.get_linestyle() == "None"
    assert median.get_xdata()[0] == pytest.approx(10.2)
    assert [text.get_text() for text in axis.texts] == ["median 10.2 ms"]
    assert not axis.patches


def test_many_samples_are_a_histogram() -> None:
    (axis,) = plots.latency_plot(summarised([300, 500])).axes
    assert axis.patches
    assert plots.latency_plot({}).axes


def test_times_in_the_recording_are_on_the_robots_clock() -> None:
    """One clock for pictures, joints and commands, however the recorder's own clock runs."""
    now_s = 7.0
    recorder = RunRecorder(1, Settings(), clock=lambda: now_s)
    for _ in range(20):
        now_s += 0.05
        state = messages.joint_state_to_ros(JOINT_NAMES, HOME_RAD, HOME_RAD * 0, now_s + 500)
        recorder._on_joints(state)
    path = Trajectory(
        HOME_RAD + np.zeros((2, 8)), np.zeros((2, 8)), np.array([0.1, 0.2]), 507.9, 1, "0" * 8, 0.5
    )
    recorder._on_trajectory(messages.to_ros(path))
    assert recorder.started_s == now_s
    assert recorder.recording.start_s == pytest.approx(508.0, abs=0.01)
    now_s += 2.0
    recorder.note_instruction("next")
    recorder.client.close()
    assert recorder.recording.instructions[0][0] == pytest.approx(510.0, abs=0.01)


def test_the_summary_tells_tasks_times_rate_and_its_reason(tmp_path: Path) -> None:
    (tmp_path / "demo.mp4").write_text("")
    figures = {
        "rate_hz": 1.62, "asked_rate_hz": 1.6, "rate_reason": "the policy's own rate",
        "latency_without_policy_ms": {"p50": 8.0, "p99": 60.0},
    }  # fmt: skip
    lines = summary.text(RESULT, figures, tmp_path).splitlines()
    assert lines[1].split() == ["first", "done", "4.0"]
    assert lines[2].split() == ["second", "done", "8.0"]
    said = "\n".join(lines)
    assert "1.62 Hz reached, 1.6 Hz set (the policy's own rate)" in said
    assert "took the red cube" in said
    assert f"{tmp_path}/" in said
    assert "demo.mp4" in said
    assert "demo --seed 1" in said


def test_the_summary_says_what_limits_a_rate_that_is_not_reached() -> None:
    slow = {"rate_hz": 7.0, "asked_rate_hz": 10.0, "rate_limit": "camera"}
    assert summary.rate(slow) == "7.00 Hz reached, 10 Hz set; limited by the camera"
    assert "limited" not in summary.rate(slow | {"rate_hz": 9.99})


def test_the_summary_of_a_failure_points_at_the_loops_log(tmp_path: Path) -> None:
    failed = undone("赤いキューブを持ち上げて", 9.0)
    said = summary.text(failed, {}, tmp_path)
    assert "not done" in said
    assert str(tmp_path / "loop.log") in said
