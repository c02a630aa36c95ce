"""A recorded episode moves the arm only through the checks, and can be fed to a loop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_rig import picture
from guard_rig import Caller
from sim_robot_rig import Client, started, state_now

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.record import replay_command
from crane_x7_remote.record.episode_arm import EpisodeArm
from crane_x7_remote.record.replay import APPROACH_RAD_S, SEND_HZ, approach, refusals
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.frames import decode_image, from_message
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter
from crane_x7_vla_rl.robot import HOME_RAD

pytestmark = pytest.mark.timeout(300)

SIZE = (64, 48)
PORTS = re.compile(r"port (\d+), guard on port (\d+)")


def swing(frames: int = 30, shift: float = 0.0) -> Episode:
    """An arm that swings 0.3 rad to one side and back, from a pose near home."""
    state = np.tile(HOME_RAD, (frames + 1, 1))
    state[:, 0] = 0.2 + 0.3 * np.sin(np.linspace(0, np.pi, frames + 1))
    state[:, 3] += shift
    images = [picture(0, t, SIZE) for t in range(frames)]
    values = state.astype(np.float32)
    return Episode(images, values[:-1], values[1:], "swing", 10.0, None, "rig")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes: one that the arm can follow, one beyond its limits."""
    folder = tmp_path_factory.mktemp("replay") / "data"
    with LeRobotWriter(folder, 10.0, SIZE) as writer:
        writer.add(swing())
        writer.add(swing(shift=2.2))
    return folder


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    flags = ("--arm", "kinematic", "--port", "0", "--guard", "0")
    with started(*flags, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        found = PORTS.search(process.stdout.readline())
        assert found is not None
        yield int(found[1]), int(found[2])


def replay(folder: Path, port: int, *flags: str) -> subprocess.Popen[str]:
    words = ["replay", str(folder), "--rosbridge-host=127.0.0.1", f"--rosbridge-port={port}"]
    return subprocess.Popen(
        [sys.executable, "-m", "crane_x7_remote", *words, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def trajectories(port: int) -> int:
    """How many trajectories the controller has accepted."""
    with Caller(port) as caller:
        state: dict[str, Any] = state_now(Client(caller.link))
    accepted: int = state["controller"]["accepted"]
    return accepted


def test_the_arm_repeats_the_episode_through_the_guard(
    folder: Path, ports: tuple[int, int]
) -> None:
    before = trajectories(ports[0])
    done = replay(folder, ports[1], "--json", "--slower", "1.5")
    out, errors = done.communicate(timeout=120)
    assert done.returncode == ExitCode.OK, errors
    report = json.loads(out)
    assert report["frames"] == 30
    assert report["worst_rad"] < 0.15
    assert report["final_rad"] < 0.03
    assert trajectories(ports[0]) > before + 20


def test_a_dry_run_names_what_would_be_refused_and_moves_nothing(
    folder: Path, ports: tuple[int, int]
) -> None:
    before = trajectories(ports[0])
    good = replay(folder, ports[0], "--dry-run")
    out, errors = good.communicate(timeout=60)
    assert good.returncode == ExitCode.OK, errors
    assert out.endswith("30 actions pass the checks; nothing was sent\n")
    bad = replay(folder, ports[0], "--dry-run", "--episode", "1")
    _, errors = bad.communicate(timeout=60)
    assert bad.returncode == ExitCode.RECORD
    assert "would be refused:\n  the way to the first pose " in errors
    assert "joint_limit: crane_x7_upper_arm_revolute_part_rotate_joint" in errors
    assert trajectories(ports[0]) == before


def test_an_episode_beyond_the_limits_ends_with_the_reason(
    folder: Path, ports: tuple[int, int]
) -> None:
    done = replay(folder, ports[0], "--episode", "1")
    _, errors = done.communicate(timeout=120)
    assert done.returncode == ExitCode.RECORD
    # On a busy machine another refusal may come first.
    assert re.search(r"stopped: targets refused for .* s; \w+: |did not reach the first", errors)


def test_a_stop_at_the_guard_ends_the_replay(folder: Path, ports: tuple[int, int]) -> None:
    done = replay(folder, ports[1], "--slower", "20")
    assert done.stdout is not None
    while "replaying 30 frames" not in done.stdout.readline():
        assert done.poll() is None
    with Caller(ports[1], "/stop") as caller:
        caller.publish("/vla/stop", {"data": True})
        _, errors = done.communicate(timeout=60)
        caller.publish("/vla/stop", {"data": False})
        time.sleep(0.3)
    assert done.returncode == ExitCode.RECORD
    assert "; stopped: " in errors


def test_a_signal_brings_the_arm_to_rest(folder: Path, ports: tuple[int, int]) -> None:
    done = replay(folder, ports[0], "--slower", "20")
    assert done.stdout is not None
    while "replaying 30 frames" not in done.stdout.readline():
        assert done.poll() is None
    done.send_signal(signal.SIGINT)
    _, errors = done.communicate(timeout=60)
    assert done.returncode == ExitCode.OK
    assert "stopped by a signal; the arm is at rest" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--episode", "2"), "has 2 episodes, from 0; --episode is 2"),
        (("--camera", "wrist"), 'has no camera "wrist"'),
    ],
)
def test_an_episode_that_is_not_there_is_said_before_anything_moves(
    folder: Path, flags: tuple[str, ...], message: str
) -> None:
    done = replay(folder, 1, *flags)
    _, errors = done.communicate(timeout=60)
    assert done.returncode == ExitCode.RECORD
    assert message in errors


def test_the_way_to_the_first_pose_is_slow_and_at_rest_at_both_ends() -> None:
    goal = HOME_RAD + 0.8
    path = approach(HOME_RAD, goal)
    speed = np.abs(np.diff(path, axis=0)) * SEND_HZ
    assert speed.max() <= APPROACH_RAD_S * 1.05
    assert speed[0].max() < 0.05
    assert speed[-1].max() < 0.05
    np.testing.assert_allclose(path[[0, -1]], [HOME_RAD, goal])


def test_actions_that_are_too_fast_are_said_to_need_slower() -> None:
    episode = swing(frames=4)
    fast = Episode(episode.images, episode.state, episode.action, "x", 200.0, None, "rig")
    assert any("--slower" in line for line in refusals(fast, HOME_RAD, Limits()))
    assert list(refusals(swing(), HOME_RAD, Limits())) == []


def test_a_served_episode_begins_with_the_first_image_and_ends() -> None:
    episode, ended = swing(), threading.Event()
    arm = EpisodeArm(episode, 1 / 30, ended)
    for _ in range(5):
        arm.step(HOME_RAD)
    np.testing.assert_allclose(arm.joints().position_rad, episode.state[0], atol=1e-6)
    for step in range(90):
        frame = decode_image(from_message(messages.compressed_image(arm.jpeg(), 1.0), 0.0))
        now = min(step // 3, 29)
        assert np.abs(frame.astype(int) - episode.image(now)).max() < 25
        arm.step(HOME_RAD)
    assert ended.wait(0) or not arm.step(HOME_RAD)
    arm.step(HOME_RAD)
    assert ended.is_set()


def test_an_episodes_wrist_camera_is_served_on_its_topic(tmp_path: Path) -> None:
    both = replace(swing(), others={"wrist": [picture(50, t, SIZE) for t in range(30)]})
    folder, topic = tmp_path / "two", "/wrist/image_raw/compressed"
    with LeRobotWriter(folder, 10.0, SIZE, extras=Extras({"wrist": SIZE})) as writer:
        writer.add(both)
    done = replay(folder, 1, "--to-loop", "0", "--wrist-camera-topic", topic)
    try:
        assert done.stdout is not None
        found = re.search(r"--rosbridge-port (\d+)", done.stdout.readline())
        assert found is not None
        with Caller(int(found[1])) as caller:
            images = {}
            for name in (topic, "/camera/color/image_raw/compressed"):
                caller.subscribe(name, "sensor_msgs/CompressedImage", "cbor")
            while len(images) < 2:
                message = caller.next("publish")
                images[message["topic"]] = decode_image(from_message(message["msg"], 0.0))
    finally:
        done.kill()
        done.communicate()
    for name, shift in ((topic, 50), ("/camera/color/image_raw/compressed", 0)):
        nearest = min(
            np.abs(images[name].astype(int) - picture(shift, t, SIZE)).max() for t in range(30)
        )
        assert nearest < 25, name


@pytest.mark.parametrize(
    ("topic", "has_images", "said", "served"),
    [
        ("/w", True, "", "/w"),
        ("", True, "name its topic with WRIST_CAMERA_TOPIC", ""),
        ("/w", False, "/w stays silent", ""),
        ("", False, "", ""),
    ],
)
def test_a_wrist_camera_that_cannot_be_served_is_said(
    caplog: pytest.LogCaptureFixture, topic: str, has_images: bool, said: str, served: str
) -> None:
    others = {"wrist": [picture(1, t, SIZE) for t in range(30)]} if has_images else {}
    settings = Settings(wrist_camera_topic=topic)
    assert replay_command._wrist_topic(settings, replace(swing(), others=others)) == served
    assert (said in caplog.text) if said else not caplog.text


def test_a_loop_is_fed_with_an_episode(folder: Path, tmp_path: Path) -> None:
    done = replay(folder, 1, "--to-loop", "0")
    try:
        assert done.stdout is not None
        ready = re.search(r"--rosbridge-port (\d+)", done.stdout.readline())
        assert ready is not None
        metrics = tmp_path / "metrics.json"
        loop = subprocess.run(
            [sys.executable, "-m", "crane_x7_remote", "infer", "--policy", "color-servo",
             "--camera-pose", "sim", "--dry-run", "--duration", "10", f"--metrics={metrics}",
             "--rosbridge-host=127.0.0.1", f"--rosbridge-port={ready[1]}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert loop.returncode == ExitCode.OK, loop.stderr
        out, errors = done.communicate(timeout=60)
    finally:
        done.kill()
        done.communicate()
    assert done.returncode == ExitCode.OK, errors
    assert "the episode is over: 30 frames" in out
    found = json.loads(metrics.read_text())
    assert found["frames_used"] > 5
