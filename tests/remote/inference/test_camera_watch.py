"""A policy that measures in the picture drives only where it is known where the camera stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tick_rig import MovingPolicy, Rig

from crane_x7_remote import cli
from crane_x7_remote.errors import ExitCode
from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose
from crane_x7_vla_rl.policies.base import CameraUser, Interpreter
from crane_x7_vla_rl.policies.load import load_policy

OTHER = replace(SIM_POSE, position_m=(0.9, 0.0, 0.7))
SAID = {"data": SIM_POSE.to_json()}


class MeasuringPolicy(MovingPolicy):
    """Must know where the camera stands."""

    def __init__(self) -> None:
        super().__init__()
        self.poses: list[CameraPose] = []

    def look_through(self, pose: CameraPose) -> None:
        self.poses.append(pose)


def measuring(pose: CameraPose | None = None) -> tuple[Rig, MeasuringPolicy]:
    policy = MeasuringPolicy()
    return Rig(policy=policy, camera_pose=pose), policy


def test_it_holds_until_the_robot_says_where_its_camera_stands() -> None:
    rig, policy = measuring()
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.CAMERA_UNCONFIRMED
    assert "CAMERA_POSE" in outcome.detail
    assert not rig.client.published
    assert not policy.observations
    assert rig.client.camera_says is not None
    rig.client.camera_says(SAID)
    assert isinstance(rig.tick(2), Sent)
    assert len(policy.poses) == 1


def test_the_operators_pose_counts_more_than_the_robots() -> None:
    rig, policy = measuring(OTHER)
    assert isinstance(rig.tick(), Sent)
    assert policy.poses == [OTHER]
    assert rig.client.camera_says is None


def test_behind_a_new_link_the_robot_must_say_it_again() -> None:
    """Another robot may be there; and the statement may come before the next tick."""
    rig, policy = measuring()
    assert rig.client.camera_says is not None
    rig.client.camera_says(SAID)
    assert isinstance(rig.tick(), Sent)
    rig.client.link.reconnects += 1
    assert rig.reason() is HoldReason.CAMERA_UNCONFIRMED
    rig.client.camera_says({"data": OTHER.to_json()})
    resets = policy.resets
    assert isinstance(rig.tick(2), Sent)
    assert policy.poses[-1].position_m == OTHER.position_m
    assert policy.resets > resets, "what was seen through the camera before is forgotten"


def test_a_statement_that_cannot_be_read_ends_the_one_before() -> None:
    rig, _ = measuring()
    assert rig.client.camera_says is not None
    rig.client.camera_says(SAID)
    assert isinstance(rig.tick(), Sent)
    with pytest.raises(MessageError):
        rig.client.camera_says({"data": '{"position_m": [1, 2]}'})
    assert rig.reason() is HoldReason.CAMERA_UNCONFIRMED


def test_pictures_of_another_aspect_ratio_hold() -> None:
    rig, _ = measuring(replace(SIM_POSE, size_px=(1280, 720)))  # the rig's are 64x48
    outcome = rig.tick()
    assert isinstance(outcome, Hold)
    assert outcome.reason is HoldReason.CAMERA_UNCONFIRMED
    assert "1280x720" in outcome.detail


def test_other_policies_need_no_pose() -> None:
    rig = Rig()
    assert isinstance(rig.tick(), Sent)
    assert rig.client.camera_says is None


def test_color_servo_needs_a_pose_and_understands_some_tasks_only() -> None:
    servo = load_policy("color-servo")
    assert isinstance(servo, CameraUser)
    assert isinstance(servo, Interpreter)
    assert servo.refusal("pick up the red cube") is None
    assert "red, green" in (servo.refusal("dance") or "")


def test_a_wrong_file_is_refused_before_anything_else(
    tmp_path: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("camera.yaml", "w") as file:
        file.write("position_m: [1, 2]\ntarget_m: [0, 0, 0]\nfov_deg: 500\n")
    code = cli.main(["infer", "--policy", "color-servo", "--camera-pose", "camera.yaml"])
    told = capsys.readouterr().err
    assert code == ExitCode.SETTINGS
    assert "--camera-pose: camera.yaml holds 2 mistakes" in told
    assert "position_m is [1, 2]" in told
    assert "fov_deg is 500" in told
