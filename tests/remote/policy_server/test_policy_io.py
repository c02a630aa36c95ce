"""What a policy takes and gives follows from its description alone; what that lacks is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.policy_server.policy_io import AnswerError, to_chunk, to_request
from crane_x7_remote.policy_server.policy_io_file import PRESETS, PolicyIoError, from_map, read
from crane_x7_remote.policy_server.served import Kind
from crane_x7_vla_rl.images import decode_picture
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.training.lerobot import describe
from crane_x7_vla_rl.types import JointState, Observation

JOINTS = JointState(HOME_RAD, np.zeros(8))
WRIST_RGB = 10, 20, 30
GRIPPER = {"closed": 1.0, "open": 0.0, "closed_rad": 0.0, "open_rad": 0.6}


def observation(width: int = 640, height: int = 480) -> Observation:
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    wrist = np.full((height, width, 3), WRIST_RGB, np.uint8)
    return Observation(image, JOINTS, "pick up the red cube", 1.0, {"wrist": wrist})


def described(**action: Any) -> dict[str, Any]:
    """Return the preset crane_x7 with other keys of `action`; None removes one."""
    content: dict[str, Any] = yaml.safe_load((policy_io_file.FOLDER / "crane_x7.yaml").read_text())
    content["action"] |= action
    content["action"] = {k: v for k, v in content["action"].items() if v is not None}
    return content


def chunk_of(actions: Any, **action: Any) -> np.ndarray:
    io = from_map(described(**action), "test.yaml")
    return to_chunk({"actions": np.array(actions)}, io, JOINTS).position_rad


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_request_and_reads_an_answer(name: str) -> None:
    io = read(name)
    request = to_request(observation(), io)
    assert request[io.prompt[0]] == "pick up the red cube"
    wide = len(io.action.columns.places)
    chunk = to_chunk({"actions": np.zeros((10, wide), np.float32)}, io, JOINTS)
    assert chunk.position_rad.shape == (10, 8)
    assert chunk.period_s == io.action.period_s


def test_droid_gets_the_keys_shapes_and_types_of_openpi() -> None:
    request = to_request(observation(), read("droid"))
    assert {key: (np.shape(value), getattr(value, "dtype", None)) for key, value in request.items()
            if key != "prompt"} == {
        "observation/exterior_image_1_left": ((224, 224, 3), np.uint8),
        "observation/wrist_image_left": ((224, 224, 3), np.uint8),
        "observation/joint_position": ((7,), np.float32),
        "observation/gripper_position": ((1,), np.float32),
    }  # fmt: skip
    assert request["observation/gripper_position"] == [1.0]  # closed
    assert tuple(request["observation/exterior_image_1_left"][112, 112]) == (200, 100, 50)
    assert tuple(request["observation/wrist_image_left"][112, 112]) == WRIST_RGB


def test_aloha_gets_maps_in_maps_channels_first_and_14_columns() -> None:
    request = to_request(observation(), read("aloha"))
    assert request["images"]["cam_high"].shape == (3, 224, 224)
    assert request["state"].shape == (14,)
    np.testing.assert_allclose(request["state"][:8], HOME_RAD, atol=1e-6)
    assert not request["state"][8:].any()


def test_droid_velocities_add_up_and_the_gripper_is_absolute() -> None:
    actions = np.zeros((3, 8), np.float32)
    actions[:, 0], actions[:, 7] = 0.5, [0.0, 0.5, 1.0]
    targets = to_chunk({"actions": actions}, read("droid"), JOINTS).position_rad
    np.testing.assert_allclose(targets[:, 0] - HOME_RAD[0], [0.1, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(targets[:, 7], [0.6, 0.3, 0.0], atol=1e-6)


def test_deltas_from_the_first_state_do_not_add_up() -> None:
    targets = chunk_of(np.full((3, 8), 0.1), kind="delta_from_first", gripper=GRIPPER)
    np.testing.assert_allclose(targets[:, 0], HOME_RAD[0] + 0.1)


def test_degrees_and_percent_become_radians() -> None:
    np.testing.assert_allclose(chunk_of([np.rad2deg(HOME_RAD)], unit="deg"), [HOME_RAD])
    ends = chunk_of([[-100.0] * 8, [100.0] * 8], unit="percent", gripper=GRIPPER)
    np.testing.assert_allclose(ends[:, :7], [LOWER_RAD[:7], UPPER_RAD[:7]])
    content = described()
    content["state"][0] |= {"unit": "percent", "gripper": GRIPPER}
    state = to_request(observation(), from_map(content, "x"))["observation/state"]
    np.testing.assert_allclose(
        chunk_of([state], unit="percent", gripper=GRIPPER)[0], HOME_RAD, atol=1e-5
    )


def test_columns_follow_the_names_and_joints_without_one_stay() -> None:
    names = [JOINT_NAMES[3], None, JOINT_NAMES[0]]
    targets = chunk_of([[-1.0, np.nan, 0.5]], joints=names)
    expected = HOME_RAD.copy()
    expected[[3, 0]] = -1.0, 0.5
    np.testing.assert_allclose(targets[0], expected)


def test_jpeg_is_a_file_in_place_of_the_array() -> None:
    content = to_request(observation(), read("crane_x7"), jpeg_quality=95)["observation/image"]
    assert isinstance(content, bytes)
    assert np.abs(decode_picture(content).astype(int) - (200, 100, 50)).max() < 6


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"action": np.zeros((2, 8))}, "the answer has no actions"),
        ({"actions": np.zeros(8)}, r"shape \(8,\), expected \(T, 8\)"),
        ({"actions": np.zeros((2, 7))}, r"shape \(2, 7\), expected \(T, 8\) .* LIBERO policies"),
        ({"actions": np.zeros((0, 8))}, "1 to 1000 steps"),
        ({"actions": np.array(["a"])}, "expected numbers"),
        ({"actions": [["a"]]}, "expected numbers"),
        ({"actions": "soon"}, "actions is str"),
        (b"", "got no map"),
    ],
)
def test_a_wrong_answer_is_named(answer: object, said: str) -> None:
    with pytest.raises(AnswerError, match=said):
        to_chunk(answer, read("crane_x7"), JOINTS)


def test_another_number_of_steps_than_stated_is_refused() -> None:
    with pytest.raises(AnswerError, match="has 3 steps, expected 2"):
        chunk_of(np.zeros((3, 8)), chunk_steps=2)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"unit": None}, "action.unit is missing; expected rad or deg or percent"),
        ({"kind": "velocity"}, "action.kind is 'velocity'; expected joint_target or"),
        ({"kind": "eef_delta"}, "; movements of a tool"),
        ({"period_s": None}, "action.period_s is missing; expected a number"),
        ({"period_s": 33}, "the seconds of one step"),
        ({"chunk_step": 4}, "action.chunk_step is unknown; did you mean chunk_steps?"),
        ({"joints": ["crane_x7_wrist_join"]}, "did you mean crane_x7_wrist_joint?"),
        ({"joints": [JOINT_NAMES[0], JOINT_NAMES[0]]}, "each joint once"),
        ({"kind": "joint_delta"}, "action.gripper is missing"),
        ({"unit": "percent"}, "as the unit is percent"),
        ({"scale": 2}, "only deltas have a scale"),
        ({"gripper": GRIPPER | {"open": 1.0}}, "action.gripper.open is 1.0; expected another"),
        ({"key": []}, "action.key"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_its_key(action: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyIoError) as caught:
        from_map(described(**action), "test.yaml")
    assert str(caught.value).startswith("test.yaml: action.")
    assert said in str(caught.value)


def test_an_image_needs_everything_that_could_differ() -> None:
    for name in ("key", "source", "layout", "colour", "range"):
        content = described()
        del content["images"][0][name]
        with pytest.raises(PolicyIoError, match=rf"images\[0\].{name} is missing"):
            from_map(content, "x")
    content = described()
    content["images"][0]["size"] = "224x224"
    with pytest.raises(PolicyIoError, match=r"images\[0\].resize is missing; expected stretch"):
        from_map(content, "x")


def test_a_number_such_as_5e_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "io.yaml"
    text = (policy_io_file.FOLDER / "crane_x7.yaml").read_text()
    path.write_text(text.replace("period_s: 0.1", "period_s: 5e-2"))
    assert read(path).action.period_s == 0.05


def test_what_the_lerobot_trainer_writes_is_read() -> None:
    feature = {"dtype": "float32", "shape": [8], "names": list(JOINT_NAMES)}
    camera = {"dtype": "video", "shape": [96, 128, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": feature, "action": feature, "observation.images.base": camera}
    text = describe.policy_io({"fps": 10, "features": features}, {"chunk_size": 12})
    assert text is not None
    io = from_map(yaml.safe_load(text), "policy_io.yaml")
    request = to_request(observation(), io)
    assert request["observation.images.base"].shape == (96, 128, 3)
    assert request["task"] == "pick up the red cube"
    np.testing.assert_allclose(request["observation.state"], HOME_RAD, atol=1e-6)
    assert io.action.chunk_steps == 12
    assert io.action.period_s == 0.1


@pytest.mark.parametrize(
    ("cameras", "sources"),
    [
        (["base", "wrist"], ["camera", "wrist"]),
        (["cam_high", "cam_right_wrist"], ["camera", "wrist"]),
        (["hand_camera", "front"], ["camera", "wrist"]),
        (["gripper", "scene"], ["wrist", "camera"]),
        (["wrist"], ["camera"]),  # the only one: what CAMERA_TOPIC shows
        (["handy"], ["camera"]),
        (["base", "side"], ["camera", "camera"]),  # refused when it drives
    ],
)
def test_the_trainer_finds_the_wrist_camera_by_its_name(
    cameras: list[str], sources: list[str]
) -> None:
    feature = {"dtype": "float32", "shape": [8], "names": list(JOINT_NAMES)}
    features: dict[str, Any] = {"observation.state": feature, "action": feature}
    features |= {f"observation.images.{name}": {"shape": [96, 128, 3]} for name in cameras}
    text = describe.policy_io({"fps": 10, "features": features}, {})
    assert text is not None
    images = yaml.safe_load(text)["images"]
    assert [image["key"].rpartition(".")[2] for image in images] == sorted(cameras)
    assert [image["source"] for image in images] == sources


def two_images(**second: Any) -> dict[str, Any]:
    content = described()
    content["images"].append(content["images"][0] | {"key": "observation/second"} | second)
    return content


def test_one_camera_under_two_keys_is_refused_unless_the_file_says_so() -> None:
    for source in ("camera", "wrist"):
        content = two_images(source=source)
        content["images"][0]["source"] = source
        with pytest.raises(PolicyIoError) as caught:
            from_map(content, "io.yaml")
        assert str(caught.value).startswith(f"io.yaml: images[1].source is '{source}'; expected")
        assert "another camera than that of observation/image" in str(caught.value)
        content["images"][1]["same"] = True
        assert len(from_map(content, "io.yaml").images) == 2
    assert len(from_map(two_images(source="wrist"), "io.yaml").images) == 2
    with pytest.raises(PolicyIoError, match=r"images\[1\].same is 'yes'; expected true or false"):
        from_map(two_images(same="yes"), "io.yaml")


def test_a_wrist_camera_that_is_not_there_is_refused_with_what_to_set() -> None:
    io = from_map(two_images(source="wrist"), "io.yaml")
    assert io.more_cameras == ("wrist",)
    policy_io_file.check_cameras(io, ("wrist",))
    policy_io_file.check_cameras(read("crane_x7"), ())
    with pytest.raises(PolicyIoError, match="set WRIST_CAMERA_TOPIC") as caught:
        policy_io_file.check_cameras(io, ())
    assert str(caught.value).startswith("io.yaml: images[1] (observation/second) wants the wrist")
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="no image of the wrist camera, which observation/second"):
        to_request(Observation(image, JOINTS, "go", 1.0), io)


def test_the_servers_own_description_is_that_of_the_preset() -> None:
    stated = Kind("openvla", 6, 0.1).metadata()["policy_io"]
    action = {k: v for k, v in stated["action"].items() if k != "chunk_steps"}
    assert stated | {"action": action} == described()


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(PolicyIoError, match=r"did you mean droid\?"):
        read("driod")
