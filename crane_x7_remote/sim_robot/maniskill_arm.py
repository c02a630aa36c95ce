"""The simulated CRANE-X7 with cubes, plate and cameras: the body of the simulated robot.

Wraps a ManiSkill environment of `crane_x7_vla_rl.sim` whose episode never ends: physics advance by
`step`, an image is rendered only when `jpeg` is called.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from crane_x7_remote.errors import SimulationError
from crane_x7_vla_rl.camera import BASE_CAMERA, Camera
from crane_x7_vla_rl.robot import DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.scenes import COLOUR_NAMES, Render, WorldConfig
from crane_x7_vla_rl.types import JointState

Array = npt.NDArray[np.float64]
WRIST_CAMERA = "hand_camera"


@dataclass(frozen=True)
class SceneConfig:
    """The scene and its camera."""

    task: str = "PickPlace-CRANE-X7"
    """gymnasium id."""
    seed: int = 0
    colours: tuple[str, ...] = COLOUR_NAMES
    """Colours of the cubes."""
    spawn_range_m: float = WorldConfig.spawn_range_m
    """Largest distance of cubes and plate from their default positions."""
    camera: str = "base"
    """base or hand."""
    has_wrist_camera: bool = False
    """Whether the hand camera exists besides that one."""
    base_camera: Camera = BASE_CAMERA
    """Pose of that camera."""
    image_size: tuple[int, int] = (640, 480)
    """(width, height)."""
    control_rate_hz: float = 30.0
    jpeg_quality: int = 90
    render: Render = "auto"
    """Device that draws; see crane_x7_vla_rl.sim.render."""


class ManiSkillArm:
    """See sim_robot.arm.Arm."""

    def __init__(self, config: SceneConfig) -> None:
        """Raises SimulationError if the scene cannot be built or rendered on this machine."""
        self._config = config
        self._env = _make_environment(config)
        self._camera = _find_camera(self._env, f"{config.camera}_camera")
        self._wrist = _find_camera(self._env, WRIST_CAMERA) if config.has_wrist_camera else None
        self._view = _find_camera(self._env, "render_camera")
        self.jpeg()  # The first image takes longest.
        self._note_start()

    def _note_start(self) -> None:
        self._start_poses = {colour: cube.pose.sp for colour, cube in self._env.cubes.items()}
        self._ever_lifted = dict.fromkeys(self._env.cubes, False)

    @property
    def period_s(self) -> float:
        """See Arm; the environment rounds the control rate to whole Hz."""
        return float(self._env.control_timestep)

    def step(self, target_rad: Array) -> None:
        """See Arm."""
        self._env.step(np.clip(target_rad, LOWER_RAD, UPPER_RAD).astype(np.float32))

    def joints(self) -> JointState:
        """See Arm."""
        robot = self._env.agent.robot
        return JointState(robot.get_qpos()[0, :DOF].numpy(), robot.get_qvel()[0, :DOF].numpy())

    def jpeg(self) -> bytes:
        """See Arm."""
        return self._picture(self._camera)

    def wrist_jpeg(self) -> bytes:
        """See Arm; only with `has_wrist_camera`."""
        assert self._wrist is not None
        return self._picture(self._wrist)

    def view_jpeg(self) -> bytes:
        """See Arm."""
        return self._picture(self._view)

    def _picture(self, camera: Any) -> bytes:
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera.take_picture()
        # The camera's own buffer: ManiSkill's path through a tensor copies for another 6 ms.
        pixels = np.ascontiguousarray(camera.get_picture("Color"))  # (H, W, 4) uint8
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels, quality=self._config.jpeg_quality, colorspace="RGBA", colorsubsampling="420"
        )
        return encoded

    def scene(self) -> dict[str, dict[str, Any]]:
        """See Arm: per cube grasped, lifted, ever_lifted, placed and position_m."""
        status = self._env.cube_status()
        for colour, cube in status.items():
            self._ever_lifted[colour] |= cube.lifted
        return {
            colour: asdict(cube) | {"ever_lifted": self._ever_lifted[colour]}
            for colour, cube in status.items()
        }

    def put_back(self, colour: str) -> None:
        """See Arm."""
        if colour in self._start_poses:
            cube = self._env.cubes[colour]
            cube.set_pose(self._start_poses[colour])
            cube.set_linear_velocity(np.zeros(3))
            cube.set_angular_velocity(np.zeros(3))

    def arrange(self, seed: int) -> None:
        """See Arm: as a robot that is started with this seed has them."""
        from crane_x7_vla_rl.sim.layout import Arrangement

        self._env.rearrange(np.random.RandomState(seed), Arrangement.ANY)
        self._note_start()

    def close(self) -> None:
        """See Arm."""
        self._env.close()


def _make_environment(config: SceneConfig) -> Any:
    """Return the bare environment, without the wrapper that would end the episode."""
    import torch

    from crane_x7_vla_rl import sim

    names = [f"{config.camera}_camera", *([WRIST_CAMERA] if config.has_wrist_camera else [])]
    torch.set_num_threads(1)  # The tensors of one scene are too small for several threads.
    try:
        environment = sim.make(
            config.task,
            render=config.render,
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_joint_pos",
            image_size=config.image_size,
            colours=config.colours,
            spawn_range_m=config.spawn_range_m,
            base_camera=config.base_camera,
            cameras=tuple(dict.fromkeys(names)),
            control_freq=round(config.control_rate_hz),
        ).unwrapped
    except sim.SimError as error:
        raise SimulationError(str(error)) from error
    environment.reset(seed=config.seed)
    return environment


def _find_camera(environment: Any, name: str) -> Any:
    """Return SAPIEN's camera behind ManiSkill's sensor."""
    cameras = environment.scene.sub_scenes[0].get_cameras()
    return next(camera for camera in cameras if camera.name.endswith(name))
