"""The gate between real clients and a rosbridge server: what passes, who connects, stop, resume."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from guard_rig import (
    ACTION,
    ARM,
    BRAKE_S,
    CAMERA,
    GRIPPER,
    INSTRUCTION,
    JOINTS,
    PREDICTION,
    STATE_TOPIC,
    STOP_TOPIC,
    Caller,
    FakeCore,
    RunningGuard,
    goal,
    prediction,
    trajectory,
)
from links import RecordingServer
from loop_rig import FaultyRobot, RunningLoop, Tunnel, inject, wait_until
from websockets.exceptions import InvalidStatus

from crane_x7_remote.errors import ExitCode, PeerUnreachableError
from crane_x7_remote.guard.core import Send
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.guard.stop import ask
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.rosbridge.inbox import Inbox, IncomingTopics


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as server:
        yield server


@pytest.fixture
def guard(server: RecordingServer) -> Iterator[RunningGuard]:
    with RunningGuard(server.port) as guard:
        wait_until(lambda: server.of("subscribe", STOP_TOPIC), 5, "rosbridge reached")
        yield guard


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


def sent_to(server: RecordingServer, topic: str) -> list[Any]:
    return [operation["msg"] for operation in server.of("publish", topic)]


# --- what passes ---------------------------------------------------------------------------------


def test_what_rosbridge_sends_passes_byte_for_byte(
    guard: RunningGuard, server: RecordingServer
) -> None:
    with guard.connect() as client:
        client.subscribe(CAMERA, "sensor_msgs/CompressedImage", "cbor", id="a")
        wait_until(lambda: server.of("subscribe", CAMERA), 5, "subscribed")
        picture = b"\xa2" + bytes(range(256)) * 300  # not even CBOR: nobody looks at it
        for payload in (picture, '{"op":"publish","topic":"/x"}'):
            server.links[-1].send(payload)
            assert client.payload() == payload


def test_a_client_gets_its_own_subscriptions_alone(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard, guard.connect() as client, guard.connect() as other:
        client.subscribe(JOINTS, "sensor_msgs/JointState")
        other.subscribe(CAMERA, "sensor_msgs/CompressedImage", "cbor")
        assert {protocol.decode(client.payload())["topic"] for _ in range(10)} == {JOINTS}
        assert {protocol.decode(other.payload())["topic"] for _ in range(5)} == {CAMERA}
        client.send({"op": "unsubscribe", "topic": JOINTS})
        client.subscribe(CAMERA, "sensor_msgs/CompressedImage", "cbor")
        wait_until(
            lambda: {protocol.decode(client.payload())["topic"] for _ in range(3)} == {CAMERA},
            5,
            "x",
        )


def test_trajectories_go_through_the_core(guard: RunningGuard, server: RecordingServer) -> None:
    with guard.connect() as client:
        client.publish(ARM, trajectory() | {"extra": 1})
        client.publish(PREDICTION, prediction())
        wait_until(lambda: sent_to(server, ARM) and sent_to(server, PREDICTION), 5, "sent on")
    assert sent_to(server, ARM) == [trajectory()]
    assert sent_to(server, PREDICTION) == [prediction()]
    assert [message for _, message in guard.core.of("take_trajectory")] == [trajectory()]


def test_the_core_hears_joints_and_the_echo(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard, guard.connect() as client:
        wait_until(lambda: guard.core.of("hear_joints"), 5, "joints heard")
        assert isinstance(guard.core.of("hear_joints")[0]["position"], list)
        client.publish(ARM, trajectory())
        wait_until(lambda: guard.core.of("hear_echo"), 5, "the echo heard")
        assert guard.core.of("hear_echo")[0] == trajectory()
        assert guard.core.of("upstream_changed") == [True]


def test_a_whole_loop_drives_through_the_guard(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard:
        with RunningLoop(guard.port) as running:
            running.wait_driving(ticks=20)
        robot.assert_nothing_bad_arrived()
        assert robot._gripper is not None
        assert guard.core.of("take_goal")
        refused = guard.refused
        assert set(refused) <= {"action_topic"}, "only the action topic"
        wait_until(lambda: guard.core.of("client_left"), 5, "the loop has left")


def test_a_gripper_goal_is_answered_by_the_robot(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard, guard.connect() as client:
        client.send(goal(0.3, "goal/7"))
        result = client.next("action_result")
        assert (result["id"], result["result"]) == ("goal/7", True)
        guard.core.goal_refusal = "not now"
        client.send(goal(0.3, "goal/8"))
        result = client.next("action_result")
        assert (result["id"], result["result"]) == ("goal/8", False)
        assert "not now" in result["values"]


def test_an_instruction_passes_and_say_works_through_the_guard(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port, token="s3cret") as guard, guard.connect() as client:
        client.subscribe(INSTRUCTION, "std_msgs/String")
        client.subscribe(JOINTS, "sensor_msgs/JointState")
        client.next("publish", JOINTS)  # so the subscription before it is there as well
        client.send({"op": "unsubscribe", "topic": JOINTS})  # nobody reads while `say` runs
        where = ("--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(guard.port))
        said = subprocess.run(  # a separate process: roslibpy's reactor starts once in a process
            [sys.executable, "-m", "crane_x7_remote", "say", "pick up the red cube", *where],
            env=os.environ | {"ROSBRIDGE_TOKEN": "s3cret"},
            check=False,
            timeout=60,
        )
        assert said.returncode == ExitCode.NO_LOOP  # it came round, and no loop runs here
        assert client.next("publish", INSTRUCTION)["msg"] == {"data": "pick up the red cube"}


def test_what_is_refused_is_counted_told_and_never_sent_on(
    guard: RunningGuard, server: RecordingServer
) -> None:
    with guard.connect() as client:
        client.send({"op": "call_service", "id": "s1", "service": "/rosapi/topics"})
        told = client.next("status")
        assert told["level"] == "error"
        assert told["id"] == "s1"
        assert "call_service" in told["msg"]
        client.publish("/cmd_vel", {"linear": {}})
        client.publish(ACTION, {"data": [0.0] * 8})
        client.send(b"\x00\x01")
        wait_until(lambda: sum(guard.refused.values()) == 4, 5, "counted")
        assert guard.refused == {
            "operation call_service": 1,
            "topic": 1,
            "action_topic": 1,
            "binary": 1,
        }
    assert not server.of("call_service")
    assert {operation["topic"] for operation in server.of("publish")} == {STATE_TOPIC}


def test_a_topic_that_every_loop_publishes_is_one_calm_line_here_and_at_the_loop(
    guard: RunningGuard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with guard.connect() as client:
        client.send({"op": "advertise", "topic": ACTION, "type": "std_msgs/Float32MultiArray"})
        for _ in range(3):
            client.publish(ACTION, {"data": [0.0] * 8})
        told = client.next("status")
        wait_until(lambda: guard.refused == {"action_topic": 4}, 5, "counted")
    assert told["level"] == "info"
    assert [one.levelname for one in caplog.records if ACTION in one.getMessage()] == ["INFO"]
    caplog.clear()
    inbox = Inbox(
        IncomingTopics(None, None, None), 1 << 20, adapts_throttle=False, on_throttle=lambda _: None
    )
    inbox.take(protocol.encode_json(told), 0.0)
    (line,) = caplog.records
    assert line.levelname == "INFO"
    assert "driving does not need it" in line.getMessage()


def test_a_flood_of_refusals_is_not_answered_by_a_flood(guard: RunningGuard) -> None:
    with guard.connect() as client:
        for _ in range(300):
            client.send({"op": "call_service", "service": "/x"})
        client.subscribe(STATE_TOPIC, "std_msgs/String")
        answers = []
        while not answers or answers[-1]["op"] != "publish":
            answers.append(protocol.decode(client.payload()))
        assert [answer["op"] for answer in answers] == ["status", "publish"]
        assert guard.refused == {"operation call_service": 300}


def test_subscriptions_are_bounded(guard: RunningGuard) -> None:
    with guard.connect() as client:
        for number in range(100):
            client.subscribe(JOINTS, "sensor_msgs/JointState", id=f"s{number}")
        wait_until(lambda: guard.refused.get("subscriptions") == 36, 5, "64 subscribed")


def test_the_core_is_woken_when_it_asked_to_be(guard: RunningGuard) -> None:
    def ask() -> float:
        guard.core.wake_at_s = guard.loop.time() + 0.2
        guard.gate._set_timer()
        at_s: float = guard.core.wake_at_s
        return at_s

    due_s = guard.call(ask)
    wait_until(lambda: guard.core.woken, 5, "woken")
    assert 0 <= guard.core.woken[0] - due_s < 0.2


def test_a_fault_in_the_core_stops_everything_and_the_guard_goes_on(
    guard: RunningGuard, server: RecordingServer
) -> None:
    guard.core.fault = RuntimeError("planted")
    with guard.connect() as client:
        client.subscribe(STATE_TOPIC, "std_msgs/String")
        client.publish(ARM, trajectory())
        wait_until(lambda: guard.core.stopped, 5, "stopped")
        client.publish(ARM, trajectory())
        assert "planted" in client.state(lambda state: state["stopped"])["stopped"]
        assert guard.state()["gate"]["faults"] == 1
    assert not sent_to(server, ARM)


# --- who comes in --------------------------------------------------------------------------------


def test_without_the_token_nobody_reaches_rosbridge(server: RecordingServer) -> None:
    with RunningGuard(server.port, token="s3cret") as guard:
        wait_until(lambda: len(server.links) == 1, 5, "the guard's own connection")
        for token in ("wrong", "s3cre", "s3cret2"):
            with pytest.raises(InvalidStatus) as caught:
                guard.connect(token=token)
            assert caught.value.response.status_code == 401
        guard.token = None
        with pytest.raises(InvalidStatus, match="401"):
            guard.connect()
        assert len(server.links) == 1
        assert guard.state()["gate"]["turned_away"] == {"401": 4}
        with guard.connect(token="s3cret") as client:
            client.publish(ARM, trajectory())
            wait_until(lambda: sent_to(server, ARM), 5, "sent on")


def test_the_client_of_the_loop_sends_the_token_and_is_told_without(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port, token="s3cret") as guard:
        with RosbridgeClient(ClientConfig("127.0.0.1", guard.port, token="s3cret")) as client:
            client.wait_connected(5)
            assert client.wait_frame(None, 5) is not None
        with (
            RosbridgeClient(ClientConfig("127.0.0.1", guard.port)) as client,
            pytest.raises(PeerUnreachableError, match="ROSBRIDGE_TOKEN"),
        ):
            client.wait_connected(1)


def test_stopping_from_this_machine_needs_no_token_but_resuming_does(
    server: RecordingServer,
) -> None:
    with RunningGuard(server.port, token="s3cret") as guard:
        guard.token = None
        with guard.connect("/stop") as client:
            client.publish(STOP_TOPIC, {"data": True}, reason="a hand")
            assert "a hand" in client.state()["stopped"]
            client.publish(STOP_TOPIC, {"data": False})
            assert client.state()["stopped"]
            assert "token" in client.next("status")["msg"]
            assert guard.core.stopped
        with guard.connect("/stop", token="s3cret") as client:
            client.publish(STOP_TOPIC, {"data": False})
            assert client.state()["stopped"] is None
        with pytest.raises(InvalidStatus, match="401"):
            guard.connect("/stop", token="wrong")


def test_the_way_to_stop_is_for_stopping_alone(guard: RunningGuard) -> None:
    with guard.connect("/stop") as client:
        client.publish(ARM, trajectory())
        client.subscribe(JOINTS, "sensor_msgs/JointState")
        wait_until(lambda: guard.refused.get("place") == 2, 5, "refused")
    assert not guard.core.of("take_trajectory")


def test_a_web_page_does_not_come_in(guard: RunningGuard) -> None:
    for path in ("/", "/stop"):
        with pytest.raises(InvalidStatus, match="403"):
            guard.connect(path, origin="https://example.com")
    with pytest.raises(InvalidStatus, match="404"):
        guard.connect("/other")


def test_more_clients_than_places_are_told_at_once_and_stopping_is_still_possible(
    server: RecordingServer,
) -> None:
    with (
        RunningGuard(server.port, max_clients=2) as guard,
        guard.connect(),
        guard.connect() as last,
    ):
        asked_s = time.monotonic()
        with pytest.raises(InvalidStatus, match="503") as caught:
            guard.connect()
        assert time.monotonic() - asked_s < 1
        assert b"GUARD_MAX_CLIENTS" in (caught.value.response.body or b"")
        with guard.connect("/stop") as client:
            client.publish(STOP_TOPIC, {"data": True})
            assert client.state()["stopped"]
        last.close()
        wait_until(lambda: len(guard.state()["gate"]["clients"]) == 1, 5, "a place is free")
        guard.connect().close()


def test_a_rosbridge_that_is_not_there_is_named() -> None:
    with RunningGuard(1) as guard:
        with pytest.raises(InvalidStatus, match="503") as caught:
            guard.connect()
        body = caught.value.response.body or b""
        assert b"connection refused" in body
        with guard.connect("/stop") as client:
            client.publish(STOP_TOPIC, {"data": True})
            assert client.state()["stopped"]


def test_a_client_that_comes_before_rosbridge_waits_for_it(free_port: int) -> None:
    with RunningGuard(free_port) as guard:
        servers: list[RecordingServer] = []
        timer = threading.Timer(0.3, lambda: servers.append(RecordingServer(free_port)))
        timer.start()
        with guard.connect() as client:
            client.publish(ARM, trajectory())
            wait_until(lambda: servers and sent_to(servers[0], ARM), 5, "sent on")
        timer.join()
        with servers[0]:
            pass


@pytest.fixture
def free_port() -> int:
    with RecordingServer() as server:
        return server.port


# --- stop and resume -----------------------------------------------------------------------------


def test_stop_brakes_and_lets_nothing_pass_until_resumed(
    guard: RunningGuard, server: RecordingServer
) -> None:
    with guard.connect() as driver, guard.connect() as operator:
        operator.subscribe(STATE_TOPIC, "std_msgs/String")
        operator.subscribe(STOP_TOPIC, "std_msgs/Bool")
        assert operator.state()["stopped"] is None
        assert operator.next("publish", STOP_TOPIC)["msg"] == {"data": False}
        driver.publish(ARM, trajectory())
        wait_until(lambda: len(sent_to(server, ARM)) == 1, 5, "driving")
        operator.publish(STOP_TOPIC, {"data": True})
        assert operator.state(lambda state: state["stopped"])["stopped"].startswith(STOP_TOPIC)
        assert operator.next("publish", STOP_TOPIC)["msg"] == {"data": True}
        wait_until(lambda: len(sent_to(server, ARM)) == 2, 5, "braked")
        assert sent_to(server, ARM)[-1]["header"]["frame_id"] == "brake"
        driver.publish(ARM, trajectory())
        assert "stopped" in driver.next("status")["msg"]
        driver.send(goal())
        assert STOP_TOPIC in driver.next("action_result")["values"]
        operator.publish(STOP_TOPIC, {"data": False})
        operator.state(lambda state: state["stopped"] is None)
        driver.publish(ARM, trajectory())
        wait_until(lambda: len(sent_to(server, ARM)) == 3, 5, "driving again")


def test_who_comes_later_learns_that_all_is_stopped(guard: RunningGuard) -> None:
    guard.call(lambda: guard.gate.stop("SIGUSR1"))
    with guard.connect() as client:
        client.subscribe(STATE_TOPIC, "std_msgs/String")
        assert client.state()["stopped"] == "SIGUSR1"
        client.subscribe(STOP_TOPIC, "std_msgs/Bool")
        assert client.next("publish", STOP_TOPIC)["msg"] == {"data": True}


def test_a_node_on_the_robots_side_stops_and_resumes(robot: FaultyRobot) -> None:
    with RunningGuard(robot.port) as guard:
        wait_until(lambda: guard.gate.uplink.is_up, 5, "connected")
        inject_when_heard(robot, guard, True)
        inject_when_heard(robot, guard, False)


def inject_when_heard(robot: FaultyRobot, guard: RunningGuard, wanted: bool) -> None:
    inject(robot.port, STOP_TOPIC, {"data": wanted})
    wait_until(lambda: (guard.core.stopped is not None) == wanted, 5, f"stopped: {wanted}")


def hear(guard: RunningGuard, server: RecordingServer, *wanted: bool) -> None:
    """Publish on /vla/stop on the robot's side, and wait until the guard has heard it."""
    count = len(guard.core.of("hear_joints"))
    for each in wanted:
        server.send(protocol.publish(STOP_TOPIC, {"data": each}))
    server.send(protocol.publish(JOINTS, {}))
    wait_until(lambda: len(guard.core.of("hear_joints")) > count, 5, "heard")


def pass_time(guard: RunningGuard, seconds: float) -> None:
    """Set the guard's clock forward."""
    clock = guard.gate._clock
    guard.gate._clock = lambda: clock() + seconds


def command_guard(guard: RunningGuard, wanted: bool) -> None:
    """Do what `crane-x7-remote stop` or `resume` does."""
    ask(LinkConfig("127.0.0.1", guard.port, path=STOP_PATH), wanted)


@pytest.mark.parametrize("period_s", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("heard_before", [0, 1, 3])
def test_a_node_that_publishes_false_does_not_undo_a_stop(
    guard: RunningGuard, server: RecordingServer, period_s: float, heard_before: int
) -> None:
    """It says that its button is not pressed, all the time, slowly, or latched to who comes."""
    for _ in range(heard_before):
        hear(guard, server, False)
        pass_time(guard, period_s)
    command_guard(guard, True)
    for _ in range(3):
        pass_time(guard, period_s)
        hear(guard, server, False)
        assert guard.core.stopped
    command_guard(guard, False)
    assert guard.core.stopped is None


@pytest.mark.parametrize("is_operators", [True, False])
def test_a_false_after_rosbridge_came_back_resumes_nothing(
    free_port: int, is_operators: bool
) -> None:
    """It may be of a node that publishes all the time; a release in between was not heard."""
    with RunningGuard(free_port) as guard:
        with RecordingServer(free_port) as server:
            wait_until(lambda: server.of("subscribe", STOP_TOPIC), 5, "reached")
            hear(guard, server, False)
            if is_operators:
                command_guard(guard, True)
            else:
                hear(guard, server, True)
            assert guard.core.stopped
        wait_until(lambda: not guard.gate.uplink.is_up, 5, "lost")
        pass_time(guard, 5.0)
        with RecordingServer(free_port) as server:
            wait_until(lambda: server.of("subscribe", STOP_TOPIC), 5, "reached again")
            hear(guard, server, False, False)
            assert guard.core.stopped
            hear(guard, server, True, False)
            assert (guard.core.stopped is not None) == is_operators
            command_guard(guard, False)
            assert guard.core.stopped is None


@pytest.mark.parametrize("is_button_first", [True, False])
def test_a_button_that_is_released_undoes_its_own_stop_only(
    guard: RunningGuard, server: RecordingServer, is_button_first: bool
) -> None:
    hear(guard, server, False, True, True)
    assert guard.core.stopped
    hear(guard, server, False, False)
    assert guard.core.stopped is None
    if is_button_first:
        hear(guard, server, True)
        command_guard(guard, True)
    else:
        guard.call(lambda: guard.gate.stop("SIGUSR1"))
    hear(guard, server, True, False)
    assert guard.core.stopped
    command_guard(guard, False)
    assert guard.core.stopped is None
    hear(guard, server, True, False)
    assert guard.core.stopped is None


def test_a_released_button_does_not_undo_a_stop_by_a_fault(
    guard: RunningGuard, server: RecordingServer
) -> None:
    hear(guard, server, True)
    guard.core.fault = RuntimeError("planted")
    hear(guard, server)
    hear(guard, server, False)
    assert guard.state()["gate"]["faults"] == 1
    assert guard.core.stopped


@pytest.mark.parametrize("data", [1, "true", None, [], {}])
def test_a_stop_of_a_wrong_type_changes_nothing(
    guard: RunningGuard, server: RecordingServer, data: object
) -> None:
    server.send(protocol.publish(STOP_TOPIC, {"data": data}))
    wait_until(lambda: guard.state()["gate"]["unreadable"] == 1, 5, "counted")
    assert guard.core.stopped is None


def test_ros_sees_the_state(guard: RunningGuard, server: RecordingServer) -> None:
    (advertised,) = server.of("advertise", STATE_TOPIC)
    assert advertised["latch"] is True
    guard.call(lambda: guard.gate.stop("SIGUSR1"))
    wait_until(
        lambda: any(
            json.loads(message["data"])["stopped"] == "SIGUSR1"
            for message in sent_to(server, STATE_TOPIC)
        ),
        5,
        "published",
    )


def test_stop_pressed_a_hundred_times_a_second_stays_stopped(guard: RunningGuard) -> None:
    with guard.connect("/stop") as client, guard.connect() as driver:
        client.subscribe(STATE_TOPIC, "std_msgs/String")
        for _ in range(200):
            client.publish(STOP_TOPIC, {"data": True})
            time.sleep(0.005)
        wait_until(lambda: len(guard.core.of("stop")) >= 200, 10, "all heard")
        assert guard.core.stopped
        driver.publish(ARM, trajectory())
        assert "stopped" in driver.next("status")["msg"]
        client.publish(STOP_TOPIC, {"data": False})
        client.state(lambda state: state["stopped"] is None)


def test_stop_and_resume_in_turns_end_as_the_last_one_says(guard: RunningGuard) -> None:
    with guard.connect("/stop") as client:
        client.subscribe(STATE_TOPIC, "std_msgs/String")
        for _ in range(100):
            client.publish(STOP_TOPIC, {"data": True})
            client.publish(STOP_TOPIC, {"data": False})
        wait_until(lambda: len(guard.core.of("resume")) == 100, 10, "all heard")
        assert guard.core.stopped is None


# --- links that end ------------------------------------------------------------------------------


def test_two_loops_at_once_are_told_apart(guard: RunningGuard, server: RecordingServer) -> None:
    with guard.connect() as first, guard.connect() as second:
        first.publish(ARM, trajectory("vla/00000001/1/500"))
        wait_until(lambda: sent_to(server, ARM), 5, "the first drives")
        second.publish(ARM, trajectory("vla/00000002/1/500"))
        assert "drives the arm" in second.next("status")["msg"]
        first.close()
        wait_until(lambda: guard.core.of("client_left"), 5, "the first has left")
        second.publish(ARM, trajectory("vla/00000002/2/500"))
        wait_until(lambda: len(sent_to(server, ARM)) == 2, 5, "the second drives")


def test_rosbridge_restarted_everything_works_again_and_stopped_stays(free_port: int) -> None:
    with RunningGuard(free_port) as guard:
        for round_ in range(2):
            with RecordingServer(free_port) as server:
                wait_until(lambda: guard.gate.uplink.is_up, 5, "reached")
                client = guard.connect()
                client.publish(ARM, trajectory())
                if round_ == 0:
                    wait_until(lambda server=server: sent_to(server, ARM), 5, "driving")
                    guard.call(lambda: guard.gate.stop("SIGUSR1"))
            closed = client.end()
            assert closed.rcvd is not None
            assert "rosbridge" in closed.rcvd.reason
        wait_until(lambda: len(guard.core.of("upstream_changed")) == 4, 5, "down again")
        assert guard.core.of("upstream_changed") == [True, False, True, False]
        assert guard.core.stopped == "SIGUSR1"
        assert sent_to(server, ARM) == []


def test_a_loop_drives_again_after_rosbridge_was_restarted() -> None:
    with FaultyRobot() as robot:
        port = robot.port
        guard = RunningGuard(port)
        guard.__enter__()
        running = RunningLoop(guard.port)
        running.__enter__()
        running.wait_driving()
    with FaultyRobot(port):
        running.wait_driving(timeout_s=15)
        running.__exit__(None, None, None)
        guard.__exit__(None, None, None)


def test_a_client_that_takes_its_leave_is_told_from_one_that_is_lost(guard: RunningGuard) -> None:
    with guard.connect():
        pass
    wait_until(lambda: len(guard.core.of("client_left")) == 1, 5, "the first has left")
    lost = guard.connect()
    lost.link.socket.shutdown(2)
    wait_until(lambda: len(guard.core.of("client_left")) == 2, 5, "the second is lost")
    assert [clean for _, clean in guard.core.of("client_left")] == [True, False]
    lost.close()


def test_a_client_whose_link_is_dead_is_closed(guard: RunningGuard) -> None:
    with Tunnel(guard.port) as tunnel:
        client = Caller(tunnel.port)
        client.publish(ARM, trajectory())
        wait_until(lambda: guard.core.of("take_trajectory"), 5, "driving")
        tunnel.go_dark()
        dark_s = time.monotonic()
        wait_until(lambda: guard.core.of("client_left"), 4, "closed")
        assert time.monotonic() - dark_s < 3.5
        tunnel.come_back()
        client.close()


def test_the_guard_ends_with_the_arm_at_rest(server: RecordingServer) -> None:
    with RunningGuard(server.port) as guard:
        with guard.connect() as client:
            client.publish(ARM, trajectory())
            wait_until(lambda: sent_to(server, ARM), 5, "driving")
            ending_s = time.monotonic()
            guard.loop.call_soon_threadsafe(guard._end.set)
            guard._thread.join(5)
            assert 0.15 < time.monotonic() - ending_s < 3
        assert sent_to(server, ARM)[-1]["header"]["frame_id"] == "brake"
        guard.loop = type("Done", (), {"call_soon_threadsafe": lambda *_: None})()


class TwiceBrakingCore(FakeCore):
    """Its first brake is taken back, and a second one follows, later than the first had ended."""

    def stop(self, why: str, now_s: float) -> list[Any]:
        self._ends_s, self.wake_at_s = now_s + BRAKE_S, now_s + BRAKE_S / 2
        return super().stop(why, now_s)

    def wake(self, now_s: float) -> list[Any]:
        super().wake(now_s)
        if len(self.woken) == 1:
            self._ends_s += 2 * BRAKE_S
            self.wake_at_s = self._ends_s - BRAKE_S / 2
            return []
        return [Send(ARM, trajectory("brake again"))]


def test_the_guard_ends_after_a_brake_that_was_sent_again(server: RecordingServer) -> None:
    with RunningGuard(server.port, core=TwiceBrakingCore()) as guard:
        wait_until(lambda: guard.gate.uplink.is_up, 5, "connected")
    wait_until(lambda: len(sent_to(server, ARM)) == 2, 5, "sent")
    frames = [message["header"]["frame_id"] for message in sent_to(server, ARM)]
    assert frames == ["brake", "brake again"]


def test_gripper_actions_of_ros_1_pass(guard: RunningGuard, server: RecordingServer) -> None:
    with guard.connect() as client:
        topic, kind = f"{GRIPPER}/goal", "control_msgs/GripperCommandActionGoal"
        client.send({"op": "advertise", "topic": topic, "type": kind})
        client.publish(topic, {"goal": {"command": {"position": 0.5, "max_effort": 1.0}}})
        wait_until(lambda: sent_to(server, topic), 5, "sent on")
        assert server.of("advertise", topic)
        assert [position for _, position in guard.core.of("take_goal")] == [0.5]
