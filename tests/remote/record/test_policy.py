"""`infer --record` keeps what a policy saw and did; `record`, `sft` and `demo` are one circle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from guard_rig import Caller
from record_rig import TASK, drain
from sim_robot_rig import started

from crane_x7_remote.errors import ExitCode, RecordError
from crane_x7_remote.inference import feed
from crane_x7_remote.record import feed_input
from crane_x7_remote.record.events import Decided, Ended, Event, Measured, Picture, Told
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.policies.load import SHIPPED
from crane_x7_vla_rl.robot import HOME_RAD

pytestmark = pytest.mark.timeout(900)

PORTS = re.compile(r"port (\d+), guard on port (\d+)")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "crane_x7_remote", *words]


def at(port: int) -> tuple[str, ...]:
    return "--rosbridge-host=127.0.0.1", f"--rosbridge-port={port}"


def test_a_loop_is_recorded_and_a_stop_is_an_intervention(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    flags = ("--arm", "kinematic", "--port", "0", "--guard", "0")
    with started(*flags, stderr=subprocess.DEVNULL) as robot:
        assert robot.stdout is not None
        found = PORTS.search(robot.stdout.readline())
        assert found is not None
        loop = subprocess.Popen(
            command("infer", *at(int(found[2])), "--policy", "color-servo", "--camera-pose", "sim",
                    "--vla-task-instruction", TASK, "--record", str(folder)),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert loop.stderr is not None
            lines = []
            for line in loop.stderr:
                lines.append(line)
                if "recording episode 0" in line:
                    break
            else:
                raise AssertionError("".join(lines))
            time.sleep(6)
            with Caller(int(found[2]), "/stop") as caller:
                caller.publish("/vla/stop", {"data": True})
                time.sleep(4)
            loop.send_signal(signal.SIGINT)
            _, errors = loop.communicate(timeout=120)
        finally:
            loop.kill()
            loop.communicate()
    assert loop.returncode == ExitCode.OK, errors
    source = open_lerobot(folder)
    frames = int(source.lengths.sum())
    assert frames >= 20
    assert source[0].instruction == TASK
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    marks = np.array(table["intervention"].to_pylist())
    assert marks.any()
    assert not marks.all()
    assert not marks[:3].any() or marks[-3:].any()


def tick(**more: object) -> dict[str, object]:
    values: dict[str, object] = {
        "kind": "tick", "number": 1, "at_s": 5.0, "wall_s": 0.0, "robot_s": 100.0,
        "instruction": TASK, "jpeg": b"\xff\xd8", "frame_stamp_s": 99.9, "frame_used": True,
        "position_rad": HOME_RAD.tolist(), "velocity_rad_s": [0.0] * 8, "joints_stamp_s": 99.95,
        "target_rad": (HOME_RAD + 0.1).tolist(), "path": None, "hold": None,
    }  # fmt: skip
    return values | more


def test_a_tick_becomes_events_in_the_order_that_an_episode_needs() -> None:
    events = list(feed_input.read_tick(tick()))
    assert [type(event) for event in events] == [Told, Measured, Decided, Picture]
    decided = events[2]
    assert isinstance(decided, Decided)
    assert decided.stamp_s == 99.9
    np.testing.assert_allclose(decided.target_rad, HOME_RAD + 0.1)
    assert not decided.intervention
    assert list(feed_input.read_tick({"kind": "second"})) == []


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stopped", True), ("other_loop", True), ("listening", True), ("frame_stale", False)],
)
def test_holds_in_which_others_may_move_the_arm_are_interventions(
    reason: str, expected: bool
) -> None:
    held = tick(target_rad=None, hold={"reason": reason, "detail": ""}, jpeg=None)
    *_, decided = feed_input.read_tick(held)
    assert isinstance(decided, Decided)
    assert decided.target_rad is None
    assert decided.intervention is expected


def test_a_feed_that_ends_in_any_way_ends_the_recorder(tmp_path: Path) -> None:
    import queue

    for name, content, failed in (
        ("bye", feed.pack({"kind": "bye"}), False),
        ("nothing", b"", True),
        ("half", feed.pack(tick())[:40], True),
        ("odd", feed.pack(tick(position_rad=["x"] * 8)), True),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with path.open("rb") as stream:
            feed_input.follow(feed.read_messages(stream), events).join(10)
        last = drain(events)[-1]
        assert isinstance(last, Ended)
        assert (last.failure is not None) is failed, name


def test_an_input_that_is_no_feed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    for content in (b"", b"hello, world", feed.pack({"kind": "bye"})):
        path.write_bytes(content)
        with path.open("rb") as stream, pytest.raises(RecordError, match="--from-feed: "):
            feed_input.open_feed(stream)


def test_what_is_recorded_trains_a_model_that_drives_in_the_demo(tmp_path: Path) -> None:
    """record → sft → demo, every file real; one episode teaches nothing, the demo may fail."""
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "demo"
    robot_flags = ("--task", "Lift-CRANE-X7", "--port", "0", "--guard", "0", "--seed", "1")
    with started(*robot_flags, stderr=subprocess.DEVNULL) as robot:
        assert robot.stdout is not None
        found = PORTS.search(robot.stdout.readline())
        assert found is not None
        driver = subprocess.Popen(
            command("infer", *at(int(found[2])), "--policy", "color-servo",
                    "--vla-task-instruction", TASK),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            recorded = subprocess.run(
                command("record", str(data), *at(int(found[2])), "--instruction", TASK,
                        "--fps", "5", "--start", "--longest", "8", "--episodes", "1"),
                capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
        robot.send_signal(signal.SIGTERM)
        robot.wait(60)
    assert recorded.returncode == ExitCode.OK, recorded.stdout + recorded.stderr
    assert np.ptp(open_lerobot(data)[0].action, axis=0).max() > 0.2
    trained = subprocess.run(
        [sys.executable, "-m", "crane_x7_vla_rl.training.cli", "sft", "--backend", "openvla",
         "--model", str(SHIPPED), "--data-root", str(data), "--output-dir", str(run),
         "--max-steps", "2", "--image-size", "96x96", "--batch-size", "2", "--device", "cpu"],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    shown = subprocess.run(
        command("demo", "--policy", str(run / "last"),
                "--no-record", "--output-dir", str(out), "--timeout", "8", "8"),
        capture_output=True, text=True, timeout=400, env=os.environ | {"PEER_WAIT_TIMEOUT": "120"},
    )  # fmt: skip
    assert shown.returncode in (ExitCode.OK, ExitCode.DEMO_TASK), shown.stderr[-3000:]
    (report,) = out.glob("*/report.json")
    assert json.loads(report.read_text())
