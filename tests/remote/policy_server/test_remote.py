"""A policy server drives the robot through the real loop; whatever it does wrong is a hold.

The server is written from the protocol alone, the loop, its client and the robot's rosbridge are
real, the arm is kinematic. In every test nothing outside the limits reaches the arm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import yaml
from loop_rig import FaultyRobot, RunningLoop, wait_until
from plain_policy_server import ErrorText, PlainPolicyServer

from crane_x7_remote.inference.warm_up import warm_up
from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.policy_server.client import AnswerTimeoutError
from crane_x7_remote.policy_server.remote import RemotePolicy, load
from crane_x7_remote.sim_robot.arm import still_picture
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Observation

TIMEOUT_S = 0.25
Fault = Callable[[np.ndarray], Any]


class Server(PlainPolicyServer):
    """Swings the first two joints; `fault` changes the actions (6, 8), or the whole answer."""

    def __init__(self, metadata: dict[str, Any] | None = None, **options: Any) -> None:
        self.fault: Fault = lambda actions: {"actions": actions}
        super().__init__(self.swing, stated() if metadata is None else metadata, **options)

    def swing(self, observation: dict[str, Any]) -> dict[str, Any]:
        del observation
        due_s = time.monotonic() + 0.1 * np.arange(1, 7)
        actions = np.tile(HOME_RAD, (6, 1))
        actions[:, 0] += 0.4 * np.sin(2 * due_s)
        actions[:, 1] += 0.2 * np.cos(3 * due_s)
        actions[:, 7] = 0.4
        answer: dict[str, Any] = self.fault(actions.astype(np.float32))
        return answer


def stated(**others: Any) -> dict[str, Any]:
    """Return the metadata of a server for this arm."""
    text = (policy_io_file.FOLDER / "crane_x7.yaml").read_text()
    return {"policy_io": yaml.safe_load(text), "policy_type": "swing"} | others


def options(server: PlainPolicyServer, **others: Any) -> ModelOptions:
    return ModelOptions(server=server.url, answer_timeout_s=TIMEOUT_S, **others)


@contextmanager
def driving(server: PlainPolicyServer, **others: Any) -> Iterator[tuple[FaultyRobot, RunningLoop]]:
    """Drive a robot by the server's policy; checks at the end what reached the arm."""
    with FaultyRobot() as robot:
        policy: Any = load_policy("remote", options(server, **others))
        assert isinstance(policy, RemotePolicy)
        with RunningLoop(robot.port, policy, policy_timeout_s=TIMEOUT_S) as running:
            running.wait_driving()
            yield robot, running
        policy.close()
        robot.assert_nothing_bad_arrived()


def test_it_drives_and_the_arm_follows_the_servers_targets() -> None:
    with Server() as server, driving(server) as (robot, running):
        running.wait_driving(ticks=20)
        assert server.connections == 1
        seen = server.observations[-1]
        assert seen["observation/image"].shape == (120, 160, 3)
        assert seen["observation/state"].dtype == np.float32
        assert robot.moved >= 20


def test_a_killed_server_holds_and_a_restarted_one_drives_again() -> None:
    with Server() as server, driving(server) as (robot, running):
        server.kill()
        running.wait_hold("policy_raised")
        accepted = robot.moved
        time.sleep(0.5)
        assert robot.moved == accepted
        server.restart()
        running.wait_driving(ticks=5)


@pytest.mark.parametrize("stall_s", [0.3, 3.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_stalled_server_holds_and_its_late_answers_are_never_used(stall_s: float) -> None:
    with Server() as server, driving(server) as (robot, running):
        server.stall_s = stall_s
        running.wait_hold("policy_timeout", ticks=1)
        accepted = robot.moved
        time.sleep(min(stall_s, 3.0))
        assert robot.moved <= accepted + 1
        server.stall_s = 0.0
        running.wait_driving(ticks=5)


def test_a_slow_server_warms_up_beyond_the_timeout_and_is_too_late_after_it() -> None:
    """On an overloaded machine, not only the first answer is slow; but nothing drives yet."""
    with Server() as server:
        policy: Any = load(options(server))
        server.stall_s = 2 * TIMEOUT_S
        warm_up(policy, "go", time.monotonic())
        assert len(server.observations) >= 2
        with pytest.raises(AnswerTimeoutError, match="POLICY_TIMEOUT"):
            policy.predict([observation(0.0)])
        policy.close()


def short(actions: np.ndarray) -> Any:
    return {"actions": actions[:4]}


def with_nan(actions: np.ndarray) -> Any:
    actions[2, 3] = np.nan
    return {"actions": actions}


def text(_: np.ndarray) -> Any:
    raise ErrorText("Traceback (most recent call last):\n  …\nRuntimeError: CUDA out of memory")


FAULTS: dict[str, tuple[Fault, str]] = {
    "another chunk length": (short, "policy_raised"),
    "wrong shape": (lambda actions: {"actions": actions[:, :7]}, "policy_raised"),
    "no actions": (lambda actions: {"action": actions}, "policy_raised"),
    "NaN": (with_nan, "action_not_finite"),
    "degrees for radians": (lambda actions: {"actions": np.rad2deg(actions)}, "joint_limit"),
    "an error text": (text, "policy_raised"),
    "bytes that are no message": (lambda _: b"\xc1\xff", "policy_raised"),
    "an object array": (
        lambda _: {"actions": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O",
                               b"shape": (1,)}},
        "policy_raised",
    ),
    "a jump": (lambda actions: {"actions": actions + 2.5 * np.eye(8)[0]}, "jump"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_lying_server_holds_and_an_honest_one_drives_again(name: str) -> None:
    fault, reason = FAULTS[name]
    with Server() as server, driving(server) as (robot, running):
        honest, server.fault = server.fault, fault
        running.wait_hold(reason, ticks=5)
        accepted = robot.moved
        time.sleep(0.3)
        assert robot.moved == accepted
        server.fault = honest
        running.wait_driving(ticks=5)


def test_degrees_are_hinted_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with Server() as server, driving(server) as (_, running):
        server.fault = lambda actions: {"actions": np.rad2deg(actions)}
        running.wait_hold("joint_limit", ticks=5)
    hints = [line for line in caplog.messages if "more than any joint turns" in line]
    assert len(hints) == 1
    assert "action.unit rad" in hints[0]


def test_a_camera_of_another_size_is_brought_to_the_policys_size() -> None:
    metadata = stated()
    metadata["policy_io"]["images"][0] |= {"size": "64x48", "resize": "pad"}
    with Server(metadata) as server, driving(server) as (robot, running):
        assert server.observations[-1]["observation/image"].shape == (48, 64, 3)
        robot.picture = still_picture(320, 320)
        before = len(server.observations)
        running.wait_driving(ticks=10)
        assert len(server.observations) > before
        assert server.observations[-1]["observation/image"].shape == (48, 64, 3)


def test_a_size_other_than_the_server_states_is_refused_at_the_start() -> None:
    metadata = stated(images={"observation/image": [64, 48]})
    with Server(metadata) as server:
        with pytest.raises(PolicyLoadError, match=r"images\[0\]\.size .* set size: 64x48"):
            load(options(server))
        metadata["policy_io"]["images"][0] |= {"size": "64x48", "resize": "stretch"}
        policy = load(options(server))
        policy.predict([observation(0.0)])
        policy.close()  # type: ignore[attr-defined]


def test_a_server_that_comes_back_as_another_policy_holds() -> None:
    with Server() as server, driving(server) as (_, running):
        server.kill()
        server._metadata = stated(policy_type="another")
        server.restart()
        running.wait_hold("policy_raised", ticks=10)
        server.kill()
        server._metadata = stated()
        server.restart()
        running.wait_driving(ticks=5)


def test_a_server_that_does_not_state_its_inputs_needs_policy_io() -> None:
    with Server(metadata={"model": "pi0"}) as server:
        with pytest.raises(PolicyLoadError, match="set POLICY_IO to a file, or to one of droid"):
            load(options(server))
        with driving(server, policy_io="crane_x7") as (_, running):
            running.wait_driving()


def test_a_server_that_is_away_at_the_start_is_named() -> None:
    with Server() as server:
        server.kill()
        with pytest.raises(PolicyLoadError, match="no policy server at ws"):
            load(options(server))


def test_jpeg_is_sent_only_to_a_server_that_takes_it() -> None:
    with Server() as server, pytest.raises(PolicyLoadError, match="unset POLICY_JPEG"):
        load(options(server, jpeg_quality=90))
    with Server(stated(accepts_jpeg=True)) as server, driving(server, jpeg_quality=90):
        wait_until(lambda: server.observations, 5, "an observation")
        assert server.observations[-1]["observation/image"][:2] == b"\xff\xd8"


def observation(time_s: float) -> Observation:
    joints = JointState(HOME_RAD, np.zeros(8))
    return Observation(np.zeros((4, 4, 3), np.uint8), joints, "go", time_s)


def test_real_time_chunking_gets_the_rest_of_the_previous_chunk_and_the_delay() -> None:
    with Server(stated(rtc=True, accepts_reset=True)) as server:
        policy = load(options(server))
        server.fault = lambda _: {"actions": np.arange(6)[:, None] * np.ones(8, np.float32)}
        for time_s in (0.0, 0.1, 0.3):
            policy.predict([observation(time_s)])
        policy.reset()
        policy.predict([observation(0.4)])
        policy.close()  # type: ignore[attr-defined]
    first, second, third, fourth = server.observations
    assert first["reset"] is fourth["reset"] is True
    assert "reset" not in third
    assert "rtc/previous" not in first.keys() | second.keys() | fourth.keys()
    np.testing.assert_array_equal(third["rtc/previous"][:, 0], [2, 3, 4, 5])
    assert third["rtc/delay_steps"] == 1


def test_a_checkpoint_with_temporal_ensembling_averages_the_chunks_of_one_task() -> None:
    levels = iter([0.0, 0.2, 0.4, 0.6])

    def level(actions: np.ndarray) -> Any:
        return {"actions": np.full_like(actions, next(levels))}

    with Server(stated(temporal_ensemble_coeff=0.0)) as server:
        server.fault = level
        policy = load(options(server))
        seen = [
            policy.predict([_observation(at_s, task)])[0].position_rad[0, 0]
            for at_s, task in ((0.0, "lift"), (0.1, "lift"), (0.2, "place"), (0.3, "place"))
        ]
        policy.close()
    assert seen == pytest.approx([0.0, 0.1, 0.4, 0.5])


def test_an_ensemble_coefficient_that_is_no_number_is_refused() -> None:
    with (
        Server(stated(temporal_ensemble_coeff="much")) as server,
        pytest.raises(PolicyLoadError, match=r"temporal_ensemble_coeff 'much', expected a number"),
    ):
        load(options(server))


def _observation(time_s: float, task: str) -> Observation:
    image = np.zeros((120, 160, 3), np.uint8)
    return Observation(image, JointState(HOME_RAD, np.zeros(8)), task, time_s)
