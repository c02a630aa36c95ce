"""The dashboard's parts without a server: board, images, path, sections, metrics, run folder."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from loop_rig import PICTURE

from crane_x7_remote.dashboard import gripper_path, machine, pictures, prometheus, sections
from crane_x7_remote.dashboard.board import TICKS_KEPT, Board, TickMark
from crane_x7_remote.dashboard.loop_feed import MOST_S, FeedReader
from crane_x7_remote.dashboard.pictures import LEVELS
from crane_x7_remote.dashboard.run_folder import POINTS, RunFollower, name_of, thinned
from crane_x7_remote.dashboard.viewer import FAST_TIMES, Link
from crane_x7_remote.inference import feed
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl import kinematics, robot
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose, CameraPoseError


def test_the_board_keeps_only_the_newest_and_tells_ages() -> None:
    now_s = 100.0
    board = Board(lambda: now_s)
    board.put(loop={"state": "driving"})
    version = board.version
    now_s = 102.5
    board.put(loop={"state": "hold"}, guard=None)
    assert board.version > version
    state = json.loads(board.state_text())
    assert state["loop"] == {"state": "hold"}
    assert state["ages_s"]["loop"] == 0
    now_s = 104.0
    assert json.loads(board.state_text())["ages_s"]["loop"] == 1.5
    assert board.age_s("loop") == 1.5
    assert board.age_s("nothing") is None


def test_the_boards_text_is_strict_json_whatever_was_measured() -> None:
    board = Board()
    board.put(x=[math.nan, math.inf, -math.inf, 1.5], y={"z": float("nan")})
    assert json.loads(board.state_text())["x"] == [None, None, None, 1.5]
    assert json.loads(board.state_text())["y"] == {"z": None}


def test_the_chart_holds_a_bounded_number_of_ticks() -> None:
    board = Board()
    for number in range(1, 3 * TICKS_KEPT):
        board.mark(TickMark(number, 10.0, None))
    assert len(board.ticks_after(0)) == TICKS_KEPT
    assert board.ticks_after(3 * TICKS_KEPT - 3) == [
        (3 * TICKS_KEPT - 2, 10.0, None),
        (3 * TICKS_KEPT - 1, 10.0, None),
    ]


def test_an_unchanged_training_is_not_sent_again() -> None:
    board = Board()
    board.put_training({"step": 1})
    version = board.training_version
    board.put_training({"step": 1})
    assert board.training_version == version
    board.put_training({"step": 2})
    assert board.training_version == version + 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(1280, 960), (640, 480), (160, 120), (481, 271)])
def test_images_become_small_jpegs(level: pictures.Level, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    for content in (simplejpeg.encode_jpeg(image), cv2.imencode(".png", image)[1].tobytes()):
        small = pictures.shrink(content, level)
        height, width, _, _ = simplejpeg.decode_jpeg_header(small)
        assert width == min(size[0], level.width)
        assert height / width == pytest.approx(size[1] / size[0], abs=1.5 / width)


def test_a_camera_image_fits_a_link_of_two_megabits_per_second() -> None:
    """A photograph-like image: gradients, edges and noise. Level 1 is where a viewer starts."""
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (1280, 960))
    image = cv2.add(image, rng.integers(0, 12, image.shape, np.uint8))
    level = LEVELS[1]
    bits_s = len(pictures.shrink(simplejpeg.encode_jpeg(image), level)) * 8 / level.period_s
    assert bits_s < 1.6e6


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(MessageError):
        pictures.shrink(content, LEVELS[0])


def test_a_header_that_claims_a_huge_image_is_refused() -> None:
    png = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(MessageError):
        pictures.size(bytes(png))


def test_a_slow_link_gets_smaller_images_and_a_fast_one_larger_again() -> None:
    link = Link()
    begun = link.level
    for _ in range(10):
        link.confirmed(1.2)
    assert link.level == len(LEVELS) - 1
    for _ in range(FAST_TIMES * len(LEVELS)):
        link.confirmed(0.02)
    assert link.level == 0
    assert begun == 1
    for _ in range(3 * FAST_TIMES):
        link.confirmed(0.2)
    assert link.level == 0, "neither slow nor fast: nothing changes"


def test_the_gripper_is_drawn_where_the_camera_sees_it() -> None:
    (drawn,) = gripper_path.in_image([robot.HOME_RAD], SIM_POSE, (640, 480))
    tool_m = kinematics.tool_frame(robot.HOME_RAD)[:3, 3]
    u, v = SIM_POSE.camera(640, 480).project(tool_m, 640, 480)
    assert drawn == pytest.approx([u / 640, v / 480], abs=1e-4)
    assert 0 < drawn[0] < 1
    assert 0 < drawn[1] < 1


def test_only_the_path_ahead_is_drawn() -> None:
    times_s = np.linspace(0.1, 1.0, 10)
    path = np.tile(robot.HOME_RAD, (10, 1))
    path[:, 0] = times_s
    left = gripper_path.ahead(times_s, path, since_start_s=0.55)
    assert left is not None
    assert left.shape == (gripper_path.POINTS, 8)
    assert left[0, 0] == pytest.approx(0.55)
    assert left[-1, 0] == pytest.approx(1.0)
    assert gripper_path.ahead(times_s, path, since_start_s=1.0) is None
    early = gripper_path.ahead(times_s, path, since_start_s=-3.0)
    assert early is not None
    assert early[0, 0] == pytest.approx(0.1)


def test_a_pose_of_another_aspect_ratio_is_refused() -> None:
    pose = CameraPose((0.8, 0.2, 0.6), (0.1, 0, 0), vertical_fov_rad=0.8, size_px=(640, 480))
    with pytest.raises(CameraPoseError, match="another aspect ratio"):
        gripper_path.in_image([robot.HOME_RAD], pose, (640, 360))


def test_joints_are_shown_in_degrees_and_unknown_ones_as_none() -> None:
    measured = [*np.radians([10, 20, 30, -40, 50, -60, 70]), math.nan]
    rows = sections.joints(measured, None)
    assert [row["measured_deg"] for row in rows] == [10, 20, 30, -40, 50, -60, 70, None]
    assert {row["target_deg"] for row in rows} == {None}
    assert [row["name"] for row in rows][0::7] == ["pan", "gripper"]
    assert all(row["lower_deg"] < row["upper_deg"] for row in rows)


def loop_metrics() -> dict[str, Any]:
    metrics = LoopMetrics("0a1b2c3d", 10.0)
    for index in range(100):
        metrics.tick(index / 10)
        metrics.policy.add(0.030 if index < 90 else 0.3)
        metrics.latency.add(0.045)
    metrics.holds["no_new_frame"] = 7
    metrics.holds["joints_stale"] = 2
    return metrics.snapshot()


def test_stages_and_holds_come_from_the_loops_metrics() -> None:
    metrics = loop_metrics()
    found = {stage["name"]: stage for stage in sections.stages(metrics)}
    assert found["policy"]["p50"] == pytest.approx(30, rel=0.03)
    assert found["policy"]["p99"] == pytest.approx(300, rel=0.03)
    assert "decode" not in found, "nothing was decoded"
    assert sections.holds(metrics) == [
        {"reason": "no new frame", "ticks": 7},
        {"reason": "joints stale", "ticks": 2},
    ]


def test_metrics_are_prometheus_text_in_base_units() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    board = Board()
    board.put(
        loop={"session": "0a1b2c3d", "policy": "color-servo", "state": "driving",
              "rate_hz": 9.8, "wanted_hz": 10.0},
        link={"connected": True, "rtt_ms": 12.0},
        joints=sections.joints(robot.HOME_RAD.tolist(), None),
        recording={"recording": True, "kept": 3},
    )  # fmt: skip
    board.metrics = loop_metrics()
    board.put_training({"step": 40, "curves": [{"title": "return", "last": 1.5}]})
    text = prometheus.text(board, viewers=2).decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("crane_x7_loop_rate_hertz",)] == 9.8
    assert samples[("crane_x7_loop_driving",)] == 1
    assert samples[("crane_x7_loop_ticks_total",)] == 100
    assert samples[("crane_x7_loop_holds_total", ("reason", "no_new_frame"))] == 7
    assert samples[("crane_x7_loop_policy_seconds_bucket", ("le", "0.05"))] == 90
    assert samples[("crane_x7_loop_policy_seconds_bucket", ("le", "+Inf"))] == 100
    assert samples[("crane_x7_loop_policy_seconds_sum",)] == pytest.approx(5.7)
    assert samples[("crane_x7_link_round_trip_seconds",)] == 0.012
    assert samples[("crane_x7_guard_present",)] == 0
    assert samples[("crane_x7_training_step",)] == 40
    assert samples[("crane_x7_dashboard_viewers",)] == 2
    name = ("joint", "elbow")
    assert samples[("crane_x7_joint_position_radians", name)] == pytest.approx(
        robot.HOME_RAD[3], abs=1e-3
    )


def test_metrics_without_any_source_are_still_valid() -> None:
    assert b"crane_x7_guard_present 0.0" in prometheus.text(Board(), 0)


def write_figures(folder: Path, steps: range, **more: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            figures = {"step": step, "success": None, "approx_kl": 0.01 * step, **more}
            file.write(json.dumps(figures) + "\n")


def training(board: Board) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(board.training_text())
    return found


def test_a_runs_curves_follow_its_file(tmp_path: Path) -> None:
    board = Board()
    follower = RunFollower(tmp_path, board)
    follower.look()
    assert training(board)["step"] is None
    write_figures(tmp_path, range(1, 11), clip_fraction=0.2)
    follower.look()
    curves = {curve["title"]: curve for curve in training(board)["curves"]}
    assert training(board)["step"] == 10
    assert curves["KL to the acting policy"]["last"] == pytest.approx(0.1)
    assert curves["ratios clipped"]["points"][0] == [1, 0.2]
    assert "success of this rollout" not in curves, "no episode ended: nothing to draw"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "approx')  # a line that is being written
    follower.look()
    assert training(board)["step"] == 10
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 2.5}\nnot json\n[1]\n')
    follower.look()
    assert training(board)["step"] == 4, "a resumed run writes its last updates again"
    assert [curve["title"] for curve in training(board)["curves"]] == ["loss"]


def test_a_long_run_is_thinned_out_and_ends_with_its_newest_figure() -> None:
    points = [(step, float(step)) for step in range(1, 10_001)]
    thin = thinned(points)
    assert len(thin) <= POINTS + 1
    assert thin[-1] == (10_000, 10_000.0)
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)


def test_the_newest_videos_are_listed_and_nothing_outside_the_folder(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret.mp4"
    (run / "evaluation" / "update_20" / "videos").mkdir(parents=True)
    secret.write_bytes(b"not yours")
    (run / "escape.mp4").symlink_to(secret)
    for index in range(9):
        path = run / "evaluation" / "update_20" / "videos" / f"scene{index}-success.mp4"
        path.write_bytes(bytes(index))
        os.utime(path, (1000 + index, 1000 + index))
    board = Board()
    follower = RunFollower(run, board)
    follower.look()
    videos = training(board)["videos"]
    assert len(videos) == 6
    assert videos[0]["title"] == "evaluation / update_20 / scene8-success"
    newest = follower.video(videos[0]["name"])
    assert newest is not None
    assert newest.name == "scene8-success.mp4"
    assert follower.video(name_of(run, run / "escape.mp4")) is None
    assert follower.video("../../secret.mp4") is None


def test_memory_is_read_in_gib(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  8388608 kB\nMemAvailable:  2097152 kB\nHugePages_Total: 0\n")
    assert machine.memory(path) == {"memory_gib": [6.0, 8.0]}
    assert machine.memory(tmp_path / "none") == {}
    assert machine.memory()["memory_gib"][1] > 0.1


def test_a_graphics_card_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '42, 1024, 81920, 55'\n")
    program.chmod(0o755)
    assert machine.gpus(str(program)) == [
        {"use": 42, "used_gib": 1.0, "total_gib": 80.0, "celsius": 55}
    ]
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert machine.gpus(str(program)) == []


def a_tick(**more: Any) -> dict[str, Any]:
    """A tick of the feed, as feed.TickEncoder makes it."""
    home = robot.HOME_RAD.tolist()
    path = {"time_from_start_s": [0.1, 0.5], "position_rad": [home, home], "stamp_s": 50.0}
    return {
        "kind": "tick", "number": 1, "at_s": 10.0, "wall_s": 1.7e9, "robot_s": 50.2,
        "instruction": "pick up the red cube", "jpeg": PICTURE, "frame_stamp_s": 50.0,
        "frame_used": True, "position_rad": home, "velocity_rad_s": [0.0] * 8,
        "joints_stamp_s": 50.1, "target_rad": home, "path": path, "hold": None,
        "policy_s": 0.03, "sequence": 4,
    } | more  # fmt: skip


HELLO = {
    "kind": "hello", "session": "0a1b2c3d", "rate_hz": 10.0, "policy": "tiny", "dry_run": False,
    "instruction": "wait", "control": {"rosbridge_host": "robot", "rosbridge_port": 9091},
}  # fmt: skip


def fed(pose: CameraPose | None, *messages: dict[str, Any]) -> Board:
    """Return the board after these messages of a feed, which then ends."""
    board, ended = Board(), threading.Event()
    stream = io.BytesIO(b"".join(feed.pack(message) for message in messages))
    FeedReader(board, lambda: pose, ended.set).start(stream, HELLO)
    assert ended.wait(10)
    return board


def test_a_feed_fills_the_page() -> None:
    metrics = {**loop_metrics(), "link": {"connected": True, "rtt_s": 0.012, "reconnects": 0}}
    later = a_tick(number=2, at_s=10.1, jpeg=None)
    board = fed(SIM_POSE, a_tick(), later, {"kind": "second", "metrics": metrics}, {"kind": "bye"})
    assert board.get("loop")["instruction"] == "pick up the red cube"
    assert board.get("loop")["rate_hz"] == 10.0
    assert board.get("loop")["state"] == "ended"
    assert board.get("link")["rtt_ms"] == 12.0
    assert board.get("link")["address"] == "robot:9091"
    assert len(board.get("path")["points"]) == gripper_path.POINTS
    assert board.picture is not None
    assert board.picture.content == PICTURE
    assert board.ticks_after(0) == [(1, 30.0, None), (2, 30.0, None)]


def test_an_image_is_as_old_as_its_cameras_stamp_and_the_time_since() -> None:
    board, ended = Board(lambda: 10.5), threading.Event()
    stream = io.BytesIO(feed.pack(a_tick()))  # at 10.0 the frame was 0.2 s old
    FeedReader(board, lambda: None, ended.set, clock=lambda: 10.3).start(stream, HELLO)
    assert ended.wait(10)
    assert board.picture is not None
    assert board.picture.at_s == pytest.approx(10.5 - 0.3 - 0.2)
    assert json.loads(board.state_text())["ages_s"]["camera"] == pytest.approx(0.5)


@pytest.mark.parametrize("stamp", [None, 51.0, -1e9])
def test_a_wrong_clock_makes_no_impossible_age(stamp: float | None) -> None:
    board, ended = Board(lambda: 100.0), threading.Event()
    stream = io.BytesIO(feed.pack(a_tick(frame_stamp_s=stamp)))
    FeedReader(board, lambda: None, ended.set, clock=lambda: 9.0).start(stream, HELLO)
    assert ended.wait(10)
    assert board.picture is not None
    assert 0 <= 100.0 - board.picture.at_s <= MOST_S


def test_a_path_is_not_drawn_without_the_cameras_pose_and_that_is_said() -> None:
    board = fed(None, a_tick())
    assert board.get("path") == {
        "points": [],
        "gripper": None,
        "note": "path not drawn: the camera's pose is unknown (CAMERA_POSE)",
    }


def test_a_held_tick_shows_its_reason_and_the_path_that_still_runs() -> None:
    hold = {"reason": "joints_stale", "detail": "joint state is 0.6 s old"}
    board = fed(
        SIM_POSE, a_tick(), a_tick(number=2, at_s=10.1, path=None, hold=hold, policy_s=None)
    )
    assert board.get("loop")["hold"] is None, "the loop has ended"
    assert board.ticks_after(1) == [(2, None, "joints stale")]
    assert board.get("path")["points"], "the arm still follows what was sent"
    ended = fed(SIM_POSE, a_tick(), a_tick(number=2, at_s=11.0, robot_s=51.0, path=None, hold=hold))
    assert ended.get("path")["points"] == [], "that path has ended"


def test_the_wrist_cameras_image_is_kept_beside_the_other() -> None:
    board = fed(SIM_POSE, a_tick(wrist_jpeg=PICTURE, wrist_stamp_s=50.0),
                a_tick(number=2, at_s=10.1, wrist_jpeg=None, wrist_stamp_s=50.0))  # fmt: skip
    assert board.wrist_picture is not None
    assert (board.wrist_picture.number, board.wrist_picture.content) == (1, PICTURE)
    assert "wrist" in json.loads(board.state_text())["ages_s"]
    without = fed(SIM_POSE, a_tick())
    assert without.wrist_picture is None
    assert "wrist" not in json.loads(without.state_text())["ages_s"]


def test_a_damaged_image_is_left_out() -> None:
    board = fed(SIM_POSE, a_tick(jpeg=b"no image"))
    assert board.picture is None
    assert board.get("path")["points"] == []


def test_a_feed_that_breaks_off_ends_the_page() -> None:
    board, ended = Board(), threading.Event()
    stream = io.BytesIO(feed.pack(a_tick())[:-5])
    FeedReader(board, lambda: None, ended.set).start(stream, HELLO)
    assert ended.wait(10)
    assert board.get("loop")["state"] == "ended"
