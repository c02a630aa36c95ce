"""The rosbridge client against real sockets: servers that die, links that go dark, proxies."""

from __future__ import annotations

import http.server
import itertools
import json
import queue
import socket
import threading
import time
from typing import Any

import pytest
import roslibpy
from links import ConnectProxy, Proxy, RecordingServer, SocksProxy
from loop_rig import PICTURE, Tunnel, wait_until
from websockets.sync.server import ServerConnection

from crane_x7_remote.errors import LinkFailedError, PeerUnreachableError
from crane_x7_remote.rosbridge import connection, messages, protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.connection import pause_s
from crane_x7_remote.sim_robot.arm import KinematicArm
from crane_x7_remote.sim_robot.robot import RobotConfig, SimRobot
from crane_x7_remote.sim_robot.server import ServerConfig
from crane_x7_vla_rl.robot import JOINT_NAMES

CAMERA, JOINTS, ARM = "/camera/color/image_raw/compressed", "/joint_states", "/arm"
WRIST = "/wrist/image_raw/compressed"
STRING = "std_msgs/String"


def client(port: int, host: str = "127.0.0.1", **config: Any) -> RosbridgeClient:
    return RosbridgeClient(ClientConfig(host=host, port=port, advertise={ARM: STRING}, **config))


def wait_for(robot: RosbridgeClient, server: RecordingServer, connections: int = 1) -> None:
    """Wait until both ends know of the connection."""
    robot.wait_connected(10)
    wait_until(lambda: len(server.of("subscribe")) >= 3 * connections, 10, "subscriptions")


def frame(stamp_s: float, topic: str = CAMERA) -> bytes:
    message = messages.compressed_image(PICTURE, stamp_s)
    return protocol.encode_cbor(protocol.publish(topic, message))


def number(index: int) -> list[protocol.Operation]:
    return [protocol.publish(ARM, messages.string(str(index)))]


def numbers(server: RecordingServer) -> list[int]:
    return [int(operation["msg"]["data"]) for operation in server.of("publish", ARM)]


# --- subscriptions and reconnects ----------------------------------------------------------------


def test_a_new_connection_advertises_and_subscribes_to_the_robot() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        wait_until(lambda: len(server.of("subscribe")) == 3, 5, "three subscriptions")
        camera = server.of("subscribe", CAMERA)[0]
        assert (camera["compression"], camera["queue_length"]) == ("cbor", 1)
        assert camera["type"] == "sensor_msgs/CompressedImage"
        assert server.of("subscribe", JOINTS)[0]["compression"] == "none"
        assert server.of("advertise", ARM)[0]["type"] == STRING


def test_a_restarted_server_gets_every_subscription_again() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    with RecordingServer() as first:
        port = first.port
        robot = client(port)
        robot.start()
        robot.wait_connected(5)
        robot.subscribe("/extra", STRING, heard.put)
        wait_until(lambda: first.of("subscribe", "/extra"), 5, "the extra subscription")
    try:
        wait_until(lambda: not robot.link.connected, 5, "the loss is noticed")
        with RecordingServer(port) as second:
            wait_until(lambda: robot.link.connected, 10, "connected again")
            wait_until(lambda: len(second.of("subscribe")) == 4, 5, "four subscriptions")
            second.send(protocol.publish("/extra", {"data": "hello"}))
            assert heard.get(timeout=5) == {"data": "hello"}
            assert robot.link.reconnects == 1
    finally:
        robot.close()


def test_a_subscription_made_while_the_link_comes_up_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after the last of those that were known before, and also another one meanwhile."""
    heard: queue.Queue[Any] = queue.Queue()
    with RecordingServer() as server:
        robot = client(server.port)
        then = {"/vla/update_instruction": "/first", "/first": "/second"}

        async def open_and_subscribe(config: Any) -> Any:
            link = await connection.open_link(config)
            send = link.send

            async def send_and_subscribe(payload: str) -> None:
                await send(payload)
                topic = then.pop(json.loads(payload)["topic"], None)
                if topic is not None:
                    subscribing = threading.Thread(
                        target=robot.subscribe, args=(topic, STRING, heard.put)
                    )
                    subscribing.start()
                    subscribing.join()

            link.send = send_and_subscribe  # type: ignore[method-assign, assignment]
            return link

        monkeypatch.setattr("crane_x7_remote.rosbridge.client.open_link", open_and_subscribe)
        with robot:
            robot.wait_connected(10)
            assert not then
            for topic in ("/first", "/second"):
                wait_until(lambda topic=topic: server.of("subscribe", topic), 10, topic)  # type: ignore[misc]
                server.send(protocol.publish(topic, {"data": topic}))
                assert heard.get(timeout=10) == {"data": topic}
            robot.subscribe("/third", STRING, heard.put)
            wait_until(lambda: server.of("subscribe", "/third"), 10, "one on the new link")
            topics = [operation["topic"] for operation in server.of("subscribe")]
            assert len(topics) == len(set(topics)) == 6


def test_a_server_that_hangs_up_at_once_is_not_hammered() -> None:
    def hang_up(link: ServerConnection) -> None:
        link.close()

    with RecordingServer(greet=hang_up) as server, client(server.port):
        wait_until(lambda: len(server.connected_s) >= 5, 30, "five attempts")
        times = server.connected_s[:5]
    assert times[-1] - times[0] > 1.4, "the pauses did not grow"  # growing 1.5 s, else 0.4 s


def test_pauses_double_up_to_two_seconds_and_chance_takes_up_to_half() -> None:
    assert [pause_s(failures, 0.0) for failures in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert pause_s(10_000, 0.0) == 2.0
    assert [pause_s(3, chance) for chance in (0.5, 1.0)] == pytest.approx([0.6, 0.4])


def test_it_never_gives_up_and_its_pauses_stay_short() -> None:
    attempts: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with client(listener.getsockname()[1]):
            for _ in range(9):
                listener.accept()[0].close()
                attempts.append(time.monotonic())
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert max(pauses) < 6.0, pauses  # 2 s and a busy machine; uncapped the last is 12 s


# --- what is sent --------------------------------------------------------------------------------


def test_without_a_connection_bundles_are_dropped_and_counted_not_kept() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with client(port) as robot:
        assert [robot.publish(number(k)) for k in range(20)] == [False] * 20
        assert robot.link.dropped_publishes == 20
        with RecordingServer(port) as server:
            robot.wait_connected(10)
            assert robot.publish(number(99))
            wait_until(lambda: 99 in numbers(server), 5, "the new one arrives")
            assert numbers(server) == [99]


def test_a_dark_link_is_found_by_pings_and_delivers_nothing_old_when_it_is_back() -> None:
    with RecordingServer() as server, Tunnel(server.port) as tunnel, client(tunnel.port) as robot:
        wait_until(lambda: robot.link.rtt_s is not None, 10, "a first ping is answered")
        tunnel.go_dark()
        dark_s = time.monotonic()
        sent_dark = 0
        while robot.link.connected:
            assert time.monotonic() - dark_s < 10, "the dark link was not found"
            sent_dark += robot.publish([protocol.publish(ARM, messages.string("1" * 4000))])
            time.sleep(0.01)
        for _ in range(200):
            assert not robot.publish(number(2))
        dropped = robot.link.dropped_publishes
        assert dropped >= 200
        assert "the link is dead" in (robot.link.last_error or "")
        tunnel.come_back()
        wait_until(lambda: robot.link.connected, 15, "connected again")
        wait_until(lambda: robot.publish(number(7)), 5, "a new bundle leaves")
        wait_until(lambda: 7 in numbers(server), 5, "and arrives")
        # What had left before the link was known to be dark may still come; nothing dropped does.
        assert 2 not in numbers(server)
        assert len(numbers(server)) <= sent_dark + 1


def test_while_one_bundle_is_on_its_way_others_are_dropped_and_counted() -> None:
    blocked, release = threading.Event(), threading.Event()

    def block(_: object) -> None:  # the network thread itself, so that nothing can leave
        blocked.set()
        release.wait(20)

    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        robot.subscribe("/extra", STRING, block)
        server.send(protocol.publish("/extra", {"data": "x"}))
        assert blocked.wait(10)
        assert [robot.publish(number(k)) for k in range(5)] == [True] + [False] * 4
        release.set()
        wait_until(lambda: robot.publish(number(9)), 10, "the way is free again")
        wait_until(lambda: 9 in numbers(server), 10, "the last one arrives")
        assert numbers(server) == [0, 9]
        assert robot.link.dropped_publishes >= 4


def test_who_published_hears_that_the_network_thread_came_too_late() -> None:
    blocked, release = threading.Event(), threading.Event()

    def block(_: object) -> None:
        blocked.set()
        release.wait(20)

    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        told: list[int] = []
        assert robot.publish(number(1), None, lambda: told.append(1))
        wait_until(lambda: 1 in numbers(server), 10, "one that is sent")
        robot.subscribe("/extra", STRING, block)
        server.send(protocol.publish("/extra", {"data": "x"}))
        assert blocked.wait(10)
        assert robot.publish(number(2), time.monotonic(), lambda: told.append(2))
        assert not robot.publish(number(3), None, lambda: told.append(3))
        release.set()
        wait_until(lambda: robot.publish(number(4)), 10, "the way is free again")
        assert told == [2], "told before the next bundle was accepted"
        wait_until(lambda: 4 in numbers(server), 10, "the next one arrives")
        assert numbers(server) == [1, 4]


def test_bundles_arrive_in_order_and_none_is_lost_or_doubled() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        taken = [k for k in range(2000) if robot.publish(number(k))]
        wait_until(lambda: len(numbers(server)) == len(taken), 5, "all that were taken arrive")
        assert numbers(server) == taken
        assert robot.link.dropped_publishes == 2000 - len(taken)


def test_an_independent_client_reads_what_we_publish() -> None:
    config = RobotConfig(server=ServerConfig(port=0))
    with SimRobot(config, KinematicArm) as robot, client(robot.port) as ours:
        listener = roslibpy.Ros("127.0.0.1", robot.port)
        listener.run(5)
        heard: queue.Queue[Any] = queue.Queue()
        roslibpy.Topic(listener, ARM, STRING, reconnect_on_close=False).subscribe(heard.put)
        ours.wait_connected(5)
        deadline_s = time.monotonic() + 10
        while heard.empty() and time.monotonic() < deadline_s:
            ours.publish([protocol.publish(ARM, messages.string('say "青" \\'))])
            time.sleep(0.05)
        assert heard.get(timeout=1) == {"data": 'say "青" \\'}
        listener.close()


# --- what comes ----------------------------------------------------------------------------------


def test_only_the_newest_frame_is_kept() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        for k in range(50):
            server.send(frame(1000.0 + k))
        wait_until(
            lambda: (robot.latest_frame() or None) and robot.latest_frame().stamp_s == 1049.0,  # type: ignore[union-attr]
            5,
            "the newest frame",
        )
        newest = robot.latest_frame()
        assert robot.wait_frame(newest, 0.05) is None
        assert newest is not None
        assert newest.image_bytes == PICTURE


def test_a_repeated_frame_is_no_new_one() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        server.send(frame(1000.0))
        first = robot.wait_frame(None, 5)
        server.send(frame(1000.0))
        wait_until(lambda: robot.link.refused_messages, 5, "the second one is counted")
        assert robot.link.refused_messages == {"repeated frame": 1}
        assert robot.latest_frame() is first


def test_the_wrist_cameras_newest_frame_has_its_own_place_until_the_link_is_new() -> None:
    with (
        RecordingServer() as server,
        client(server.port, wrist_camera_topic=WRIST, max_message_bytes=100_000) as robot,
    ):
        robot.wait_connected(10)
        wait_until(lambda: server.of("subscribe", WRIST), 5, "the subscription")
        assert server.of("subscribe", WRIST)[0]["compression"] == "cbor"
        for stamp_s in (1000.0, 1001.0, 1001.0):
            server.send(frame(stamp_s, WRIST))
        server.send(frame(900.0))
        assert robot.wait_frame(None, 5) is not None
        newest = robot.wrist_frame()
        assert newest is not None
        assert (newest.stamp_s, newest.image_bytes) == (1001.0, PICTURE)
        assert robot.link.refused_messages == {"repeated frame": 1}
        assert robot.link.no_wrist_frame_because is None
        raw = {"encoding": "rgb8", "step": 3, "data": "AAAA"}
        server.send(protocol.publish(WRIST, raw))
        wait_until(lambda: robot.link.no_wrist_frame_because, 5, "the raw image is named")
        assert "WRIST_CAMERA_TOPIC" in (robot.link.no_wrist_frame_because or "")
        assert robot.link.no_frame_because is None
        server.send("x" * 200_000)  # ends the connection
        wait_until(lambda: robot.link.reconnects == 1, 10, "connected again")
        assert robot.wrist_frame() is None, "another robot may be there now"


def test_an_over_large_message_costs_the_connection_but_not_the_client() -> None:
    with RecordingServer() as server, client(server.port, max_message_bytes=100_000) as robot:
        wait_for(robot, server)
        server.send("x" * 200_000)
        wait_until(lambda: robot.link.reconnects == 1, 10, "connected again")
        wait_for(robot, server, connections=2)
        assert "100000" in (robot.link.last_error or "") or "too big" in (
            robot.link.last_error or ""
        )
        server.send(frame(1000.0))
        assert robot.wait_frame(None, 5) is not None


@pytest.mark.parametrize(
    "payload",
    [
        "no json",
        b"\xff\xff",
        "[1]",
        '{"op":"publish","topic":["a"],"msg":{}}',
        '{"op":"publish","topic":"/joint_states","msg":[]}',
        '{"op":"publish","topic":"/joint_states","msg":{"name":[],"position":[]}}',
        '{"op":"publish","topic":"/unasked","msg":{"data":"x"}}',
    ],
)
def test_what_cannot_be_used_is_counted_and_the_next_message_is_taken(payload: str) -> None:
    good = messages.joint_state_to_ros(JOINT_NAMES, [0.1] * 8, [0.0] * 8, 1000.0)
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        server.send(payload)
        server.send(protocol.publish(JOINTS, good))
        wait_until(lambda: robot.joints() is not None, 5, "the good joint state")
        assert sum(robot.link.refused_messages.values()) == 1
        assert robot.link.reconnects == 0


def test_results_of_actions_are_passed_on() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    refused = protocol.action_result("vla/1/2", "/gripper", "stopped", 0, result=False)
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        server.send(refused)
        server.send(frame(1000.0))
        assert robot.wait_frame(None, 10) is not None, "nobody listens, nothing breaks"
        robot.hear_results(heard.put)
        server.send(refused)
        assert heard.get(timeout=10) == refused
        assert robot.link.refused_messages == {}


def test_an_instruction_is_taken_once_and_the_newest_wins() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        for text in ("", "pick up the red cube", "pick up the blue cube", "\ufffd"):
            server.send(protocol.publish("/vla/update_instruction", messages.string(text)))
        server.send(frame(1.0))
        assert robot.wait_frame(None, 5) is not None
        assert robot.take_instruction() == "pick up the blue cube"
        assert robot.take_instruction() is None
        assert robot.link.refused_messages["instruction"] == 2


def test_late_frames_make_the_client_ask_for_fewer_of_both_cameras() -> None:
    with (
        RecordingServer() as server,
        client(server.port, wrist_camera_topic=WRIST) as robot,
    ):
        wait_for(robot, server)
        begin_s, age_s = time.monotonic(), 0.0
        while len(server.of("subscribe", CAMERA)) < 2:
            assert time.monotonic() - begin_s < 15, "no other throttle was requested"
            age_s = min(age_s + 0.02, 0.3)
            server.send(frame(5000.0 + time.monotonic() - age_s))
            time.sleep(1 / 60)
        first, second = server.of("subscribe", CAMERA)[:2]
        assert (first["throttle_rate"], second["throttle_rate"]) == (0, 50)
        assert first["id"] == second["id"]
        assert robot.link.throttle_rate_ms == 50
        wait_until(lambda: len(server.of("subscribe", WRIST)) == 2, 5, "the wrist camera's, too")
        assert server.of("subscribe", WRIST)[1]["throttle_rate"] == 50


def _send_frames(server: RecordingServer, seconds: float, ahead_s: float) -> None:
    end_s = time.monotonic() + seconds
    while (now_s := time.monotonic()) < end_s:
        server.send(frame(5000.0 + now_s + ahead_s))
        time.sleep(1 / 60)


def test_a_clock_that_is_set_back_while_running_needs_no_reconnect() -> None:
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        _send_frames(server, 1.0, 0.0)
        _send_frames(server, 1.0, -60.0)
        newest = robot.latest_frame()
        assert newest is not None
        assert robot.frame_age_s(newest, newest.arrival_s) < 0.5
        assert robot.clocks(time.monotonic()).steps == 1
        assert robot.link.reconnects == 0


def test_a_backlog_at_the_server_still_ends_with_a_reconnect() -> None:
    """Frames that come ever later, then late for good: their stamps never go back."""
    with RecordingServer() as server, client(server.port) as robot:
        wait_for(robot, server)
        begin_s, late_s = time.monotonic(), 0.0
        while robot.link.reconnects == 0:
            now_s = time.monotonic()
            assert now_s - begin_s < 30, "never connected again"
            late_s = min(max(0.0, 0.5 * (now_s - begin_s - 0.5)), 2.0)
            server.send(frame(5000.0 + now_s - late_s))
            time.sleep(1 / 60)
        assert "backlog" in (robot.link.last_error or "")


# --- proxies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scheme"), [(SocksProxy, "socks5h"), (ConnectProxy, "http")])
def test_a_proxy_resolves_the_name_that_only_it_knows(kind: type[Proxy], scheme: str) -> None:
    with RecordingServer() as server, kind() as proxy:
        address = f"{scheme}://127.0.0.1:{proxy.port}"
        with client(server.port, host="crane-x7-local", proxy=address) as robot:
            wait_for(robot, server)
            assert proxy.asked[0] == ("crane-x7-local", server.port)
            assert robot.publish(number(5))
            wait_until(lambda: numbers(server) == [5], 5, "a bundle through the proxy")
            server.send(frame(1000.0))
            assert robot.wait_frame(None, 5) is not None


@pytest.mark.parametrize(("kind", "scheme"), [(SocksProxy, "socks5h"), (ConnectProxy, "http")])
def test_a_proxy_that_cannot_connect_is_named(kind: type[Proxy], scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with kind() as proxy:
        address = f"{scheme}://127.0.0.1:{proxy.port}"
        text = cause(port, "crane-x7-local", proxy=address)
    assert address in text
    assert "ROSBRIDGE_PROXY" in text


# --- causes --------------------------------------------------------------------------------------


def cause(port: int, host: str = "127.0.0.1", **config: Any) -> str:
    with client(port, host, **config) as robot:
        wait_until(lambda: robot.link.last_error, 30, "the cause is known")
        with pytest.raises(PeerUnreachableError) as caught:
            robot.wait_connected(0.1)
    assert f"rosbridge at {host}:{port}: " in str(caught.value)
    return str(caught.value)


def test_an_unknown_host_says_to_check_the_name() -> None:
    assert "ROSBRIDGE_HOST" in cause(9090, "no-such-robot.invalid")


def test_a_refused_port_asks_whether_rosbridge_runs() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "rosbridge_server" in cause(port)


def test_a_port_that_stays_silent_says_to_check_the_firewall() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "no answer within 5 s" in cause(mute.getsockname()[1])


def test_whoever_waits_less_than_an_attempt_takes_is_told_what_to_check_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with client(port) as robot, pytest.raises(PeerUnreachableError) as caught:
            robot.wait_connected(0.3)
    for words in (f"127.0.0.1:{port}", "no answer within 0.3 s", "firewall"):
        assert words in str(caught.value)


def test_a_web_server_is_told_from_a_rosbridge() -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        text = cause(web.server_address[1])
        web.shutdown()
        thread.join(5)
    assert "not a WebSocket server" in text
    assert "ROSBRIDGE_PORT" in text


# --- a network thread that ends ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("a" * 300, {}),  # the resolver raises UnicodeError, no error of the network
        ("h", {"proxy": "socks5h://127.0.0.1:99999"}),
    ],
)
def test_whatever_ends_the_network_thread_is_handed_to_whoever_waits(
    host: str, more: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started_s = time.monotonic()
    with client(9, host, **more) as robot:
        with pytest.raises(LinkFailedError) as caught:
            robot.wait_connected(20)
        assert caught.value.__cause__ is not None
        assert robot.link.last_error
        assert not robot.link.connected
        for ask in (robot.take_instruction, lambda: robot.wait_frame(None, 20)):
            with pytest.raises(LinkFailedError):
                ask()
        assert robot.publish(number(1)) is False
    assert time.monotonic() - started_s < 10
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_ends_the_waiting_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(config: object) -> None:
        raise ZeroDivisionError(f"no {type(config).__name__}\n12:00:00 INFO forged")

    monkeypatch.setattr("crane_x7_remote.rosbridge.client.open_link", fail)
    started_s = time.monotonic()
    with client(9) as robot:
        with pytest.raises(LinkFailedError, match="ZeroDivisionError: no LinkConfig") as caught:
            robot.wait_connected(20)
        assert len(str(caught.value).splitlines()) == 1
        wait_until(lambda: robot.link.last_error, 5, "the status says so too")
    assert time.monotonic() - started_s < 5
