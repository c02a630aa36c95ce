"""A policy of two cameras: the loop gives it both newest images, or holds and says why.

On a fake clock, with a real client and a robot whose wrist camera fails, and as processes through
the guard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_rig import PICTURE, FaultyRobot, RunningLoop, SwingingPolicy, wait_until
from plain_policy_server import PlainPolicyServer
from tick_rig import ROBOT_CLOCK_S, MovingPolicy, Rig, a_jpeg

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.rosbridge.frames import EncodedFrame, decode_image
from crane_x7_remote.sim_robot.arm import still_picture
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import Observation

WRIST_TOPIC = "/wrist/image_raw/compressed"


class TwoCameraPolicy(MovingPolicy):
    more_cameras = ("wrist",)


def seeing(rig: Rig, age_s: float = 0.02, stamp_offset_s: float = 0.0, **other: Any) -> Rig:
    """Give the rig's client a wrist frame of this age."""
    taken_s = rig.loop._pacer.deadline_s - age_s
    values: dict[str, Any] = {
        "image_bytes": a_jpeg(), "format": "jpeg", "arrival_s": taken_s + 0.004,
        "stamp_s": taken_s + ROBOT_CLOCK_S + stamp_offset_s,
    }  # fmt: skip
    rig.client.wrist = EncodedFrame(**(values | other))
    return rig


@pytest.fixture
def rig() -> Rig:
    return Rig(policy=TwoCameraPolicy(), wrist_camera_topic=WRIST_TOPIC)


# --- one loop on a fake clock --------------------------------------------------------------------


def test_both_images_reach_the_policy(rig: Rig) -> None:
    assert isinstance(seeing(rig, image_bytes=still_picture(32, 16)).tick(), Sent)
    (seen,) = rig.policy.observations
    assert seen.image.shape == (48, 64, 3)
    assert {name: image.shape for name, image in seen.more_images.items()} == {"wrist": (16, 32, 3)}


def test_other_policies_get_one_image_and_nothing_is_decoded() -> None:
    rig = Rig(wrist_camera_topic=WRIST_TOPIC)
    assert isinstance(seeing(rig, image_bytes=b"no image").tick(), Sent)
    assert rig.policy.observations[0].more_images == {}


@pytest.mark.parametrize(
    ("frame", "reason", "said"),
    [
        ({"age_s": 0.6}, "frame_stale", "frame is 0.604 s old"),
        ({"arrival_s": 99.0}, "frame_stale", "expected at most 0.5 s (MAX_FRAME_AGE)"),
        ({"stamp_offset_s": 0.9}, "clocks_differ", "s after the base camera's, expected at most"),
        ({"stamp_offset_s": -0.9}, "frame_stale", "s before the base camera's"),
        ({"stamp_s": 0.0}, "frame_unstamped", "header stamp is 0.0"),
        ({"stamp_s": float("nan")}, "frame_unstamped", "header stamp is nan"),
        ({"image_bytes": b"GIF89a"}, "frame_unreadable", "expected JPEG or PNG"),
        ({"image_bytes": a_jpeg()[:200]}, "frame_unreadable", "cannot be decoded"),
    ],
)
def test_a_wrist_frame_that_must_not_be_used_holds(
    rig: Rig, frame: dict[str, Any], reason: str, said: str
) -> None:
    hold = seeing(rig, **frame).tick()
    assert isinstance(hold, Hold)
    assert hold.reason == reason
    assert hold.detail.startswith(f"wrist camera on {WRIST_TOPIC}: ")
    assert said in hold.detail
    assert not rig.policy.observations
    assert isinstance(seeing(rig).tick(), Sent), "a good frame ends the hold"


def test_no_wrist_frame_holds_with_what_the_client_knows(rig: Rig) -> None:
    rig.client.link.no_wrist_frame_because = "no message for 3 s"
    hold = rig.tick()
    assert isinstance(hold, Hold)
    assert hold.reason is HoldReason.NO_FRAME
    assert "no frame received yet: no message for 3 s; behind a guard" in hold.detail
    assert "WRIST_CAMERA_TOPIC" in hold.detail


def test_the_policy_is_warmed_up_with_an_image_of_each_camera(rig: Rig) -> None:
    rig.loop.warm_up()
    assert all(seen.more_images.keys() == {"wrist"} for seen in rig.policy.observations)
    assert len(rig.policy.observations) >= 2


# --- a real client, and a robot whose wrist camera fails -----------------------------------------


class TwoCameraSwing(SwingingPolicy):
    more_cameras = ("wrist",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Observation] = []

    def predict(self, observations: Any) -> list[Any]:
        self.seen += observations
        return super().predict(observations)


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot(wrist_topic=WRIST_TOPIC) as robot:
        yield robot


@pytest.fixture
def running(robot: FaultyRobot) -> Iterator[RunningLoop]:
    with RunningLoop(robot.port, TwoCameraSwing(), wrist_camera_topic=WRIST_TOPIC) as running:
        running.wait_driving()
        yield running


def test_a_wrist_camera_that_stops_holds_and_comes_back(
    robot: FaultyRobot, running: RunningLoop
) -> None:
    assert isinstance(running.policy, TwoCameraSwing)
    seen = running.policy.seen[-1]
    assert (seen.image.shape, seen.more_images["wrist"].shape) == ((120, 160, 3), (480, 640, 3))
    robot.wrist_runs = False
    running.wait_hold("frame_stale")
    accepted = robot.moved
    wait_until(lambda: running.client.link.no_wrist_frame_because, 10, "the silent topic is named")
    assert WRIST_TOPIC in (running.client.link.no_wrist_frame_because or "")
    assert robot.moved == accepted
    robot.wrist_runs = True
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize("picture", [PICTURE[: len(PICTURE) // 2], b"GIF89a" + bytes(100)])
def test_a_wrist_image_that_cannot_be_used_holds(
    robot: FaultyRobot, running: RunningLoop, picture: bytes
) -> None:
    robot.wrist_picture = picture
    running.wait_hold("frame_unreadable")
    robot.wrist_picture = None
    running.wait_driving()
    robot.assert_nothing_bad_arrived()


def test_a_robot_without_the_topic_holds_and_names_it() -> None:
    with (
        FaultyRobot() as robot,
        RunningLoop(robot.port, TwoCameraSwing(), wrist_camera_topic=WRIST_TOPIC) as running,
    ):
        running.wait_hold("no_frame", ticks=20)
        wait_until(lambda: running.client.link.no_wrist_frame_because, 10, "the topic is named")
        assert not running.sent()
        assert not robot.moved


# --- processes: simulated robot ← guard ← loop → policy server -----------------------------------


def two_cameras() -> dict[str, Any]:
    """A policy_io with both cameras at their own size."""
    content, _ = policy_io_file.read_map("crane_x7")
    (image,) = content["images"]
    wrist = image | {"key": "observation/wrist", "source": "wrist"}
    return {**content, "images": [image, wrist]}


def near_home(_: dict[str, Any]) -> dict[str, Any]:
    return {"actions": np.tile(HOME_RAD, (5, 1)).astype(np.float32)}


def infer(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VLA_", "POLICY_"))}
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "infer", "--rosbridge-host", "127.0.0.1", *flags],
        capture_output=True, text=True, timeout=120, env=clean | environ, check=False,
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_both_cameras_reach_a_policy_server_through_the_guard(tmp_path: Path) -> None:
    robot = [sys.executable, "-m", "crane_x7_remote", "sim-robot", "--arm", "kinematic",
             "--port", "0", "--guard", "0", "--wrist-camera-topic", WRIST_TOPIC]  # fmt: skip
    metrics = tmp_path / "metrics.json"
    with (
        PlainPolicyServer(near_home, {"policy_io": two_cameras()}) as server,
        subprocess.Popen(robot, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            port = process.stdout.readline().rpartition(" ")[2].strip()
            flags = ["--rosbridge-port", port, "--policy-server", server.url]
            done = infer(
                *flags, "--duration", "5", "--metrics", str(metrics), WRIST_CAMERA_TOPIC=WRIST_TOPIC
            )
            refused = infer(*flags)
        finally:
            process.terminate()
    assert done.returncode == 0, done.stderr
    assert json.loads(metrics.read_text())["trajectories"] > 10, done.stderr
    from_camera = server.observations[-1]
    base, wrist = from_camera["observation/image"], from_camera["observation/wrist"]
    np.testing.assert_array_equal(base, decode_image(EncodedFrame(still_picture(), "", 1.0, 0.0)))
    assert np.abs(wrist.astype(int) - base[::-1]).mean() < 10
    assert np.abs(wrist.astype(int) - base).mean() > 10
    assert refused.returncode == ExitCode.POLICY_LOAD
    assert "images[1] (observation/wrist) wants the wrist camera" in refused.stderr
    assert "set WRIST_CAMERA_TOPIC (--wrist-camera-topic)" in refused.stderr


def test_one_topic_for_both_cameras_is_refused() -> None:
    done = infer("--camera-topic", "/a/compressed", "--wrist-camera-topic", "/a/compressed")
    assert done.returncode == ExitCode.SETTINGS
    assert "--wrist-camera-topic" in done.stderr
    assert "is CAMERA_TOPIC, too" in done.stderr
