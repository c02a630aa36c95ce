"""A dashboard over a slow link that is full of images, with sockets in place of browsers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dashboard_rig import RunningDashboard, post, receive, stream, viewers
from guard_rig import RunningGuard
from link_bench import Case, TimedCamera, spread, table
from loop_rig import FaultyRobot, wait_until
from slow_link import LinkShape, SlowLink

from crane_x7_remote.dashboard import pictures
from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.dashboard.control import Control
from crane_x7_remote.dashboard.robot import Robot, RobotTopics
from crane_x7_remote.guard.core import CoreConfig, GuardCore
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.settings import Settings

MOBILE = LinkShape(mbit_s=2.0, round_trip_s=0.08)


@contextmanager
def echo(shape: LinkShape) -> Iterator[tuple[SlowLink, socket.socket]]:
    """A link to a server that returns what it gets, and a connection through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(end: socket.socket) -> None:
            with end:
                while chunk := end.recv(65536):
                    end.sendall(chunk)

        def serve() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(end,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with SlowLink(listener.getsockname()[1], shape) as link:
            yield link, socket.create_connection(("127.0.0.1", link.port), 5)
            listener.shutdown(socket.SHUT_RDWR)


def round_trip_s(end: socket.socket, count: int) -> float:
    begun_s = time.monotonic()
    end.sendall(bytes(count))
    while count > 0:
        count -= len(end.recv(65536))
    return time.monotonic() - begun_s


def test_the_rigs_link_has_its_rate_and_delay() -> None:
    with echo(MOBILE) as (link, end), end:
        assert round_trip_s(end, 1) == pytest.approx(0.08, abs=0.04)
        # 50 kB take 0.2 s each way; the way back begins while the way there still lasts.
        assert 0.27 < round_trip_s(end, 50_000) < 0.5
        assert link.up.sent_bytes == link.down.sent_bytes == 50_001


def test_the_rigs_link_forgets_a_connection_without_a_word_and_takes_new_ones() -> None:
    with echo(LinkShape()) as (link, end), end:
        assert round_trip_s(end, 100) < 1.0
        link.lose_connections()
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            round_trip_s(end, 100)
        with socket.create_connection(("127.0.0.1", link.port), 5) as other:
            assert round_trip_s(other, 100) < 1.0


def test_a_stop_overtakes_the_images_on_a_full_link() -> None:
    """Four viewers fill 2 Mbit/s; the guard brakes within half a second of the button."""
    board, camera = Board(), TimedCamera()
    settings = Settings()
    topics = RobotTopics(
        settings.camera_topic, settings.joint_states_topic, settings.instruction_topic,
        settings.trajectory_topic,
    )  # fmt: skip
    with (
        FaultyRobot() as arm,
        RunningGuard(arm.port, core=GuardCore(CoreConfig())) as guard,
        Robot(board, ClientConfig("127.0.0.1", guard.port), topics, None, with_arm=False) as robot,
        RunningDashboard(
            board, Control(robot, LinkConfig("127.0.0.1", guard.port, path=STOP_PATH), None)
        ) as page,
        SlowLink(page.port, MOBILE) as link,
        viewers(link.port, 3),
        stream(link.port) as watching,
    ):
        wait_until(lambda: board.get("stop_means") == "guard", 10, "the guard is known")
        begun_s, before = time.monotonic(), link.down.sent_bytes
        lags_ms = []
        while time.monotonic() < begun_s + 3.0:
            board.put_picture(camera.jpeg())
            lags_ms.append(receive(watching).head["lag_ms"])
        used_mbit_s = (link.down.sent_bytes - before) * 8e-6 / (time.monotonic() - begun_s)
        assert used_mbit_s > 0.5
        assert lags_ms[0] is None
        assert min(lags_ms[1:]) >= 75, "a message and its confirmation take a round trip"
        pressed_s, braked_s = time.monotonic(), []
        stop = guard.core.stop

        def noted(why: str, now_s: float) -> object:
            braked_s.append(time.monotonic())
            return stop(why, now_s)

        guard.core.stop = noted
        assert post(link.port, "/stop", {}).json["ok"]
        assert braked_s[0] - pressed_s < 0.5
        assert guard.state()["stopped"] is not None


def test_the_time_in_an_image_is_read_back_at_every_size() -> None:
    camera = TimedCamera()
    content = camera.jpeg()
    for level in pictures.LEVELS:
        assert 0 <= camera.age_s(pictures.shrink(content, level)) < 1.0


def test_the_benchs_table_has_each_figure() -> None:
    times = spread([0.1, 0.2, 0.4])
    assert times == {"p50": 0.2, "max": 0.4}
    row = {
        "link": Case("2 Mbit/s", MOBILE, 1).name, "frames_hz": 5.0, "width_px": 480, "mbit_s": 0.6,
        "age_s": times, "instruction_s": times, "stop_s": times, "stop_answer_s": times,
    }  # fmt: skip
    said = table([row])
    assert "5.0/s  480 px" in said
    assert said.count("0.20 max 0.40 s") == 4
