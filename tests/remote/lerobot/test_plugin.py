"""LeRobot's own commands drive, record and replay on the simulated robot through the plugin.

Each command runs as a user types it, in LeRobot's environment, with the plugin installed from its
folder; the robot is a `sim-robot` with the kinematic arm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from sim_robot_rig import ready_port, started
from websockets.sync.client import connect

from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.lerobot_env import interpreter
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, HOME_RAD, JOINT_NAMES

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(900)]

PLUGIN = ROOT / "crane_x7_remote/lerobot/plugin"
SIZE = (160, 120)
TASK = "wave"


def python() -> Path:
    return interpreter(os.environ.get("LEROBOT_VENV"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, installed as pip installs it."""
    source = tmp_path_factory.mktemp("plugin") / "source"
    shutil.copytree(PLUGIN, source)
    target = source.with_name("site")
    done = subprocess.run(
        [python(), "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--target", target, source],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def run(site: Path, command: str, *flags: str, expected: int = 0) -> str:
    """Run a LeRobot command; return what it printed."""
    home = site.parent
    done = subprocess.run(
        [python().with_name(command), *flags],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=home,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "PYTHONPATH": f"{site}:{ROOT}",
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "NUMBA_DISABLE_JIT": "1",
        },
    )
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert (done.returncode == 0) == (expected == 0), said
    return said


class Leader:
    """Moves an arm to and fro, as a person would: small, slow, always near where it is."""

    def __init__(self, port: int) -> None:
        self._stop = threading.Event()
        self._port = port
        self._thread = threading.Thread(target=self._wave)
        self._thread.start()

    def _wave(self) -> None:
        with connect(f"ws://127.0.0.1:{self._port}", compression=None) as socket:
            topic = "/crane_x7_arm_controller/joint_trajectory"
            socket.send(
                protocol.encode_json(
                    protocol.advertise(topic, "trajectory_msgs/JointTrajectory", id="leader")
                )
            )
            began_s = time.monotonic()
            while not self._stop.wait(0.1):
                angle = 0.4 * np.sin((time.monotonic() - began_s) * 1.5)
                position = HOME_RAD[:7] + np.array([angle, 0, 0, 0, 0, 0, angle / 2])
                point = {
                    "positions": position.tolist(), "velocities": [0.0] * 7, "accelerations": [],
                    "effort": [], "time_from_start": {"sec": 0, "nanosec": 200_000_000},
                }  # fmt: skip
                message = {
                    "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
                    "joint_names": list(ARM_JOINT_NAMES), "points": [point],
                }  # fmt: skip
                socket.send(protocol.encode_json(protocol.publish(topic, message)))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)


@contextmanager
def arm(*flags: str) -> Iterator[int]:
    common = ("--arm", "kinematic", "--port", "0", "--control-rate", "60")
    with started(*common, *flags, stderr=subprocess.DEVNULL) as process:
        yield ready_port(process)


@pytest.fixture
def follower() -> Iterator[int]:
    with arm() as port:
        yield port


@pytest.fixture
def leader() -> Iterator[int]:
    with arm("--joint-states-topic", "/leader/joint_states") as port:
        hand = Leader(port)
        try:
            yield port
        finally:
            hand.close()


def robot(port: int) -> list[str]:
    return [
        "--robot.type=crane_x7_rosbridge", "--robot.id=test", "--robot.host=127.0.0.1",
        f"--robot.port={port}",
    ]  # fmt: skip


def teleop(port: int) -> list[str]:
    return [
        "--teleop.type=crane_x7_leader", "--teleop.id=hand", "--teleop.host=127.0.0.1",
        f"--teleop.port={port}",
    ]  # fmt: skip


def panned_rad(port: int, duration_s: float = 0.0) -> float:
    """Return how far the first joint moves in this time."""
    with connect(f"ws://127.0.0.1:{port}", compression=None) as socket:
        socket.send(
            protocol.encode_json(
                protocol.subscribe("/joint_states", "sensor_msgs/JointState", id="watch")
            )
        )
        seen, end_s = [], time.monotonic() + duration_s
        while time.monotonic() < end_s or not seen:
            operation = protocol.decode(socket.recv(timeout=5))
            if operation["op"] == "publish":
                seen.append(messages.joint_state(operation["msg"]).position_rad[0])
    return float(np.ptp(seen))


@pytest.fixture(scope="module")
def recorded(site: Path) -> Path:
    """Two episodes that `lerobot-record` made."""
    folder = site.parent / "recorded"
    with arm() as follower, arm("--joint-states-topic", "/leader/joint_states") as port:
        hand = Leader(port)
        try:
            run(
                site, "lerobot-record", *robot(follower), *teleop(port),
                "--dataset.repo_id=local/waves", f"--dataset.root={folder}", "--dataset.fps=10",
                "--dataset.num_episodes=2", "--dataset.episode_time_s=3",
                "--dataset.reset_time_s=1", f"--dataset.single_task={TASK}",
                "--dataset.push_to_hub=false", "--play_sounds=false",
            )  # fmt: skip
        finally:
            hand.close()
    found = [folder] if (folder / "meta").is_dir() else list(folder.parent.glob("recorded*"))
    return found[0]


def test_lerobot_record_writes_what_our_reader_reads(recorded: Path) -> None:
    info = json.loads((recorded / "meta/info.json").read_text())
    assert info["robot_type"] == "crane_x7_rosbridge"
    assert info["features"]["action"]["names"] == [f"{name}.pos" for name in JOINT_NAMES]
    source = open_lerobot(recorded)
    assert source.camera == "observation.images.base"
    for number in range(2):
        episode = source[number]
        assert episode.instruction == TASK
        assert len(episode) >= 10
        assert episode.image(3).shape == (480, 640, 3)
        assert np.ptp(episode.action[:, 0]) > 0.2
        # The follower is behind the leader by follow_s and the link, at 0.6 rad/s.
        assert np.abs(episode.action - episode.state)[5:].max() < 0.4


def test_lerobot_replay_moves_the_arm_along_the_recording(
    site: Path, recorded: Path, follower: int
) -> None:
    run(
        site, "lerobot-replay", *robot(follower), "--dataset.repo_id=local/waves",
        f"--dataset.root={recorded}", "--dataset.episode=0", "--play_sounds=false",
    )  # fmt: skip
    action = open_lerobot(recorded)[0].action
    with connect(f"ws://127.0.0.1:{follower}", compression=None) as socket:
        socket.send(
            protocol.encode_json(
                protocol.subscribe("/joint_states", "sensor_msgs/JointState", id="end")
            )
        )
        operation = protocol.decode(socket.recv(timeout=5))
        while operation["op"] != "publish":
            operation = protocol.decode(socket.recv(timeout=5))
    end = messages.joint_state(operation["msg"]).position_rad
    assert abs(end[0] - action[-1, 0]) < 0.2
    assert np.abs(action[:, 0]).max() > 0.1


def test_lerobot_teleoperate_follows_the_leader(site: Path, follower: int, leader: int) -> None:
    moved: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            moved.append(panned_rad(follower, 2.0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        said = run(
            site, "lerobot-teleoperate", *robot(follower), *teleop(leader), "--fps=20",
            "--teleop_time_s=6",
        )  # fmt: skip
    finally:
        done.set()
        thread.join()
    assert "Teleop loop time" in said
    assert max(moved) > 0.2


def test_lerobot_rollout_drives_with_a_policy_of_its_trainer(
    site: Path, recorded: Path, follower: int
) -> None:
    out = site.parent / "act"
    options = {
        "dataset.repo_id": "local/waves", "dataset.root": recorded,
        "dataset.video_backend": "pyav", "policy.type": "act", "policy.device": "cpu",
        "policy.push_to_hub": "false", "policy.pretrained_backbone_weights": "null",
        "policy.chunk_size": 4, "policy.n_action_steps": 4, "policy.dim_model": 64,
        "policy.dim_feedforward": 128, "policy.n_heads": 4, "steps": 2, "batch_size": 2,
        "num_workers": 0, "save_freq": 2, "output_dir": out, "wandb.enable": "false",
    }  # fmt: skip
    if not out.exists():
        run(site, "lerobot-train", *(f"--{key}={value}" for key, value in options.items()))
    checkpoint = out / "checkpoints/000002/pretrained_model"
    said = run(
        site, "lerobot-rollout", "--strategy.type=base", f"--policy.path={checkpoint}",
        "--policy.device=cpu", *robot(follower), f"--task={TASK}", "--duration=5", "--fps=10",
    )  # fmt: skip
    assert re.search("Rollout finished|Duration limit", said)


PUSH = """
import sys, time
from lerobot_robot_crane_x7 import CraneX7Rosbridge, CraneX7RosbridgeConfig
port, speed = int(sys.argv[1]), float(sys.argv[2])
arm = CraneX7Rosbridge(CraneX7RosbridgeConfig(id="t", host="127.0.0.1", port=port, speed=speed))
arm.connect()
seen = arm.get_observation()
name = "crane_x7_shoulder_fixed_part_pan_joint.pos"
target = {key: value for key, value in seen.items() if key.endswith(".pos")}
target[name] += 0.8
for _ in range(60):
    arm.send_action(target)
    time.sleep(0.05)
assert abs(arm.get_observation()[name] - target[name]) < 0.02, "the arm arrives"
arm.disconnect()
"""


def fastest_rad_s(site: Path, speed: float) -> float:
    """Push the first joint by 0.8 rad through the plugin; return its highest measured speed."""
    seen = [0.0]
    with arm() as port, connect(f"ws://127.0.0.1:{port}", compression=None) as socket:
        subscribed = protocol.subscribe("/joint_states", "sensor_msgs/JointState", id="watch")
        socket.send(protocol.encode_json(subscribed))

        def watch() -> None:
            for payload in socket:
                operation = protocol.decode(payload)
                if operation["op"] == "publish":
                    state = messages.joint_state(operation["msg"])
                    seen.append(abs(float(state.velocity_rad_s[0])))

        thread = threading.Thread(target=watch)
        thread.start()
        run(site, "python", "-c", PUSH, str(port), str(speed))
        socket.close()
        thread.join(10)
    return max(seen)


def test_speed_slows_the_arm_as_it_does_for_infer(site: Path) -> None:
    slow, full = (fastest_rad_s(site, speed) for speed in (0.3, 1.0))
    limit_rad_s = float(Limits(speed=0.3).path_rad_s[0])
    assert 0 < slow <= 1.02 * limit_rad_s
    assert full > 1.5 * slow


def test_a_speed_that_is_no_share_is_refused(site: Path) -> None:
    said = run(site, "lerobot-teleoperate", *robot(1), *teleop(1), "--robot.speed=30", expected=1)
    assert "robot.speed is 30.0, expected above 0 and at most 1" in said


def test_a_robot_that_is_not_there_is_named(site: Path, leader: int) -> None:
    said = run(
        site, "lerobot-teleoperate", *robot(1), *teleop(leader), "--robot.connect_s=1",
        "--teleop_time_s=2", expected=1,
    )  # fmt: skip
    assert "rosbridge at 127.0.0.1:1" in said


def test_a_camera_of_another_size_names_the_flags(site: Path, follower: int, leader: int) -> None:
    said = run(
        site, "lerobot-teleoperate", *robot(follower), *teleop(leader), "--robot.width=320",
        "--robot.height=240", "--teleop_time_s=2", expected=1,
    )  # fmt: skip
    assert "set --robot.width=640 --robot.height=480" in said
