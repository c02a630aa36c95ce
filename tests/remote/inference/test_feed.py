"""The loop's feed: what each message contains, and that no child can delay or end the loop."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_rig import wait_until
from tick_rig import ROBOT_CLOCK_S, MovingPolicy, Rig, a_jpeg

from crane_x7_remote import settings as settings_module
from crane_x7_remote.inference import feed
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.feed import FeedError, Tick, TickEncoder, pack, read_messages
from crane_x7_remote.inference.feeds import QUEUED_MESSAGES, FeedCommand, Feeds
from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.loop import InferenceLoop
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_vla_rl.types import Observation

HELLO = {"kind": "hello", "session": "0a1b2c3d"}
READER = """
import json, sys
from crane_x7_remote.inference.feed import read_messages
with open(sys.argv[1], "w") as file:
    for message in read_messages(sys.stdin.buffer):
        message.pop("jpeg", None), message.pop("wrist_jpeg", None)
        print(json.dumps(message), file=file, flush=True)
    print(json.dumps({"kind": "end"}), file=file, flush=True)
"""
SLEEPER = "import time; print('a child that reads nothing', flush=True); time.sleep(60)"
SLOW = "import sys, time\nwhile sys.stdin.buffer.read(4096): time.sleep(0.05)"
DYING = "import sys; sys.stdin.buffer.read(100); sys.exit(3)"


def observed(rig: Rig) -> list[Tick]:
    """Collect the ticks of a rig's loop."""
    ticks: list[Tick] = []
    rig.loop._observe = ticks.append
    return ticks


def ticked(rig: Rig) -> Tick:
    """Let the rig's loop tick once and return what it told."""
    ticks = observed(rig)
    rig.tick()
    return ticks[-1]


def a_tick(number: int = 1) -> Tick:
    rig = Rig()
    ticks = observed(rig)
    assert isinstance(rig.tick(2), Sent)
    return replace(ticks[-1], number=number)


def command(*argv: str, grace_s: float = 5.0) -> FeedCommand:
    return FeedCommand("a child", (sys.executable, "-c", *argv), grace_s)


def feeds(*commands: FeedCommand) -> Feeds:
    return Feeds(commands, HELLO, lambda: {"ticks": 7})


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_tick_contains_what_the_loop_saw_and_sent() -> None:
    rig = Rig(instruction="pick up the red cube")
    ticks = observed(rig)
    outcome = rig.tick(3)
    assert isinstance(outcome, Sent)
    message = TickEncoder().message(ticks[-1], wall_s=1.7e9)
    assert [tick.number for tick in ticks] == [1, 2, 3]
    assert message["kind"] == "tick"
    assert message["instruction"] == "pick up the red cube"
    assert message["jpeg"] == a_jpeg()
    assert message["frame_used"] is True
    assert message["frame_stamp_s"] == outcome.frame.stamp_s
    assert message["hold"] is None
    assert message["sequence"] == outcome.trajectory.sequence
    assert message["robot_s"] == pytest.approx(rig.client.robot_time(message["at_s"]))
    assert message["path"]["stamp_s"] == outcome.trajectory.stamp_s
    np.testing.assert_array_equal(message["path"]["position_rad"], outcome.trajectory.position_rad)
    np.testing.assert_array_equal(message["target_rad"], outcome.target_rad)
    assert len(message["position_rad"]) == len(message["velocity_rad_s"]) == 8


def test_the_wrist_image_is_told_once_and_only_with_a_topic() -> None:
    frame = EncodedFrame(b"wrist", "jpeg", 5.0, 1.0)
    plain, rig = Rig(), Rig(wrist_camera_topic="/wrist")
    for each in (plain, rig):
        each.client.wrist = frame
    assert not {key for key in TickEncoder().message(ticked(plain), 0.0) if "wrist" in key}
    encoder = TickEncoder()
    told = [encoder.message(ticked(rig), 0.0) for _ in range(2)]
    assert [message["wrist_jpeg"] for message in told] == [b"wrist", None]
    assert [message["wrist_stamp_s"] for message in told] == [5.0, 5.0]


def test_the_wrist_frame_that_the_policy_got_is_told_with_its_base_frame() -> None:
    class TwoCameras(MovingPolicy):
        more_cameras = ("wrist",)

    rig = Rig(policy=TwoCameras(), wrist_camera_topic="/wrist")
    now_s = rig.clock.now_s
    used = EncodedFrame(a_jpeg(), "jpeg", now_s + ROBOT_CLOCK_S, now_s)
    rig.client.wrist = used

    def newer(observation: Observation) -> object:
        rig.client.wrist = replace(used, arrival_s=now_s + 0.05)
        return rig.policy._further(observation)

    rig.policy.answer = newer
    assert ticked(rig).wrist_frame is used


def test_joint_states_between_ticks_are_told_once_each() -> None:
    rig = Rig()
    newest = rig.client.joints()
    assert newest is not None
    states = [replace(newest, stamp_s=newest.stamp_s + k) for k in range(6)]
    encoder = TickEncoder()

    def told(upto: int) -> list[float]:
        tick = replace(a_tick(), joints=states[upto], recent_joints=tuple(states[: upto + 1]))
        message = encoder.message(tick, 0.0)
        assert message["joints_stamp_s"] == states[upto].stamp_s
        assert all(len(row) == 10 for row in message["joints_between"])
        return [row[0] - newest.stamp_s for row in message["joints_between"]]

    assert told(1) == [0.0]
    assert told(4) == [2.0, 3.0]
    assert told(4) == []
    assert told(5) == []


def test_a_hold_is_told_with_its_reason_and_the_newest_frame_once() -> None:
    rig = Rig()
    ticks = observed(rig)
    rig.tick(2)
    joints = rig.client.joints()
    assert joints is not None
    rig.client.measured = replace(joints, arrival_s=0.0, stamp_s=0.0)
    assert rig.reason() is HoldReason.JOINTS_STALE
    rig.client.camera_runs = False
    rig.tick(2)
    encoder = TickEncoder()
    told = [encoder.message(tick, 0.0) for tick in ticks]
    assert told[2]["hold"]["reason"] == "joints_stale"
    assert "s old, expected at most 0.5 s" in told[2]["hold"]["detail"]
    assert told[2]["path"] is told[2]["target_rad"] is told[2]["sequence"] is None
    assert told[2]["frame_used"] is False
    assert told[2]["jpeg"] == a_jpeg()
    assert told[3]["jpeg"] is told[4]["jpeg"] is None, "the camera stands still: nothing new"
    assert told[4]["frame_stamp_s"] == told[2]["frame_stamp_s"]


def test_a_loop_without_feed_observes_nothing() -> None:
    rig = Rig()
    assert rig.loop._observe is None
    assert isinstance(rig.tick(2), Sent)


def test_hello_names_robot_and_topics_and_no_secret() -> None:
    client = ClientConfig("robot.example", 9091, token="a-secret-token-for-the-guard")
    message = feed.hello(client, LoopConfig("0a1b2c3d", rate_hz=5), "color-servo")
    assert message["control"] == {"rosbridge_host": "robot.example", "rosbridge_port": 9091}
    assert message["topics"]["camera"] == client.camera_topic
    assert message["topics"]["trajectory"] == "/vla/predicted_trajectory"
    assert (message["rate_hz"], message["policy"]) == (5, "color-servo")
    assert b"a-secret-token" not in pack(message)
    assert "wrist_camera" not in message["topics"]
    two = feed.hello(replace(client, wrist_camera_topic="/w"), LoopConfig("0a1b2c3d"), "x")
    assert two["topics"]["wrist_camera"] == "/w"


def test_the_childs_environment_loads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_TOPIC", "/a/compressed")
    settings = settings_module.load(
        {"rosbridge_host": "robot:9091", "rosbridge_token": "a-secret-token", "dry_run": True}
    )
    again = settings_module.load({}, settings_module.as_environment(settings))
    assert again.model_dump() == settings.model_dump()
    assert again.rosbridge_token is not None
    assert again.rosbridge_token.get_secret_value() == "a-secret-token"


def test_messages_come_back_as_they_were_written() -> None:
    messages = [HELLO, {"kind": "tick", "jpeg": b"\xff" * 100_000, "x": float("inf")}]
    stream = io.BytesIO(b"".join(pack(message) for message in messages))
    assert list(read_messages(stream)) == messages


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7f\xff\xff\xff", "expected 4 bytes that are a length"),
        (b"\x00\x00", "expected 4 bytes that are a length"),
        (pack(HELLO)[:-3], "the loop's process has died"),
        (b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\x00\x00\x00\x01\x07", "expected a map with a kind"),
        (b"\x00\x00\x00\x01\xc1", "not msgpack"),
        (b"\x00\x00\x00\x01\x80", "expected a map with a kind"),
        (b'{"op": "publish"}\n', "is the input a feed of infer?"),
    ],
)
def test_bytes_that_are_no_feed_raise(content: bytes, words: str) -> None:
    with pytest.raises(FeedError, match=words.replace("?", r"\?")):
        list(read_messages(io.BytesIO(content)))


def test_a_child_gets_hello_ticks_seconds_and_bye(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with feeds(command(READER, str(path))) as told:
        for number in range(1, 21):
            told.offer(a_tick(number))
        wait_until(lambda: told.counts() == {"a child": 0}, 1, "nothing dropped")
        time.sleep(1.2)
    lines = read_lines(path)
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "hello"
    assert kinds[-2:] == ["bye", "end"]
    assert kinds.count("second") >= 2
    assert [line["number"] for line in lines if line["kind"] == "tick"] == [*range(1, 21)]
    assert next(line for line in lines if line["kind"] == "second")["metrics"] == {"ticks": 7}


def offered_ms(told: Feeds, ticks: Sequence[Tick]) -> list[float]:
    durations: list[float] = []
    for tick in ticks:
        started_s = time.perf_counter()
        told.offer(tick)
        durations.append((time.perf_counter() - started_s) * 1e3)
        time.sleep(0.002)
    return durations


def many(ticks: int, jpeg_bytes: int) -> Iterator[Tick]:
    tick = a_tick()
    assert tick.frame is not None
    for number in range(1, ticks + 1):
        frame = replace(tick.frame, image_bytes=bytes(jpeg_bytes))
        yield replace(tick, number=number, frame=frame)


def test_a_child_that_reads_nothing_costs_the_loop_nothing_and_is_ended() -> None:
    """Its pipe is full after 64 kB: later messages are dropped, and what waits is bounded."""
    with feeds(command(SLEEPER, grace_s=0.3)) as told:
        durations = offered_ms(told, [*many(300, 100_000)])
        dropped = told.counts()["a child"]
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 5
    assert dropped >= 300 - QUEUED_MESSAGES - 10
    assert sorted(durations)[len(durations) // 2] < 0.1
    assert told._children[0]._process is not None
    assert told._children[0]._process.returncode == -15


def test_a_slow_child_gets_the_newest_messages(tmp_path: Path) -> None:
    slow = READER.replace("message.pop", "__import__('time').sleep(0.02); message.pop", 1)
    path = tmp_path / "lines"
    with feeds(command(slow, str(path), grace_s=20)) as told:
        offered_ms(told, [*many(400, 1000)])
        assert told.counts()["a child"] > 0
    numbers = [line["number"] for line in read_lines(path) if line["kind"] == "tick"]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 400, "the newest messages are kept, the oldest dropped"
    assert len(numbers) < 400


def test_a_childs_death_is_logged_once_and_the_others_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines"
    with feeds(command(DYING), command(READER, str(path))) as told:
        for tick in many(30, 1000):
            told.offer(tick)
            time.sleep(0.02)
        wait_until(lambda: "the loop continues" in caplog.text, 5, "the death is logged")
    assert caplog.text.count("has ended (exit code 3); the loop continues without it") == 1
    ticks = [line for line in read_lines(path) if line["kind"] == "tick"]
    assert len(ticks) == 30


def test_what_a_child_prints_is_logged_without_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with feeds(command("print('\\x1b[31mred\\x07'); import sys; sys.stdin.read()")):
        pass
    assert "\x1b" not in caplog.text
    assert r"a child: \x1b[31mred\x07" in caplog.text


def test_a_real_loop_continues_when_its_child_is_killed(tmp_path: Path) -> None:
    """Ticks come while the child is killed; the rig's loop never sees an error."""
    rig = Rig()
    path = tmp_path / "lines"
    with feeds(command(READER, str(path))) as told:
        rig.loop._observe = told.offer
        rig.tick(3)
        process = told._children[0]._process
        assert process is not None
        wait_until(lambda: path.exists() and len(read_lines(path)) >= 4, 10, "the first ticks")
        process.kill()
        for _ in range(20):
            assert isinstance(rig.tick(), Sent)
            time.sleep(0.01)
    assert process.returncode == -9
    assert isinstance(rig.loop, InferenceLoop)
