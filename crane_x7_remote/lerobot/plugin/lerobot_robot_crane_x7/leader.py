"""A leader arm as a LeRobot `Teleoperator`. Its /joint_states → the follower's targets, rad."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from lerobot.teleoperators import Teleoperator
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from crane_x7_remote.inference.targets import CATCH_UP_S, POLL_S, TargetError
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_vla_rl.robot import JOINT_NAMES
from lerobot_robot_crane_x7.configs import CraneX7LeaderConfig, read_token


class CraneX7Leader(Teleoperator):
    """Reads one arm; never moves it."""

    config_class = CraneX7LeaderConfig
    name = "crane_x7_leader"

    def __init__(self, config: CraneX7LeaderConfig) -> None:
        super().__init__(config)
        self.config = config
        self._client: RosbridgeClient | None = None

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{name}.pos": float for name in JOINT_NAMES}

    @property
    def feedback_features(self) -> dict[str, Any]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._client is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""

    def connect(self, calibrate: bool = True) -> None:
        """Connect and wait for the first joint state; raises an error that names its topic."""
        del calibrate
        if self._client is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected already")
        config = self.config
        client = RosbridgeClient(
            ClientConfig(
                host=config.host,
                port=config.port,
                token=read_token(config.token_file),
                camera_topic=None,
                joint_states_topic=config.joint_states_topic,
                instruction_topic=None,
            )
        )
        client.start()
        try:
            client.wait_connected(config.connect_s)
            deadline_s = time.monotonic() + config.connect_s
            while client.joints() is None:
                if time.monotonic() > deadline_s:
                    why = client.link.no_joints_because
                    raise TargetError(
                        f"no joint state on {config.joint_states_topic} for {config.connect_s:g} s"
                        f"{f' ({why})' if why else ''}; set --teleop.joint_states_topic"
                    )
                time.sleep(POLL_S)
        except BaseException:
            client.close()
            raise
        self._client = client

    def disconnect(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        client.close()

    def get_action(self) -> dict[str, Any]:
        """Return the leader's joints, rad; raises TargetError if they are old or not finite."""
        if self._client is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        deadline_s = time.monotonic() + CATCH_UP_S
        while True:
            joints, now_s = self._client.joints(), time.monotonic()
            assert joints is not None  # connect waited for it
            age_s = now_s - joints.arrival_s
            if age_s <= self.config.max_age_s:
                break
            if now_s > deadline_s:
                limit_s = self.config.max_age_s
                raise TargetError(
                    f"the leader's joint state is {age_s:.2f} s old, limit {limit_s:g} s"
                )
            time.sleep(POLL_S)
        position = joints.state.position_rad
        if not np.isfinite(position).all():
            raise TargetError(f"the leader's joints are {position.tolist()}, expected finite rad")
        return {f"{name}.pos": float(at) for name, at in zip(JOINT_NAMES, position, strict=True)}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """A leader that is moved by hand takes no feedback."""
        raise NotImplementedError("the leader arm has no feedback")
