"""The demo: whole and real once, its parts against bad ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from processes import descendants, is_alive, survivors

from crane_x7_remote import cli
from crane_x7_remote.demo import pictures, report
from crane_x7_remote.demo import plan as plan_module
from crane_x7_remote.demo.children import DemoProcess
from crane_x7_remote.demo.command import fulfilled, grasped
from crane_x7_remote.demo.plan import DemoPlan
from crane_x7_remote.demo.recorder import Recording
from crane_x7_remote.errors import (
    DashboardError,
    DemoError,
    ExitCode,
    OutputError,
    PolicyError,
    RemoteError,
    SettingsError,
)
from crane_x7_vla_rl.policies.load import SMALL, TINY
from crane_x7_vla_rl.policies.skills import Skills
from crane_x7_vla_rl.scenes import EVALUATION_SEED

DEMO = [sys.executable, "-m", "crane_x7_remote", "demo"]
COLOR_SERVO = [*DEMO, "--policy", "color-servo"]


def wait_for(path: Path, text: str, timeout_s: float = 60.0) -> None:
    """Wait until a file of the given pattern under `path` holds `text`."""
    deadline = time.monotonic() + timeout_s
    while not any(text in log.read_text(errors="replace") for log in path.glob("*/*.log")):
        assert time.monotonic() < deadline, f"{text!r} not seen in {timeout_s} s"
        time.sleep(0.1)


def test_demo_lifts_the_red_cube_and_places_the_blue_one(tmp_path: Path) -> None:
    """The main job, whole: two processes, rosbridge between them, the task changed midway."""
    figures = tmp_path / "figures.json"
    command = [*COLOR_SERVO, "--output-dir", str(tmp_path / "out"), "--json", str(figures)]
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
    assert made["guard"]["passed"] + made["guard"]["retimed"] > 50
    assert made["guard"]["gate"]["faults"] == 0
    assert made["recorded"]["frames"] > 60
    assert made["recorded"]["views"] > 20
    with av.open(str(folder / "demo.mp4")) as video:
        stream = video.streams.video[0]
        video_s = float(stream.duration * stream.time_base)
    # It starts with the loop, from whose start the report counts.
    assert video_s == pytest.approx(made["duration_s"] + pictures.TAIL_S, abs=0.5)
    assert made["rate_reason"] == "the demo's default"
    for name in ("targets.png", "latency.png", "frame.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # test_policy.py of openvla has a short demo of a model with weights
@pytest.mark.timeout(400)
def test_the_policy_that_ships_does_its_tasks_in_the_demo(tmp_path: Path) -> None:
    """One of three at least, and nothing is touched by hand."""
    figures = tmp_path / "figures.json"
    command = [*DEMO, "--no-record", "--output-dir", str(tmp_path / "out"), "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=350, check=False)
    made = json.loads(figures.read_text())
    assert done.returncode == (ExitCode.OK if made["succeeded"] else ExitCode.DEMO_TASK)
    assert made["policy"] == "openvla"
    assert made["model"] == str(SMALL)
    assert made["random_weights"] is False
    assert [task["instruction"] for task in made["tasks"]] == [
        "pick up the red cube", "place the red cube on the plate", "pick up the blue cube",
    ]  # fmt: skip
    assert any(task["done_s"] is not None for task in made["tasks"])
    assert made["put_back"] == []
    assert made["controller"]["limit_violations"] == 0


def test_robot_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COLOR_SERVO, "--output-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path, "driving")
        below = descendants(process.pid)
        robots = [pid for pid in below if "sim-robot" in psutil.Process(pid).cmdline()]
        os.kill(min(robots), signal.SIGKILL)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == ExitCode.DEMO_CHILD
    assert "sim-robot ended with exit code -9" in errors
    assert "ready: sim-robot serves rosbridge" in errors
    assert "Traceback" not in errors
    assert not survivors(below)


def test_interrupt_stops_everything_and_still_reports(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COLOR_SERVO, "--output-dir", str(tmp_path), "--no-record"],
        stderr=subprocess.PIPE,
        text=True,
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
    assert not any(map(is_alive, below))
    (path,) = tmp_path.glob("*/report.json")
    assert json.loads(path.read_text())["succeeded"] is False


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 gives no chance to clean up: the kernel must tell the children."""
    code = (
        "import time; from pathlib import Path\n"
        "from crane_x7_remote.demo.children import DemoProcess\n"
        f"child = DemoProcess('sim-robot', ['sim-robot', '--arm', 'kinematic', '--port', '0'],"
        f" Path({str(tmp_path / 'robot.log')!r}))\n"
        "child.wait_for_line('ready', 30)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < deadline, "the robot outlived its parent"
        time.sleep(0.05)


def test_child_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    command = ["sim-robot", "--arm", "kinematic", "--port", "0"]
    with DemoProcess("sim-robot", command, tmp_path / "log") as child:
        child.wait_for_line("ready", 30)
        with pytest.raises(DemoError, match="did not print 'never'"):
            child.wait_for_line("never", 0.2)


def test_child_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    with (
        DemoProcess("sim-robot", ["sim-robot", "--port", "70000"], tmp_path / "log") as child,
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


def test_wrong_settings_are_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJECTORY_VALIDITY", "long")
    words = ["demo", "--policy", "color-servo", "--output-dir", str(tmp_path)]
    assert cli.main(words) == ExitCode.SETTINGS
    assert list(tmp_path.iterdir()) == []


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
        ("赤いキューブを持ち上げて", {"lifted": True, "placed": False}, True),
        ("赤いキューブを皿に置いて", {"lifted": True, "placed": False}, False),
        ("赤いキューブを皿に置いて", {"lifted": False, "placed": True}, True),
        ("do not pick up the red cube", {"lifted": True, "placed": False}, False),
        ("wait", {"lifted": True, "placed": True}, False),
    ],
)
def test_an_instruction_is_fulfilled_by_its_own_cube_alone(
    instruction: str, state: dict[str, bool], expected: bool
) -> None:
    assert fulfilled(instruction, {"cubes": {"red": state}}) is expected
    assert fulfilled(instruction, {}) is False


def test_it_means_the_cube_of_the_instruction_before() -> None:
    scene = {"cubes": {"red": {"placed": True}, "blue": {"placed": False}}}
    assert fulfilled("put it on the plate", scene, before="pick up the red cube")
    assert not fulfilled("put it on the plate", scene, before="青いキューブを持ち上げて")
    assert not fulfilled("put it on the plate", scene)


def planned(*flags: str) -> DemoPlan:
    parser = argparse.ArgumentParser()
    plan_module.add_arguments(parser)
    return plan_module.read(parser.parse_args(flags))


def word_after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_what_ships_is_shown_in_scenes_that_it_knows_and_has_not_seen() -> None:
    plan, skills = planned(), Skills.beside(SMALL)
    assert plan.model is not None
    assert skills is not None
    assert plan.instructions == skills.instructions[:3]
    robot = plan_module.robot_command(plan)
    assert word_after(robot, "--task") == "PickPlace-CRANE-X7"
    assert word_after(robot, "--spawn-range-m") == "0.03"
    assert robot[robot.index("--colours") + 1 :][:3] == ["red", "green", "blue"]
    assert word_after(robot, "--seed") == str(EVALUATION_SEED)
    loop = plan_module.loop_command(plan, 1, Path("m.json"))
    assert word_after(loop, "--vla-policy") == "openvla"
    assert word_after(loop, "--vla-model-path") == str(SMALL)
    assert word_after(loop, "--vla-device") == "cpu"
    assert word_after(loop, "--vla-inference-rate") == f"{skills.rate_hz:g}"
    assert word_after(loop, "--vla-temperature") == f"{skills.temperature:g}"
    assert "--max-jump" not in loop  # the loop reads the checkpoint, within its own cap
    other = planned("--policy", "tiny")
    assert word_after(plan_module.robot_command(other), "--task") == "Lift-CRANE-X7"
    assert word_after(plan_module.loop_command(other, 1, Path("m")), "--vla-model-path") == str(
        TINY
    )


def test_a_page_is_the_loops_and_its_port_must_be_free() -> None:
    plan = planned("--policy", "color-servo", "--dashboard")
    assert word_after(plan_module.loop_command(plan, 1, Path("m.json")), "--dashboard") == "8686"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DashboardError, match=rf"127\.0\.0\.1:{port} \(--dashboard\): Address"):
            plan_module.check(planned("--policy", "color-servo", "--dashboard", str(port)))
    with pytest.raises(SystemExit):
        planned("--dashboard", "99999")


def test_colour_servo_has_three_cubes_and_a_plate() -> None:
    plan = planned("--policy", "color-servo", "--seed", "3")
    assert plan.model is None
    assert plan.instructions[1:] == ("place the blue cube on the plate",)
    robot = plan_module.robot_command(plan)
    assert word_after(robot, "--task") == "PickPlace-CRANE-X7"
    assert robot[robot.index("--colours") + 1 :][:3] == ["red", "green", "blue"]
    assert word_after(robot, "--seed") == "3"
    loop = plan_module.loop_command(plan, 1, Path("m.json"))
    assert word_after(loop, "--vla-inference-rate") == "10"
    assert "--vla-model-path" not in loop


def test_a_trained_checkpoint_is_shown_in_the_scene_that_it_was_trained_in(tmp_path: Path) -> None:
    trained = "env: {env_id: Lift-CRANE-X7, colours: [green], spawn_range_m: 0.01}"
    (tmp_path / "train_config.yaml").write_text(trained)
    (tmp_path / "policy.json").write_text('{"period_s": 0.2}')
    plan = planned("--policy", str(tmp_path))
    robot = plan_module.robot_command(plan)
    assert word_after(robot, "--task") == "Lift-CRANE-X7"
    assert robot[robot.index("--colours") + 1 :][:3] == ["green", "--spawn-range-m", "0.01"]
    assert plan.instructions == ("pick up the green cube",)
    assert (plan.skills.rate_hz, plan.rate_reason) == (
        5.0, "the policy's own rate, from its policy.json",
    )  # fmt: skip


def test_flags_count_more_than_what_a_checkpoint_says(tmp_path: Path) -> None:
    Skills("PickPlace-CRANE-X7", ("blue",), 0.01, ("lift it",), 5.0, 0.5).write(tmp_path)
    plan = planned("--policy", str(tmp_path))
    assert (plan.instructions, plan.skills.temperature) == (("lift it",), 0.5)
    plan = planned(
        "--policy", str(tmp_path), "--then", "now drop it", "", "lift it",
        "--colours", "red", "green", "--spawn-range-m", "0", "--rate", "2", "--temperature", "0",
    )  # fmt: skip
    assert plan.instructions == ("lift it", "now drop it", "lift it")
    assert plan.skills.colours == ("red", "green")
    assert (plan.skills.spawn_range_m, plan.skills.rate_hz, plan.skills.temperature) == (0, 2, 0)


@pytest.mark.parametrize(
    ("flags", "kind", "said"),
    [
        (
            ["--policy", "colour-servo"],
            SettingsError,
            "colour-servo is unknown: expected small, tiny, co",
        ),
        (["--instruction", " "], SettingsError, "--instruction is empty"),
        (["--timeout", "0", "5"], SettingsError, "expected positive numbers"),
        (["--policy", "."], PolicyError, r"skills\.json cannot be read as JSON"),
    ],
)
def test_what_cannot_be_shown_is_named(
    flags: list[str], kind: type[RemoteError], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "skills.json").write_text("no")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=said):
        planned(*flags)


def test_what_the_fingers_hold_is_known_from_the_true_scene() -> None:
    held = {"grasped": True, "lifted": False}
    assert grasped({"cubes": {"red": held, "blue": held | {"grasped": False}}}) == ("red",)
    assert grasped({}) == ()


def test_report_of_an_empty_run_is_still_whole() -> None:
    outcome = report.DemoResult(3, (report.TaskResult("a", None),), (), (), 0.0)
    built: dict[str, Any] = report.build(outcome, {}, {}, Recording())
    assert built["seed"] == 3
    assert built["succeeded"] is False
    assert built["versions"]["mani_skill"]
