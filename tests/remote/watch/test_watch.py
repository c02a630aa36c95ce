"""`crane-x7-remote watch` against a real robot, guard and loop, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from guard_rig import RunningGuard
from loop_rig import FaultyRobot, RunningLoop, inject
from rich.console import Console

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC
from crane_x7_remote.watch import guard_report, lines
from crane_x7_remote.watch.heard import View, Watcher
from crane_x7_remote.watch.screen import screen as drawn
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES

CAMERA = "/camera/color/image_raw/compressed"

EVIL = "\x1b]0;owned\x07\x1b[2Jpick\u202e up"
STATUS = LoopStatus("0a1b2c3d", "wave", "accepted", None, 9.9, 45.0, None, 12, False)


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


def command(port: int, *flags: str) -> list[str]:
    at = ["--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port)]
    return [sys.executable, "-m", "crane_x7_remote", "watch", *at, *flags]


class Screen:
    """`watch` on a pseudo-terminal of 100×40."""

    def __init__(self, port: int, *flags: str) -> None:
        self._ours, theirs = os.openpty()
        size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command(port, *flags), stdin=theirs, stdout=theirs, stderr=theirs,
            env=os.environ | size, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def read_until(self, part: bytes, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while part not in self.shown:
            assert time.monotonic() < deadline_s, self.shown[-3000:]
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._ours, 1 << 16)
                except OSError:  # the process has ended
                    assert part in self.shown, self.shown[-3000:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)


@contextmanager
def screen(port: int, *flags: str) -> Iterator[Screen]:
    shown = Screen(port, *flags)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def plain(port: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(port, *flags), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def line_with(process: subprocess.Popen[str], *parts: str) -> str:
    """The next line with all the parts; pytest's timeout ends the wait."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if all(part in line for part in parts):
            return line
    raise AssertionError(f"no line with {parts} in {seen}")


def test_a_line_names_loop_task_guard_and_a_stop(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard, RunningLoop(guard.port, instruction="wave") as loop:
        loop.wait_driving()
        with plain(guard.port) as process:
            line = line_with(process, "drives", "guard passes", "Hz")
            assert f"loop {loop.session} drives, task: wave" in line
            assert "latency" in line
            with guard.connect("/stop") as client:
                client.publish("/vla/stop", {"data": True}, reason="a\x1b[2Jhand")
            line = line_with(process, "guard stopped")
            assert "hand" in line
            assert "\x1b" not in line
            line_with(process, f"loop {loop.session} holds: stopped")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_the_screen_shows_everything_and_ctrl_c_restores_the_terminal(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard, RunningLoop(guard.port, instruction="wave") as loop:
        loop.wait_driving()
        with screen(guard.port, "--camera", "rate") as shown:
            for part in (b"drives", b"wave", b"guard passes", b"wrist_joint", b"camera"):
                shown.read_until(part)
            shown.process.send_signal(signal.SIGINT)
            assert shown.process.wait(10) == 0
            shown.read_until(b"\x1b[?1049l")  # the screen from before is back
            assert shown.shown.rindex(b"\x1b[?25h") > shown.shown.rindex(b"\x1b[?25l")
            assert b"Traceback" not in shown.shown


def test_control_characters_from_the_robot_never_reach_the_terminal(robot: FaultyRobot) -> None:
    evil = json.loads(STATUS.message()["data"]) | {"task": EVIL, "hold": EVIL}
    with screen(robot.port) as shown:
        shown.read_until(b"none connected")
        inject(robot.port, STATUS_TOPIC, messages.string(json.dumps(evil)))
        shown.read_until(b"owned")
        assert b"\x1b]0;" not in shown.shown
        assert b"\x1b[2Jpick" not in shown.shown
        assert "\u202e".encode() not in shown.shown
        assert b"\\x1b]0;owned\\x07" in shown.shown


def test_a_lost_link_is_said_and_found_again(robot: FaultyRobot) -> None:
    port = robot.port
    with plain(port) as process:
        line_with(process, "no loop", "no guard")
        robot.close()
        line_with(process, "link down")
        with FaultyRobot(port):
            line_with(process, "no loop")


def test_once_says_with_its_exit_code_that_no_loop_is_there(robot: FaultyRobot) -> None:
    done = subprocess.run(
        command(robot.port, "--once"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.NO_LOOP
    assert done.stdout.startswith("no loop · no guard")
    with RunningLoop(robot.port) as loop:
        loop.wait_driving()
        done = subprocess.run(
            command(robot.port, "--once"), capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"loop {loop.session} " in done.stdout


def test_a_robot_that_does_not_answer_has_its_exit_code() -> None:
    done = subprocess.run(command(1), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.PEER_UNREACHABLE
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


# --- what is heard --------------------------------------------------------------------------------


def watcher(now_s: list[float], camera: str = "age") -> Watcher:
    return Watcher(ClientConfig("127.0.0.1", 1), camera, clock=lambda: now_s[0])  # type: ignore[arg-type]


def view_of(watched: Watcher) -> View:
    try:
        return watched.view()
    finally:
        watched.close()


def test_a_silent_loop_is_forgotten() -> None:
    now_s = [100.0]
    watched = watcher(now_s)
    watched._hear_status(STATUS.message())
    now_s[0] += 4.9
    assert [each.status for each in watched.view().loops] == [STATUS]
    now_s[0] += 0.2
    assert view_of(watched).loops == ()


def test_a_depth_camera_is_named_as_the_problem() -> None:
    watched = watcher([100.0])
    image = messages.compressed_image(b"\xff\xd8\xff", 1.0, 2) | {
        "format": "16UC1; compressedDepth"
    }
    with pytest.raises(MessageError):
        watched._hear_frame(CAMERA, image)
    (camera,) = view_of(watched).cameras
    assert camera.problem is not None
    assert "16UC1" in camera.problem


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now_s = [100.0]
    watched = watcher(now_s, "rate")
    for _ in range(40):
        now_s[0] += 0.1
        watched._hear_frame(CAMERA, messages.compressed_image(b"\xff\xd8\xff", now_s[0], 2))
    assert watched.view().cameras[0].rate_hz == pytest.approx(10.0, rel=0.02)
    now_s[0] += 10
    assert view_of(watched).cameras[0].rate_hz == 0.0


def test_the_wrist_camera_has_its_own_rate_age_and_problem() -> None:
    now_s = [100.0]
    config = ClientConfig("127.0.0.1", 1, wrist_camera_topic="/wrist")
    watched = Watcher(config, "rate", clock=lambda: now_s[0])
    for k in range(40):
        now_s[0] += 0.1
        image = messages.compressed_image(b"\xff\xd8\xff", now_s[0], 2)
        watched._hear_frame(CAMERA, image)
        if k % 2 == 0 and k < 30:
            watched._hear_frame("/wrist", image)
    view = view_of(watched)
    assert [each.name for each in view.cameras] == ["camera", "wrist camera"]
    assert [each.age_s for each in view.cameras] == pytest.approx([0.0, 1.1])
    assert view.cameras[0].rate_hz == pytest.approx(10, rel=0.02)
    assert view.cameras[1].rate_hz == pytest.approx(5, rel=0.02)
    assert "wrist camera 1.1 s old" in lines.line(replace(view, link_up=True))
    late = replace(view.cameras[1], age_s=4.0)
    assert "wrist camera silent" in lines.state(replace(view, link_up=True, cameras=(late,)))
    console = Console(file=io.StringIO(), width=100)
    console.print(drawn(view))
    assert isinstance(console.file, io.StringIO)
    assert "wrist camera 5.0 Hz  1.1 s ago" in console.file.getvalue()


def test_joints_are_shown_in_their_order() -> None:
    watched = watcher([100.0])
    watched._hear_joints(
        messages.joint_state_to_ros(JOINT_NAMES[::-1], HOME_RAD[::-1], np.zeros(8), 1.0)
    )
    joints = view_of(watched).joints_rad
    assert joints is not None
    assert np.array_equal(joints, HOME_RAD)


@pytest.mark.parametrize("data", ["", "[]", "{}", "x" * 30_000, "[" * 10_000, None])
def test_what_is_no_guard_state_is_refused(data: str | None) -> None:
    with pytest.raises(MessageError):
        guard_report.read({"data": data})


def test_a_foreign_guard_state_is_read_without_trust() -> None:
    state = {"stopped": EVIL, "driver": "me", "passed": -1, "refused": {"\x1b": 3, "jump": "x"}}
    report = guard_report.read({"data": json.dumps(state)})
    assert report.stopped is not None
    assert report.stopped.isprintable()
    assert (report.driver, report.passed, report.refused) == (None, 0, (("\\x1b", 3),))
    assert not report.guards_us


def test_a_refused_task_is_not_called_driving() -> None:
    refused = LoopStatus("0a1b2c3d", "dance", "refused", "unknown\n", None, None, None, 0, False)
    assert lines.what_it_does(refused) == "refuses its task: unknown\\n"
