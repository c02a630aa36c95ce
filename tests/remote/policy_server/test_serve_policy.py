"""`crane-x7-remote serve-policy`: policies of this project, asked over openpi's protocol."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import simplejpeg
from plain_policy_server import decode, encode
from serve_policy_rig import serving
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.errors import ExitCode
from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.policy_server.batches import Observation as Request
from crane_x7_remote.policy_server.policy_io import to_request
from crane_x7_remote.policy_server.served import (
    InstructionError,
    Kind,
    PerClient,
    RequestError,
    Shared,
    read_request,
    try_out,
)
from crane_x7_remote.policy_server.server import CLIENT_KEY, ServerConfig, running
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError, more_cameras
from crane_x7_vla_rl.policies.color_servo.policy import ColorServo
from crane_x7_vla_rl.policies.load import TINY, load_policy
from crane_x7_vla_rl.policies.wordings import WordedPolicy, Wordings
from crane_x7_vla_rl.robot import DOF, HOME_RAD
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation

WAIT_S = 60.0
TASK = "pick up the red cube"


def request(client: int = 1, **changes: Any) -> Request:
    picture = np.full((480, 640, 3), (170, 140, 110), np.uint8)
    picture[300:340, 150:190] = (200, 30, 30)
    fields = {
        "observation/image": picture,
        "observation/state": HOME_RAD.astype(np.float32),
        "prompt": TASK,
        CLIENT_KEY: client,
    }
    return {key: value for key, value in (fields | changes).items() if value is not None}


@contextlib.contextmanager
def client(url: str, **options: Any) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    with connect(url, compression=None, max_size=None, **options) as link:
        yield link, decode(link.recv(WAIT_S))


def ask(link: ClientConnection, **changes: Any) -> Any:
    fields = request(**changes)
    del fields[CLIENT_KEY]
    link.send(encode(fields))
    answer = link.recv(WAIT_S)
    return answer if isinstance(answer, str) else decode(answer)


def test_the_colour_servo_answers_pixels_and_jpegs_and_ends_on_sigterm() -> None:
    with serving("--vla-policy=color-servo") as (url, process):
        with client(url) as (link, metadata):
            raw = ask(link)
            jpeg = simplejpeg.encode_jpeg(request()["observation/image"], quality=95)
            packed = ask(link, **{"observation/image": jpeg})
            text = ask(link, prompt="dance")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == ExitCode.OK
    assert metadata["accepts_jpeg"] is True
    assert metadata["policy_type"] == "color-servo"
    steps = metadata["chunk_steps"]
    assert metadata["policy_io"]["action"]["chunk_steps"] == steps
    assert metadata["policy_io"]["action"]["period_s"] == metadata["period_s"]
    for answer in (raw, packed):
        assert answer["actions"].shape == (steps, DOF)
        assert np.isfinite(answer["actions"]).all()
        assert answer["policy_timing"]["infer_ms"] > 0
    assert text.startswith('InstructionError: color-servo does not understand "dance"')


def test_the_shipped_policy_is_served_with_a_key_and_refuses_others() -> None:
    flags = (f"--vla-model-path={TINY}", "--vla-device=cpu")
    with (
        serving(*flags, POLICY_API_KEY="sesame") as (url, _),
        client(url, additional_headers={"Authorization": "Api-Key sesame"}) as (link, metadata),
    ):
        answer = ask(link)
        with pytest.raises(Exception, match="401"), client(url):
            pass
    assert metadata["policy_type"] == "openvla"
    assert answer["actions"].shape == (metadata["chunk_steps"], DOF)


def test_an_open_address_without_a_key_is_refused_before_the_model_is_loaded() -> None:
    command = [sys.executable, "-m", "crane_x7_remote", "serve-policy", "--host=0.0.0.0"]
    ended = subprocess.run(
        [*command, "--vla-policy=color-servo"], capture_output=True, text=True, timeout=WAIT_S
    )
    assert ended.returncode == ExitCode.SERVE
    assert "set POLICY_API_KEY, or listen on 127.0.0.1" in ended.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation/image": None}, "has no observation/image; got observation/state, prompt"),
        ({"observation/image": 3}, "observation/image is a int"),
        ({"observation/image": np.zeros((3, 480, 640), np.uint8)}, "expected .H, W, 3. uint8"),
        ({"observation/image": np.zeros((480, 640, 3), np.float32)}, "float32, expected"),
        ({"observation/image": b"\xff\xd8\xff"}, "cannot be decoded"),
        ({"observation/image": b"GIF89a"}, "expected JPEG or PNG"),
        ({"observation/state": np.zeros(7)}, r"is \(7,\) float64, expected \(8,\) rad"),
        ({"observation/state": "x"}, "expected"),
        ({"observation/state": np.full(8, np.nan)}, "shoulder_fixed_part_pan_joint is not finite"),
        ({"prompt": " "}, "expected a task"),
        ({"prompt": 5}, "expected a task"),
        ({"prompt": "x" * 5000}, "more than"),
    ],
)
def test_an_observation_of_another_form_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_request(request(**changes), 0.0)


def test_a_prompt_may_be_a_0_d_array_and_the_state_a_list() -> None:
    fields = request(prompt=np.array(TASK), **{"observation/state": HOME_RAD.tolist()})
    observation = read_request(fields, 0.0)
    assert observation.instruction == TASK
    np.testing.assert_allclose(observation.joints.position_rad, HOME_RAD)


class Counting:
    """Answers with the number of its calls; a policy of the simplest kind."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, observations: list[Observation]) -> list[ActionChunk]:
        self.sizes.append(len(observations))
        return [ActionChunk(np.full((2, DOF), len(self.sizes)), 0.1) for _ in observations]

    def reset(self) -> None:
        """It keeps nothing that matters."""


def test_clients_of_a_shared_policy_are_one_batch() -> None:
    policy = Counting()
    assert [each["actions"][0, 0] for each in Shared(policy)([request(1), request(2)])] == [1, 1]
    assert policy.sizes == [2]


def test_each_client_has_its_own_memory_until_it_leaves() -> None:
    answer = PerClient(Counting)
    counts = [each["actions"][0, 0] for each in answer([request(1), request(2), request(1)])]
    assert counts == [1, 1, 2]
    answer.forget(1)
    assert [each["actions"][0, 0] for each in answer([request(1), request(2)])] == [1, 2]


def test_a_reset_starts_over_for_its_client_alone() -> None:
    answer = PerClient(Counting)
    answer([request(1), request(2)])
    counts = [each["actions"][0, 0] for each in answer([request(1, reset=True), request(2)])]
    assert counts == [1, 2]


def test_an_instruction_that_is_not_followed_is_refused() -> None:
    with pytest.raises(InstructionError, match="does not understand"):
        Shared(ColorServo())([request(prompt="sing")])


def test_a_served_policy_follows_other_words_and_refuses_other_colours() -> None:
    served = Shared(WordedPolicy(Counting(), Wordings((TASK,), "skills.json")))  # type: ignore[arg-type]
    assert served([request(prompt="grab the crimson block")])[0]["actions"][0, 0] == 1
    with pytest.raises(InstructionError, match="names the colour purple, the cubes are red"):
        served([request(prompt="grab the purple block")])


def test_the_metadata_state_what_the_policy_answered() -> None:
    kind = try_out(Counting(), "counting", TASK)
    assert kind == Kind("counting", 2, 0.1)
    assert kind.metadata()["policy_io"]["action"]["chunk_steps"] == 2


def test_the_metadata_are_a_complete_description_of_what_is_read() -> None:
    io = policy_io_file.from_map(Kind("any", 7, 0.1).metadata()["policy_io"], "the server")
    assert io.action.chunk_steps == 7
    joints = JointState(HOME_RAD, np.zeros(DOF))
    picture = request()["observation/image"]
    back = read_request(to_request(Observation(picture, joints, TASK, 0.0), io), 0.0)
    assert back.instruction == TASK
    np.testing.assert_array_equal(back.image, picture)
    np.testing.assert_allclose(back.joints.position_rad, HOME_RAD, atol=1e-6)


def test_the_loops_own_client_drives_a_served_policy() -> None:
    """What `infer --policy remote` uses, with pixels and with JPEGs: the same chunk as locally."""
    seen = request()
    joints = JointState(HOME_RAD, np.zeros(DOF))
    observation = Observation(seen["observation/image"], joints, TASK, 0.0)
    expected = ColorServo().predict([observation])[0]
    with serving("--vla-policy=color-servo") as (url, _):
        for quality in (None, 95):
            options = ModelOptions(server=url, jpeg_quality=quality)
            policy = load_policy("remote", options)
            chunk = policy.predict([observation])[0]
            assert chunk.period_s == expected.period_s
            np.testing.assert_allclose(chunk.position_rad, expected.position_rad, atol=0.02)


class TwoCameras(Counting):
    """Wants the wrist camera; notes what it saw."""

    more_cameras = ("wrist",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Observation] = []

    def predict(self, observations: list[Observation]) -> list[ActionChunk]:
        self.seen += observations
        return super().predict(observations)


def test_a_policy_of_two_cameras_is_told_both_by_the_loops_own_client() -> None:
    """The metadata name the second picture, so that the loop's client sends it under that key."""
    policy = TwoCameras()
    kind = try_out(policy, "two", TASK)
    assert kind.cameras == ("wrist",)
    base = request()["observation/image"]
    wrist = np.full((48, 64, 3), 40, np.uint8)
    joints = JointState(HOME_RAD, np.zeros(DOF))
    seen = Observation(base, joints, TASK, 0.0, {"wrist": wrist})
    with running(Shared(policy), kind.metadata(), ServerConfig(port=0)) as url:
        for quality in (None, 95):
            options = ModelOptions(server=url, jpeg_quality=quality, more_cameras=("wrist",))
            client_policy = load_policy("remote", options)
            assert more_cameras(client_policy) == ("wrist",)
            client_policy.predict([seen])
            got = policy.seen[-1]
            assert np.abs(got.image.astype(int) - base).mean() < 4
            assert got.more_images["wrist"].shape == wrist.shape
            assert np.abs(got.more_images["wrist"].astype(int) - wrist).max() < 4
        with pytest.raises(PolicyLoadError, match="wrist"):
            load_policy("remote", ModelOptions(server=url))  # a robot without that camera
        with client(url) as (link, _):
            answer = ask(link)
    assert "the observation has no observation/wrist_image; got observation/image" in answer


@pytest.mark.parametrize(
    ("picture", "words"),
    [(3, "observation/wrist_image is a int"), (b"GIF89a", "observation/wrist_image: image of")],
)
def test_a_wrong_second_picture_is_named(picture: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_request(request(**{"observation/wrist_image": picture}), 0.0, ("wrist",))


def test_a_second_picture_that_the_policy_does_not_want_is_ignored() -> None:
    observation = read_request(request(**{"observation/wrist_image": b"GIF89a"}), 0.0)
    assert observation.more_images == {}
    assert len(Kind("any", 7, 0.1).metadata()["policy_io"]["images"]) == 1
