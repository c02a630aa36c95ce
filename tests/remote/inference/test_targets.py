"""Targets of another program move the arm only through the loop's checks."""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from sim_robot_rig import ready_port, started

from crane_x7_remote.errors import PeerUnreachableError
from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.inference.targets import TargetConfig, TargetDriver, TargetError
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_vla_rl.robot import HOME_RAD

TARGET = HOME_RAD + np.array([0.3, -0.2, 0.1, 0.2, -0.1, 0.1, -0.2, 0.4])


@pytest.fixture
def port() -> Iterator[int]:
    with started("--arm", "kinematic", "--port", "0", stderr=subprocess.DEVNULL) as process:
        yield ready_port(process)


@contextmanager
def driver(port: int, **targets: float) -> Iterator[TargetDriver]:
    topics = OutgoingTopics()
    made = TargetDriver(
        ClientConfig("127.0.0.1", port, advertise={STATUS_TOPIC: STRING} | topics.published),
        LoopConfig("0a1b2c3d", 30.0, topics=topics, policy_failing_s=math.inf),
        TargetConfig(**targets),
        Limits(),
    )
    try:
        yield made
    finally:
        made.close()


def drive(made: TargetDriver, target: np.ndarray, duration_s: float = 3.0) -> float:
    """Send the target until the arm is there; return its distance at the end, rad."""
    end_s = time.monotonic() + duration_s
    distance = math.inf
    while time.monotonic() < end_s and not distance <= 0.01:
        made.send(target)
        time.sleep(0.03)
        distance = float(np.abs(made.observe()[1] - target).max())
    return distance


def test_the_arm_goes_to_the_targets(port: int) -> None:
    with driver(port) as made:
        made.start()
        image, joints = made.observe()
        assert image.shape == (480, 640, 3)
        np.testing.assert_allclose(joints, HOME_RAD, atol=0.02)
        assert drive(made, TARGET) < 0.02
        assert drive(made, HOME_RAD) < 0.02


def test_targets_pass_the_guard() -> None:
    flags = ("--arm", "kinematic", "--port", "0", "--guard", "0")
    with started(*flags, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        guard = re.search(r"guard on port (\d+)", process.stdout.readline())
        assert guard is not None
        with driver(int(guard[1])) as made:
            made.start()
            assert drive(made, TARGET) < 0.02


def test_nothing_moves_before_the_first_target_or_after_the_last(port: int) -> None:
    with driver(port, expires_s=0.2) as made:
        made.start()
        time.sleep(0.5)
        np.testing.assert_allclose(made.observe()[1], HOME_RAD, atol=1e-3)
        assert drive(made, TARGET) < 0.02
        time.sleep(1.0)
        assert made.hold is not None
        assert made.hold.reason is HoldReason.POLICY_RAISED
        first = made.observe()[1]
        time.sleep(0.3)
        np.testing.assert_allclose(made.observe()[1], first, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (np.rad2deg(TARGET), "joint_limit"),
        (HOME_RAD + np.array([1.4, 0, 0, 0, 0, 0, 0, 0]), "jump"),
        (HOME_RAD * math.nan, "action_not_finite"),
    ],
)
def test_a_wrong_target_is_refused_and_then_an_error(
    port: int, target: np.ndarray, reason: str
) -> None:
    with driver(port, hold_s=0.5) as made:
        made.start()
        with pytest.raises(TargetError, match=f"targets refused for .* s; {reason}: "):
            drive(made, target)
        np.testing.assert_allclose(made.observe()[1], HOME_RAD, atol=1e-3)


def test_a_robot_that_ends_is_an_error_of_the_next_observation() -> None:
    with started("--arm", "kinematic", "--port", "0", stderr=subprocess.DEVNULL) as process:
        port = ready_port(process)
        with driver(port) as made:
            made.start()
            assert drive(made, TARGET) < 0.02
            process.kill()
            time.sleep(0.6)
            with pytest.raises(TargetError, match=re.escape("s old, limit 0.5 s; is the robot")):
                made.observe()


def test_no_robot_and_no_camera_are_told_apart(port: int) -> None:
    with driver(1, connect_s=0.3) as made, pytest.raises(PeerUnreachableError, match="1: "):
        made.start()
    made = TargetDriver(
        ClientConfig("127.0.0.1", port, camera_topic="/no/camera"),
        LoopConfig("0a1b2c3d", 30.0, policy_failing_s=math.inf),
        TargetConfig(connect_s=2.0),
        Limits(),
    )
    with pytest.raises(TargetError, match="cannot be driven after 2 s; no_frame: "):
        made.start()
