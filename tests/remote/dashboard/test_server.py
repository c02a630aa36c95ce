"""The dashboard's server on a real socket: who gets in, what it survives, what the buttons do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import simplejpeg
from dashboard_rig import RunningDashboard, parse, receive, request, stream
from guard_rig import RunningGuard
from loop_rig import PICTURE, FaultyRobot, RunningLoop, wait_until
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crane_x7_remote.dashboard.board import Board, TickMark
from crane_x7_remote.dashboard.control import Control
from crane_x7_remote.dashboard.robot import Robot, RobotTopics
from crane_x7_remote.dashboard.run_folder import RunFollower
from crane_x7_remote.dashboard.viewer import MAX_VIEWERS
from crane_x7_remote.guard.core import CoreConfig, GuardCore
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.rosbridge.topics import RECORD_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.arm import still_picture

TOKEN = "a-token-of-22-letters-"
BEARER = f"Bearer {TOKEN}"
TOPICS = RobotTopics(
    Settings().camera_topic, Settings().joint_states_topic, Settings().instruction_topic,
    Settings().trajectory_topic,
)  # fmt: skip


def robot_of(board: Board, port: int, with_arm: bool = True) -> Robot:
    link = ClientConfig(
        "127.0.0.1", port, camera_topic=None, joint_states_topic=None, instruction_topic=None,
        advertise={TOPICS.instruction: STRING, RECORD_TOPIC: STRING},
    )  # fmt: skip
    return Robot(board, link, TOPICS, None, with_arm)


def control_of(robot: Robot, port: int) -> Control:
    return Control(robot, LinkConfig("127.0.0.1", port, path=STOP_PATH, open_timeout_s=2), None)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.put(loop={"session": "0a1b2c3d", "state": "driving"})
    board.put_picture(PICTURE)
    return board


@pytest.fixture
def page(board: Board) -> Iterator[RunningDashboard]:
    with RunningDashboard(board) as running:
        yield running


def test_a_viewer_gets_the_wrist_cameras_image_smaller_and_once(board: Board) -> None:
    board.put_wrist_picture(still_picture(640, 480))
    with RunningDashboard(board) as page, stream(page.port) as link:
        first, second = receive(link), receive(link)
    size = first.head["wrist_bytes"]
    assert 0 < size < len(first.image)
    base, wrist = first.image[:-size], first.image[-size:]
    assert simplejpeg.decode_jpeg(base).shape[0] <= 360
    assert simplejpeg.decode_jpeg(wrist).shape == (180, 240, 3)
    assert (second.head["wrist_bytes"], second.image) == (0, b"")
    board.put_wrist_picture(b"no image")
    with RunningDashboard(board) as page, stream(page.port) as link:
        assert receive(link).head["wrist_bytes"] == 0


# --- who gets in ---------------------------------------------------------------------------------


def test_the_page_has_everything_from_this_server_and_nothing_inline(
    page: RunningDashboard,
) -> None:
    for path in ("/", "/app.js", "/draw.js", "/style.css", "/icon.svg", "/login"):
        answer = page.get(path)
        assert answer.status == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["connection"] == "close", "no stop may meet a connection that died"
        assert "access-control-allow-origin" not in answer.headers
    html = page.get("/").body.decode()
    assert " style=" not in html
    assert " onclick" not in html
    assert "http://" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8686", "10.0.0.1", "", "[::1"])
def test_a_name_of_another_site_is_refused(page: RunningDashboard, host: str) -> None:
    """DNS rebinding: a page of evil.example that resolves to 127.0.0.1."""
    assert page.get("/", Host=host).status in (400, 403)
    assert page.post("/stop", {}, Host=host).status in (400, 403)


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:1", "localhost"])
def test_this_machines_names_are_admitted_with_any_port(page: RunningDashboard, host: str) -> None:
    """`ssh -L 9000:localhost:8686` changes the port."""
    assert page.get("/", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/stop", "/resume", "/instruction", "/record", "/login"])
def test_a_cross_site_request_changes_nothing(
    page: RunningDashboard, path: str, headers: dict[str, str]
) -> None:
    answer = page.post(path, {"text": "pick up the red cube", "word": "start"}, **headers)
    assert answer.status == 403
    assert "other web sites" in answer.json["text"]


def test_a_cross_site_web_socket_is_refused(page: RunningDashboard) -> None:
    with pytest.raises(InvalidStatus) as refused, stream(page.port, origin="http://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    with stream(page.port, origin=f"http://127.0.0.1:{page.port}") as link:
        assert receive(link).head["state"]["loop"]["session"] == "0a1b2c3d"


def test_without_the_token_nothing_is_shown(board: Board) -> None:
    with RunningDashboard(board, token=TOKEN) as page:
        assert page.get("/").status == 303
        assert page.get("/").headers["location"] == "/login"
        for path in ("/app.js", "/metrics", "/videos/x", "/nothing"):
            answer = page.get(path)
            assert answer.status == 401, path
            assert b"0a1b2c3d" not in answer.body
        assert page.post("/stop", {}).status == 401
        assert page.post("/stop", {}, Authorization="Bearer wrong").status == 401
        assert page.post("/stop", {}, Authorization=f"Basic {TOKEN}").status == 401
        assert page.post("/stop", {}, Cookie=f"crane_x7_dashboard={TOKEN}").status == 401
        assert page.post("/stop", {}, Cookie="a=b; crane_x7_dashboard=\xff").status == 401
        with pytest.raises(InvalidStatus), stream(page.port):
            pass


def test_the_token_opens_the_page_from_any_name(board: Board) -> None:
    with RunningDashboard(board, token=TOKEN) as page:
        host = "gpu-machine.example:8686"
        assert page.get("/metrics", Authorization=BEARER, Host=host).status == 200
        with stream(page.port, additional_headers={"Authorization": BEARER}) as link:
            assert receive(link).head["state"]["loop"]["session"] == "0a1b2c3d"


def test_a_login_gives_a_cookie_that_is_not_the_token(board: Board) -> None:
    with RunningDashboard(board, token=TOKEN) as page:
        kind = {"Content_Type": "application/x-www-form-urlencoded"}
        wrong = request(page.port, "POST", "/login", b"token=nonsense", **kind)
        assert (wrong.status, wrong.headers["location"]) == (303, "/login?wrong")
        assert "set-cookie" not in wrong.headers
        right = request(page.port, "POST", "/login", f"token={TOKEN}".encode(), **kind)
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie
        given = cookie.partition(";")[0]
        assert page.get("/", Cookie=given).status == 200
        with stream(page.port, additional_headers={"Cookie": given}) as link:
            assert receive(link).image


# --- what it survives ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/videos/../../../etc/passwd", "/videos/..%2f..%2fetc%2fpasswd",
        "/videos/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page/index.html",
        "/app.js/../board.py",
        "/videos/" + "a" * 3000, "/%00", "/app.js%00.css", "/style.css/", "/videos//etc/passwd",
    ],
)  # fmt: skip
def test_path_tricks_lead_nowhere(page: RunningDashboard, path: str) -> None:
    answer = page.get(path)
    assert answer.status in (404, 307)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_a_large_body_is_refused_before_it_is_read(page: RunningDashboard) -> None:
    """10 MB: the answer comes after a few kilobytes, and the rest takes no memory."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as link:
        head = f"POST /instruction HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**7}\r\n\r\n"
        link.sendall(head.encode() + b"x" * 100_000)
        assert b" 413 " in link.recv(4096).splitlines()[0]
    assert page.get("/").status == 200


def test_a_body_without_length_is_limited_too(page: RunningDashboard) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as link:
        link.sendall(
            b"POST /stop HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        link.sendall(chunk * 3)
        assert b" 413 " in link.recv(4096).splitlines()[0]


@pytest.mark.parametrize("body", [b"[" * 4000, b"[]", b"\xff\xfe", b"{", b'"text"', b"NaN"])
def test_a_body_that_is_no_object_is_refused(board: Board, body: bytes) -> None:
    with FaultyRobot() as arm, robot_of(board, arm.port) as robot:
        control = control_of(robot, arm.port)
        with RunningDashboard(board, control) as page:
            answer = request(page.port, "POST", "/instruction", body)
            assert answer.status == 400
            assert "JSON" in answer.json["text"]


def test_two_viewers_see_the_same(page: RunningDashboard, board: Board) -> None:
    with stream(page.port) as one, stream(page.port) as other:
        for link in (one, other):
            message = receive(link)
            assert message.head["state"]["loop"]["state"] == "driving"
            assert simplejpeg.decode_jpeg_header(message.image)[1] == 160
        board.put(loop={"session": "0a1b2c3d", "state": "hold"})
        for link in (one, other):
            assert receive(link).head["state"]["loop"]["state"] == "hold"


def test_ticks_of_the_chart_come_once(page: RunningDashboard, board: Board) -> None:
    for number in range(1, 6):
        board.mark(TickMark(number, 20.0, None))
    with stream(page.port) as link:
        assert [tick[0] for tick in receive(link).head["ticks"]] == [1, 2, 3, 4, 5]
        board.mark(TickMark(6, None, "joints stale"))
        board.put(loop={})
        assert receive(link).head["ticks"] == [[6, None, "joints stale"]]


def test_a_viewer_that_confirms_nothing_gets_one_message_and_delays_nobody(
    page: RunningDashboard, board: Board
) -> None:
    with stream(page.port) as stalled, stream(page.port) as live:
        parse(stalled.recv(timeout=5))
        for index in range(12):
            board.put_picture(PICTURE)
            board.put(loop={"index": index})
            message = receive(live, timeout_s=3)
        assert message.head["state"]["loop"]["index"] >= 5
        with pytest.raises(TimeoutError):
            stalled.recv(timeout=0.5)
        stalled.send("")
        assert parse(stalled.recv(timeout=5)).head["state"]["loop"]["index"] == 11, "newest only"


def test_a_viewer_on_a_dead_link_holds_one_message(page: RunningDashboard, board: Board) -> None:
    """It opens the stream and reads nothing at all: no byte after the handshake is taken."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=5) as dead:
        dead.sendall(
            b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        with stream(page.port) as live:
            for _ in range(5):
                board.put_picture(PICTURE)
                assert receive(live, timeout_s=5).image


def test_fifty_viewers_are_served_at_once(page: RunningDashboard, board: Board) -> None:
    async def watch() -> int:
        async with connect_async(f"ws://127.0.0.1:{page.port}/stream", compression=None) as link:
            for _ in range(4):
                assert parse(await link.recv()).head["state"]
                await link.send("")
            return 1

    async def watch_all() -> int:
        return sum(await asyncio.wait_for(asyncio.gather(*(watch() for _ in range(50))), 60))

    ended = threading.Event()

    def change() -> None:
        while not ended.wait(0.05):
            board.put_picture(PICTURE)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        assert asyncio.run(watch_all()) == 50
    finally:
        ended.set()
        changing.join()
    assert page.get("/").status == 200


def test_one_viewer_too_many_is_told(page: RunningDashboard) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_VIEWERS):
            receive(stack.enter_context(stream(page.port)))
        late = stack.enter_context(stream(page.port))
        with pytest.raises(ConnectionClosed) as closed:
            late.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


def test_a_viewer_that_leaves_in_the_middle_leaves_nothing(page: RunningDashboard) -> None:
    for _ in range(20):
        with stream(page.port) as link:
            parse(link.recv(timeout=5))
            link.close_socket()
    wait_until(lambda: b"viewers 0.0" in page.get("/metrics").body, 10, "no viewer is counted")


def test_the_newest_video_is_served_in_parts(tmp_path: Path) -> None:
    """Players of videos request ranges."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "scene0-success.mp4").write_bytes(bytes(range(256)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "success": 0.5}\n')
    board = Board()
    with RunFollower(tmp_path, board) as run, RunningDashboard(board, run=run) as page:
        wait_until(lambda: board.training_version > 0, 5, "the folder was read")
        with stream(page.port) as link:
            message = receive(link)
        assert message.head["state"]["stop_means"] == "training"
        (video,) = message.head["training"]["videos"]
        answer = page.get(f"/videos/{video['name']}", Range="bytes=10-19")
        assert (answer.status, answer.body) == (206, bytes(range(10, 20)))
        assert answer.headers["content-type"] == "video/mp4"
        assert page.get("/videos/nothing").status == 404
        refused = page.post("/stop", {})
        assert (refused.status, refused.json["ok"]) == (409, False)


# --- the buttons, with a real robot, guard and loop ----------------------------------------------


def test_instruction_stop_and_resume_reach_the_loop_through_the_guard() -> None:
    board = Board()
    with (
        FaultyRobot() as arm,
        RunningGuard(arm.port, core=GuardCore(CoreConfig())) as guard,
        robot_of(board, guard.port) as robot,
        RunningDashboard(board, control_of(robot, guard.port)) as page,
        RunningLoop(guard.port) as loop,
    ):
        loop.wait_driving()
        wait_until(lambda: board.get("stop_means") == "guard", 10, "the guard is known")
        told = page.post("/instruction", {"text": "  pick up the\tblue cube "})
        assert (told.status, told.json["ok"]) == (200, True)
        assert told.json["text"] == "accepted: pick up the blue cube"
        assert loop.loop.metrics.instruction == "pick up the blue cube"
        stopped = page.post("/stop", {})
        assert (stopped.status, stopped.json["ok"]) == (200, True)
        assert stopped.json["text"].startswith("stopped")
        assert guard.state()["stopped"] is not None
        loop.wait_hold("stopped")
        with stream(page.port) as link:
            assert receive(link).head["state"]["guard"]["stopped"] is not None
        assert page.post("/stop", {}).json["ok"], "a second stop is confirmed as well"
        resumed = page.post("/resume", {})
        assert resumed.json["ok"]
        assert guard.state()["stopped"] is None
        loop.wait_driving()
        arm.assert_nothing_bad_arrived()


def test_a_robot_is_shown_without_a_loop_in_this_machine() -> None:
    board = Board()
    with (
        FaultyRobot() as arm,
        robot_of(board, arm.port) as robot,
        RunningDashboard(board, control_of(robot, arm.port)) as page,
        RunningLoop(arm.port) as loop,
    ):
        loop.wait_driving()
        wait_until(lambda: board.get("joints") and board.get("loop"), 10, "joints and loop")
        with stream(page.port) as link:
            message = receive(link)
        state = message.head["state"]
        assert message.image
        assert state["loop"]["session"] == loop.session
        assert len(state["joints"]) == 8
        assert state["path"]["gripper"] is not None, "this robot publishes its camera's pose"
        assert state["link"]["connected"]


def test_without_a_guard_a_stop_never_pretends() -> None:
    board = Board()
    with (
        FaultyRobot() as arm,
        robot_of(board, arm.port) as robot,
        RunningDashboard(board, control_of(robot, arm.port)) as page,
    ):
        wait_until(lambda: board.get("stop_means") == "nothing", 10, "no guard is known")
        answer = page.post("/stop", {})
    assert (answer.status, answer.json["ok"]) == (502, False)
    assert answer.json["text"] == "no guard: nothing was stopped. Use the emergency stop"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\x1b[2J\x1b[31mpick up", "control character U+001B"),
        ("pick\x00up", "control character"),
        ("pick \u202eup", "control character U+202E"),
        ("x" * 1025, "expected at most 1024"),
        ("  ", "empty"),
        (7, "expected text"),
        (None, "expected text"),
        ({"a": 1}, "expected text"),
    ],
)
def test_an_instruction_that_is_no_task_is_refused_here(
    board: Board, text: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with robot_of(board, 1) as robot, RunningDashboard(board, control_of(robot, 1)) as page:
        answer = page.post("/instruction", {"text": text})
    assert (answer.status, answer.json["ok"]) == (400, False)
    assert words in answer.json["text"]
    assert "\x1b" not in caplog.text


def test_an_instruction_without_text_or_robot_is_refused(board: Board) -> None:
    with robot_of(board, 1) as robot, RunningDashboard(board, control_of(robot, 1)) as page:
        assert "has no text" in page.post("/instruction", {}).json["text"]
        gone = page.post("/instruction", {"text": "pick up the red cube"})
        assert gone.status == 503
        assert "not connected to the robot" in gone.json["text"]


def test_the_recorders_buttons_need_a_recorder() -> None:
    board = Board()
    with (
        FaultyRobot() as arm,
        RunningGuard(arm.port, core=GuardCore(CoreConfig())) as guard,
        robot_of(board, guard.port) as robot,
        RunningDashboard(board, control_of(robot, guard.port)) as page,
    ):
        assert page.post("/record", {"word": "begin"}).status == 400
        nobody = page.post("/record", {"word": "start"})
        assert (nobody.status, nobody.json["ok"]) == (409, False)
        status = {"recording": True, "episode": 3, "frames": 40, "seconds": 4.0, "kept": 2,
                  "folder": "outputs/x"}  # fmt: skip
        heard: list[str] = []
        with guard.connect() as recorder:
            recorder.subscribe(RECORD_TOPIC, STRING)
            recorder.publish("/vla/record_status", {"data": json.dumps(status)})
            wait_until(lambda: board.get("recording"), 5, "the recorder's state")
            assert page.post("/record", {"word": "discard"}).json["ok"]
            heard.append(recorder.next("publish", RECORD_TOPIC)["msg"]["data"])
        assert heard == ["discard"]
        assert board.get("recording")["kept"] == 2
        wait_until(lambda: board.get("recording") is None, 8, "a silent recorder is forgotten")


def test_a_stop_does_not_wait_for_instructions_that_wait() -> None:
    """Ten instructions without a loop wait 3 s each; the stop beside them takes milliseconds."""
    board = Board()
    with (
        FaultyRobot() as arm,
        RunningGuard(arm.port, core=GuardCore(CoreConfig())) as guard,
        robot_of(board, guard.port) as robot,
        RunningDashboard(board, control_of(robot, guard.port)) as page,
    ):
        wait_until(lambda: board.get("stop_means") == "guard", 10, "the guard is known")
        waiting = [
            threading.Thread(target=page.post, args=("/instruction", {"text": f"task {index}"}))
            for index in range(6)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.3)
        started_s = time.monotonic()
        assert page.post("/stop", {}).json["ok"]
        assert time.monotonic() - started_s < 1.5
        for thread in waiting:
            thread.join()
