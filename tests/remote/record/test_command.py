"""`record` with a simulated robot behind a guard: topics, orders, faults, the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_rig import FPS, SIZE, seen_twice
from fake_hub_upload import Taker, UploadHub
from guard_rig import Caller
from record_rig import TASK
from sim_robot_rig import started

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.rosbridge.topics import RECORD_STATUS_TOPIC, RECORD_TOPIC, STRING
from crane_x7_remote.sim_robot.robot import SIM_CLOCK_STEP_TOPIC
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter, open_lerobot, recover
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD, JOINT_NAMES

pytestmark = pytest.mark.timeout(300)

ARM, LEADER = "/crane_x7_arm_controller/joint_trajectory", "/teleop/leader/state"
PORTS = re.compile(r"port (\d+), guard on port (\d+)")


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """The ports of rosbridge and of the guard."""
    flags = ("--arm", "kinematic", "--port", "0", "--guard", "0", "--image-size", "64x48")
    with started(*flags, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        found = PORTS.search(process.stdout.readline())
        assert found is not None
        yield int(found[1]), int(found[2])


class Recording:
    """A `record` process and what it has said."""

    def __init__(self, folder: Path, port: int, *flags: str, stdin: int = subprocess.DEVNULL):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crane_x7_remote", "record", str(folder),
             "--rosbridge-host=127.0.0.1", f"--rosbridge-port={port}", *flags],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self.process.stdout, self.lines), (self.process.stderr, self.errors)
            )
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(line.rstrip("\n") for line in stream)

    def wait_for(self, text: str, seconds: float = 60.0, count: int = 1) -> None:
        end_s = time.monotonic() + seconds
        while sum(text in line for line in self.lines + self.errors) < count:
            assert time.monotonic() < end_s, (text, self.lines, self.errors)
            assert self.process.poll() is None or self._has(text, count), (self.lines, self.errors)
            time.sleep(0.02)

    def _has(self, text: str, count: int) -> bool:
        for thread in self._threads:
            thread.join(5)
        return sum(text in line for line in self.lines + self.errors) >= count

    def end(self, seconds: float = 60.0) -> int:
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(5)
        return code


@contextmanager
def recording(folder: Path, port: int, *flags: str, **more: Any) -> Iterator[Recording]:
    made = Recording(folder, port, *flags, **more)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.end()


def order(client: Caller, word: str) -> None:
    client.publish(RECORD_TOPIC, {"data": word})


def status(client: Caller, until: Any) -> dict[str, Any]:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        found: dict[str, Any] = json.loads(
            client.next("publish", RECORD_STATUS_TOPIC, 30)["msg"]["data"]
        )
        if until(found):
            return found
    raise AssertionError("no such status")


def swing(stop: threading.Event, port: int) -> None:
    """Drive the arm to and fro, as a program without this project's loop would."""
    with Caller(port) as client:
        client.send({"op": "advertise", "topic": ARM, "type": "trajectory_msgs/JointTrajectory"})
        side = 1
        while not stop.wait(0.5):
            side = -side
            target = HOME_RAD[:7] + 0.2 * side
            due = {"sec": 0, "nanosec": 400_000_000}
            point = {"positions": target.tolist(), "velocities": [], "accelerations": [],
                     "effort": [], "time_from_start": due}  # fmt: skip
            header = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}
            client.publish(
                ARM, {"header": header, "joint_names": list(ARM_JOINT_NAMES), "points": [point]}
            )


@pytest.fixture
def moving(ports: tuple[int, int]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=swing, args=(stop, ports[0]))
    thread.start()
    yield
    stop.set()
    thread.join(10)


@pytest.mark.usefixtures("moving")
def test_episodes_are_recorded_on_orders_through_the_guard(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    with (
        Caller(ports[1]) as client,
        recording(folder, ports[1], "--instruction", TASK, "--json") as run,
    ):
        client.subscribe(RECORD_STATUS_TOPIC, STRING)
        client.send({"op": "advertise", "topic": RECORD_TOPIC, "type": STRING})
        run.wait_for("ready: records to")
        order(client, "start")
        running = status(client, lambda found: found["frames"] >= 15)
        assert running["recording"]
        assert running["folder"] == str(folder)
        order(client, "stop")
        status(client, lambda found: found["kept"] == 1)
        order(client, "start")
        status(client, lambda found: found["frames"] >= 5)
        order(client, "discard")
        status(client, lambda found: not found["recording"])
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == ExitCode.OK
    summary = json.loads(run.lines[-1])
    assert summary == {"folder": str(folder), "kept": 1, "new": 1, "discarded": 1,
                       "ended_early": 0, "below_rate": summary["below_rate"]}  # fmt: skip
    episode = open_lerobot(folder)[0]
    assert len(episode) >= 14
    assert episode.instruction == TASK
    assert np.ptp(episode.state[:, 0]) > 0.1
    # The program's targets, 0.2 rad to either side of home, and the gripper as measured.
    assert np.abs(np.abs(episode.action[:, 0] - HOME_RAD[0]).max() - 0.2) < 0.02
    np.testing.assert_allclose(episode.action[:, 7], HOME_RAD[7], atol=1e-3)


@pytest.mark.usefixtures("moving")
def test_a_kill_between_two_episodes_loses_none_and_resume_adds(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    folder, flags = tmp_path / "data", ("--instruction", TASK, "--start", "--longest", "1")
    with recording(folder, ports[0], *flags) as run:
        run.wait_for("episode 0 kept")
        os.kill(run.process.pid, signal.SIGKILL)
    again = (*flags, "--action", "next", "--episodes", "1")
    with recording(folder, ports[0], *again) as run:
        assert run.end() == ExitCode.RECORD
        assert "holds a data set already; --resume adds to it" in run.errors[-1]
    with recording(folder, ports[0], *again, "--resume") as run:
        assert run.end() == ExitCode.OK
    assert run.lines[-1] == f"{folder}: 2 episodes (1 new)"
    assert len(open_lerobot(folder)) == 2


def test_a_step_of_the_robots_clock_ends_the_episode(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    flags = ("--instruction", TASK, "--start", "--action", "next", "--json")
    with Caller(ports[0]) as client, recording(tmp_path / "data", ports[0], *flags) as run:
        client.subscribe(RECORD_STATUS_TOPIC, STRING)
        client.send({"op": "advertise", "topic": SIM_CLOCK_STEP_TOPIC, "type": "std_msgs/Float64"})
        status(client, lambda found: found["frames"] >= 5)
        client.publish(SIM_CLOCK_STEP_TOPIC, {"data": -20.0})
        run.wait_for("the clock was stepped")
        status(client, lambda found: found["kept"] == 1)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == ExitCode.OK
    assert json.loads(run.lines[-1])["ended_early"] == 1
    assert len(open_lerobot(tmp_path / "data")[0]) >= 4


def joint_state(names: list[str], values: list[float]) -> dict[str, Any]:
    now_s = time.time()
    stamp = {"sec": int(now_s), "nanosec": int(now_s % 1 * 1e9)}
    return {"header": {"stamp": stamp, "frame_id": ""}, "name": names, "position": values,
            "velocity": [], "effort": []}  # fmt: skip


def lead(stop: threading.Event, port: int, names: list[str]) -> None:
    with Caller(port) as client:
        client.send({"op": "advertise", "topic": LEADER, "type": "sensor_msgs/JointState"})
        while not stop.wait(0.02):
            wave = 0.3 * np.sin(time.time())
            client.publish(LEADER, joint_state(names, (HOME_RAD + wave)[: len(names)].tolist()))


@contextmanager
def led(port: int, names: list[str]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=lead, args=(stop, port, names))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def test_a_leaders_joints_become_the_actions(ports: tuple[int, int], tmp_path: Path) -> None:
    flags = ("--instruction", TASK, "--start", "--action", "leader", "--longest", "1.5",
             "--episodes", "1")  # fmt: skip
    with led(ports[0], list(JOINT_NAMES)), recording(tmp_path / "data", ports[0], *flags) as run:
        assert run.end() == ExitCode.OK
    episode = open_lerobot(tmp_path / "data")[0]
    assert np.ptp(episode.action[:, 0]) > 0.02
    assert np.ptp(episode.state[:, 0]) < 1e-3


def test_a_leader_of_other_joints_is_refused_with_their_names(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    names = [f"panda_joint{number}" for number in range(1, 8)]
    flags = ("--instruction", TASK, "--action", "leader", "--wait", "3")
    with led(ports[0], names), recording(tmp_path / "data", ports[0], *flags) as run:
        assert run.end() == ExitCode.RECORD
    error = run.errors[-1]
    assert error.startswith("crane-x7-remote record: nothing usable came within 3 s on /teleop/l")
    assert "panda_joint1" in error
    assert f"lacks {JOINT_NAMES[0]}" in error


def test_a_topic_that_sends_nothing_is_named(ports: tuple[int, int], tmp_path: Path) -> None:
    flags = ("--instruction", TASK, "--camera", "base=/no/camera", "--wait", "1")
    with recording(tmp_path / "data", ports[0], *flags) as run:
        assert run.end() == ExitCode.RECORD
    assert "nothing usable came within 1 s on /no/camera; check the topic's name" in run.errors[-1]


@pytest.mark.parametrize("ending", ["q", signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_as_before_and_keys_work(
    ports: tuple[int, int], tmp_path: Path, ending: Any
) -> None:
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    flags = ("--instruction", TASK, "--action", "next")
    with recording(tmp_path / "data", ports[0], *flags, stdin=theirs) as run:
        run.wait_for("Space: start, stop")
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        os.write(ours, b" ")
        run.wait_for("recording episode 0, started by keyboard")
        time.sleep(1.5)
        if ending == "q":
            os.write(ours, b"q")
        else:
            run.process.send_signal(ending)
        assert run.end() == ExitCode.OK
    assert termios.tcgetattr(theirs) == before
    assert recover(tmp_path / "data") == 1
    os.close(ours)
    os.close(theirs)


def test_a_full_disk_ends_the_command_with_its_code(ports: tuple[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    code = f"""
import resource, sys
from crane_x7_remote import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
sys.exit(cli.main(["record", {str(folder)!r}, "--rosbridge-host=127.0.0.1",
    "--rosbridge-port={ports[0]}", "--instruction", "x", "--start", "--action", "next",
    "--longest", "1", "--episodes", "1"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == ExitCode.OUTPUT, done.stderr
    assert "an episode cannot be written (File too large)" in done.stderr
    assert (recover(folder) or 0) == 0


def test_an_instruction_that_is_none_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "record", str(tmp_path / "data"),
         "--instruction", " "],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == ExitCode.SETTINGS
    assert "--instruction: " in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_recording_is_pushed_at_its_end_and_again_without_a_robot(
    ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first upload fails at its commit: the episode is kept, and the message names the rest."""
    folder, fails = tmp_path / "data", True

    def fault(request: Taker) -> bool:
        if "/commit/" in request.path and fails:
            request.say({"error": "no room"}, 507)
            return True
        return False

    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with UploadHub(token="hf_mine", fault=fault) as hub:
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_mine",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        flags = ("--action", "next", "--instruction", TASK, "--start", "--longest", "1",
                 "--episodes", "1", "--push", "me/arm")  # fmt: skip
        with recording(folder, ports[0], *flags) as made:
            assert made.end() == ExitCode.OUTPUT
        assert "the Hub answered 507" in made.errors[-1]
        assert f"crane-x7-remote record {folder} --upload-only --push me/arm" in made.errors[-1]
        assert len(open_lerobot(folder)) == 1
        assert hub.commits == []
        fails = False
        again = ["record", str(folder), "--upload-only", "--push", "me/arm"]
        done = subprocess.run(
            [sys.executable, "-m", "crane_x7_remote", *again],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == f"{folder} is on the Hub: me/arm, private\n"
    assert hub.private
    assert hub.tagged("v3.0")["meta/info.json"] == (folder / "meta/info.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--upload-only",), "--upload-only: where to? Give --push OWNER/NAME, too"),
        (("--upload-only", "--push", "me/arm"), "holds no data set"),
    ],
)
def test_nothing_to_upload_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with recording(tmp_path / "data", 1, *flags) as made:
        assert made.end() in (ExitCode.RECORD, ExitCode.OUTPUT)
    assert message in made.errors[-1]


def test_a_folder_of_other_cameras_is_refused_before_anything_is_recorded(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    with LeRobotWriter(folder, FPS, SIZE, extras=Extras({"wrist": (24, 16)})) as writer:
        writer.add(replace(seen_twice(), intervention=None))
    with recording(folder, ports[0], "--resume", "--instruction", TASK) as made:
        assert made.end() == ExitCode.RECORD
    assert (
        "its episodes have the cameras base, wrist, the new ones would have base"
        in (made.errors[-1])
    )
