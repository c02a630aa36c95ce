"""The arm as a LeRobot `Robot`. Joint states and camera → observation; action → safe trajectories.

All motion goes through the loop of `crane_x7_remote.inference`, so limits, checks, the guard and
other loops count as for any policy. Joints are in rad, named as the robot names them with `.pos`.
"""

from __future__ import annotations

import math
import secrets
import sys
from typing import Any

import numpy as np
from lerobot.cameras import make_cameras_from_configs
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_remote.inference.targets import TargetConfig, TargetDriver, TargetError
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_vla_rl.robot import JOINT_NAMES
from lerobot_robot_crane_x7.configs import CraneX7RosbridgeConfig, read_token

KEYS = tuple(f"{name}.pos" for name in JOINT_NAMES)
SWITCH_INTERVAL_S = 0.0005
"""See crane_x7_remote.inference.command: the loop's thread must not wait for LeRobot's."""


class CraneX7Rosbridge(Robot):
    """One arm, connected from `connect` to `disconnect`; then it comes to rest."""

    config_class = CraneX7RosbridgeConfig
    name = "crane_x7_rosbridge"

    def __init__(self, config: CraneX7RosbridgeConfig) -> None:
        super().__init__(config)
        self.config = config
        self._driver: TargetDriver | None = None
        self._others = make_cameras_from_configs(config.cameras)
        if config.camera in self._others:
            raise ValueError(
                f"robot.cameras names {config.camera!r}, the name of rosbridge's own camera; choose"
                " another for one of them (robot.camera)"
            )
        self.cameras = {config.camera: None, **self._others}

    @property
    def observation_features(self) -> dict[str, Any]:
        others = {name: (cam.height, cam.width, 3) for name, cam in self._others.items()}
        size = (self.config.height, self.config.width, 3)
        return {**dict.fromkeys(KEYS, float), self.config.camera: size, **others}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(KEYS, float)

    @property
    def is_connected(self) -> bool:
        return self._driver is not None

    @property
    def is_calibrated(self) -> bool:
        return True  # the arm's controller knows its zero

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure: the controllers run on the robot."""

    def connect(self, calibrate: bool = True) -> None:
        """Connect and check the size of the images; raises an error that says what is missing."""
        del calibrate
        if self._driver is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected already")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        driver = TargetDriver(*_configs(self.config))
        try:
            driver.start()
            height, width, _ = driver.observe()[0].shape
            if (width, height) != (self.config.width, self.config.height):
                raise TargetError(
                    f"the camera sends {width}×{height}, expected {self.config.width}×"
                    f"{self.config.height}; set --robot.width={width} --robot.height={height}"
                )
            for camera in self._others.values():
                camera.connect()
        except BaseException:
            driver.close()
            raise
        self._driver = driver

    def disconnect(self) -> None:
        """Brake the arm to rest and disconnect."""
        driver, self._driver = self._driver, None
        if driver is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        driver.close()
        for camera in self._others.values():
            if camera.is_connected:
                camera.disconnect()

    def get_observation(self) -> dict[str, Any]:
        """Return the joints in rad and each camera's image, (H, W, 3) uint8 RGB."""
        image, position = self._connected().observe()
        joints = {key: float(value) for key, value in zip(KEYS, position, strict=True)}
        others = {name: camera.async_read() for name, camera in self._others.items()}
        return {**joints, self.config.camera: image, **others}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move towards the action's joints, rad; return them.

        Raises TargetError after `hold_s` of refusals, ValueError for a joint that is missing.
        """
        missing = [key for key in KEYS if key not in action]
        if missing:
            raise ValueError(f"action lacks {', '.join(missing)}; it has {', '.join(action)}")
        target = [float(action[key]) for key in KEYS]
        if not all(math.isfinite(value) for value in target):
            raise ValueError(f"action is {target}, expected finite rad")
        self._connected().send(np.array(target))
        return dict(zip(KEYS, target, strict=True))

    def _connected(self) -> TargetDriver:
        if self._driver is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        return self._driver


def _configs(
    config: CraneX7RosbridgeConfig,
) -> tuple[ClientConfig, LoopConfig, TargetConfig, Limits]:
    topics = OutgoingTopics(arm=config.arm_topic, gripper_action=config.gripper_action)
    client = ClientConfig(
        host=config.host,
        port=config.port,
        token=read_token(config.token_file),
        camera_topic=config.camera_topic,
        joint_states_topic=config.joint_states_topic,
        instruction_topic=None,
        advertise={STATUS_TOPIC: STRING} | topics.published,
    )
    loop = LoopConfig(
        session=secrets.token_hex(4),
        rate_hz=config.rate_hz,
        instruction="targets of LeRobot",
        max_frame_age_s=config.max_age_s,
        topics=topics,
        policy_failing_s=math.inf,  # between two episodes there is no target
    )
    targets = TargetConfig(
        follow_s=config.follow_s, hold_s=config.hold_s, connect_s=config.connect_s
    )
    return client, loop, targets, Limits(max_jump_rad=config.max_jump_rad, speed=config.speed)
