"""The demo: whole and real once, its parts against bad ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from crane_x7_remote import cli
from crane_x7_remote.demo import pictures, report
from crane_x7_remote.demo.children import Child
from crane_x7_remote.demo.command import fulfilled
from crane_x7_remote.demo.recorder import Recording
from crane_x7_remote.errors import DemoError, ExitCode, OutputError
from crane_x7_remote.rosbridge.messages import EncodedFrame, ParsedTrajectory
from crane_x7_remote.sim_robot.arm import still_picture
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES

DEMO = [sys.executable, "-m", "crane_x7_remote", "demo"]


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of `pids` that still run; zombies do not count."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.add(pid)
    return running


def wait_for(path: Path, text: str, timeout_s: float = 60.0) -> None:
    """Wait until a file of the given pattern under `path` holds `text`."""
    deadline = time.monotonic() + timeout_s
    while not any(text in log.read_text(errors="replace") for log in path.glob("*/*.log")):
        assert time.monotonic() < deadline, f"{text!r} not seen in {timeout_s} s"
        time.sleep(0.1)


def test_demo_lifts_the_red_cube_and_places_the_blue_one(tmp_path: Path) -> None:
    """The main job, whole: two processes, rosbridge between them, the task changed midway."""
    figures = tmp_path / "figures.json"
    command = [*DEMO, "--output-dir", str(tmp_path / "out"), "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(figures.read_text())
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "report.json").read_text()) == made
    assert made["picked"] == ["red", "blue"]
    assert made["placed"] == ["blue"]
    assert made["controller"]["limit_violations"] == 0
    assert made["trajectories"] > 50
    assert made["rate_hz"] == pytest.approx(10, rel=0.02)
    assert made["latency_ms"]["count"] == made["trajectories"]
    with av.open(str(folder / "demo.mp4")) as video:
        pictures_seen = sum(1 for _ in video.decode(video=0))
    assert pictures_seen == made["recorded"]["frames"] > 60
    for name in ("targets.png", "latency.png", "frame.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_robot_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DEMO, "--output-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path, "driving")
        below = descendants(process.pid)
        robots = [pid for pid in below if b"sim-robot" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(min(robots), signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == ExitCode.DEMO_CHILD
    assert "sim-robot ended with exit code -9" in errors
    assert "ready: sim-robot serves rosbridge" in errors
    assert "Traceback" not in errors
    assert not alive(below)


def test_interrupt_stops_everything_and_still_reports(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DEMO, "--output-dir", str(tmp_path), "--no-record"], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path, "driving")
        below = descendants(process.pid)
        assert len(below) >= 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == ExitCode.DEMO_TASK, errors
    assert not alive(below)
    (path,) = tmp_path.glob("*/report.json")
    assert json.loads(path.read_text())["succeeded"] is False


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 gives no chance to clean up: the kernel must tell the children."""
    code = (
        "import time; from pathlib import Path\n"
        "from crane_x7_remote.demo.children import Child\n"
        f"child = Child('sim-robot', ['sim-robot', '--arm', 'kinematic', '--port', '0'],"
        f" Path({str(tmp_path / 'robot.log')!r}))\n"
        "child.wait_for_line('ready', 30)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive({child})
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while alive({child}):
        assert time.monotonic() < deadline, "the robot outlived its parent"
        time.sleep(0.05)


def test_child_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    command = ["sim-robot", "--arm", "kinematic", "--port", "0"]
    with Child("sim-robot", command, tmp_path / "log") as child:
        child.wait_for_line("ready", 30)
        with pytest.raises(DemoError, match="did not say 'never'"):
            child.wait_for_line("never", 0.2)


def test_child_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    with (
        Child("sim-robot", ["sim-robot", "--port", "70000"], tmp_path / "log") as child,
        pytest.raises(DemoError, match="exit code 2"),
    ):
        child.wait_for_line("ready", 30)


def test_output_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cli.main(["demo", "--output-dir", str(blocked)]) == ExitCode.OUTPUT
    assert "choose another --output-dir" in capsys.readouterr().err


def test_report_on_a_full_disk_is_an_error() -> None:
    with pytest.raises(OutputError, match="No space left"):
        report.write({"seed": 0}, Path("/dev/full"))


@pytest.mark.parametrize(
    ("instruction", "state", "expected"),
    [
        ("pick up the red cube", {"lifted": True, "placed": False}, True),
        ("pick up the red cube", {"lifted": False, "placed": True}, False),
        ("Place the RED cube on the plate", {"lifted": False, "placed": True}, True),
        ("place the red cube on the plate", {"lifted": True, "placed": False}, False),
        ("pick up the blue cube", {"lifted": True, "placed": True}, False),
        ("wait", {"lifted": True, "placed": True}, False),
    ],
)
def test_an_instruction_is_fulfilled_by_its_own_cube_alone(
    instruction: str, state: dict[str, bool], expected: bool
) -> None:
    assert fulfilled(instruction, {"cubes": {"red": state}}) is expected
    assert fulfilled(instruction, {}) is False


def recording(lag_s: float) -> Recording:
    """Ten seconds of a joint that follows its targets `lag_s` late."""
    made = Recording(instructions=[(0.0, "first"), (5.0, "second")])
    picture = still_picture(160, 120)
    for tick in range(100):
        time_s = 0.1 * tick
        made.frames.append(EncodedFrame(picture, "jpeg", time_s, 0.0))
        made.joint_times_s.append(time_s)
        made.joint_rad.append(HOME_RAD + 0.1 * (time_s - lag_s))
        offsets = np.array([0.05, 0.12, 0.25])
        made.trajectories.append(
            ParsedTrajectory(
                joint_names=JOINT_NAMES,
                position_rad=HOME_RAD + 0.1 * (time_s + offsets[:, None]),
                velocity_rad_s=None,
                acceleration_rad_s2=None,
                time_from_start_s=offsets,
                stamp_s=time_s,
                session="00000000",
                sequence=tick,
                valid_s=0.5,
            )
        )
    return made


def test_a_newer_trajectory_replaces_the_rest_of_the_one_before() -> None:
    times, positions = recording(0.0).commanded()
    assert np.all(np.diff(times) > 0)
    assert len(times) == len(positions) == 99 * 2 + 3


def test_tracking_error_is_the_lag_times_the_speed() -> None:
    error = report.tracking_error_rad(recording(lag_s=0.3))
    assert error is not None
    assert error["p50"] == pytest.approx(0.03, abs=1e-6)
    assert report.tracking_error_rad(Recording()) is None


def test_captions_change_with_the_instruction(tmp_path: Path) -> None:
    made = recording(0.0)
    assert pictures.instruction_at(made, 4.9) == "first"
    assert pictures.instruction_at(made, 5.0) == "second"
    assert pictures.write_video(made, tmp_path / "video.mp4") == 100
    assert pictures.write_video(Recording(), tmp_path / "empty.mp4") == 0


def test_report_of_an_empty_run_is_still_whole() -> None:
    outcome = report.Outcome(3, "a", None, (), (), None, None, 0.0)
    built: dict[str, Any] = report.build(outcome, {}, {}, Recording())
    assert built["seed"] == 3
    assert built["succeeded"] is False
    assert built["versions"]["mani_skill"]
