"""One simulated arm in one scene: joint targets → observations, and the privileged state.

`observe` is for policies; `scene` and `success` are only for experts and evaluation. Steps render
no image: that takes more time than the physics, and a policy that acts in chunks needs one per
chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sapien
import torch

from crane_x7_vla_rl import sim
from crane_x7_vla_rl.robot import DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.sim.layout import Arrangement
from crane_x7_vla_rl.types import Array, Image, JointState, Observation


class World:
    """The simulation of one `WorldConfig`."""

    def __init__(self, config: WorldConfig) -> None:
        """Raises SimError for a wrong option, or a machine that cannot render."""
        torch.set_num_threads(1)  # one scene's tensors are too small to share among threads
        self.config = config
        self.scene: Any = sim.make(
            config.task,
            render=config.render,
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_joint_pos",
            image_size=config.image_size,
            colours=config.colours,
            spawn_range_m=config.spawn_range_m,
            home_noise_rad=config.home_noise_rad,
            control_freq=config.control_hz,
        ).unwrapped
        """The privileged view: a sim.scene.CubeScene."""
        _, self._info = self.scene.reset(seed=0)
        cameras = self.scene.scene.sub_scenes[0].get_cameras()
        self._camera = next(camera for camera in cameras if camera.name.endswith("base_camera"))
        self._camera_at = self._camera.get_local_pose()
        self._noise = np.random.default_rng(0)
        self.step_index = 0
        """Control steps since the reset."""
        self.success = False

    @property
    def period_s(self) -> float:
        """Time between steps."""
        return 1.0 / self.config.control_hz

    @property
    def ended(self) -> bool:
        """Whether the episode is over: by success, or by its time limit."""
        return self.success or self.step_index >= self.config.max_steps

    @property
    def instruction(self) -> str:
        """The task in words."""
        words: str = self.scene.instruction[0]
        return words

    @property
    def named_colour(self) -> str:
        """The cube that the instruction names."""
        colour: str = self.scene.named_colours[0]
        return colour

    def reset(self, seed: int) -> None:
        """Start the episode of `seed`, which sets layout, named cube, start pose and noise."""
        _, self._info = self.scene.reset(seed=seed)
        self._noise = np.random.default_rng([seed, 1])
        self._place_camera()
        self.step_index, self.success = 0, False

    def _place_camera(self) -> None:
        if self.config.camera_shift_m:
            shift = self._noise.normal(0, self.config.camera_shift_m, 3)
            self._camera.set_local_pose(sapien.Pose(self._camera_at.p + shift, self._camera_at.q))

    def rearrange(self, generator: np.random.Generator, how: Arrangement) -> None:
        """Move cubes and plate during the episode."""
        self.scene.rearrange(np.random.RandomState(generator.integers(2**31)), how)

    def step(self, target_rad: npt.ArrayLike) -> None:
        """Drive towards joint targets (8,), rad, for one period; clipped to the joints' limits."""
        target = np.clip(np.asarray(target_rad, dtype=np.float64), LOWER_RAD, UPPER_RAD)
        *_, self._info = self.scene.step(target.astype(np.float32))
        self.step_index += 1
        self.success = bool(self._info["success"])

    def progress(self) -> float:
        """Progress of the task, 0…1: the dense reward's terms, see sim.tasks."""
        reward = self.scene.compute_normalized_dense_reward(None, None, self._info)
        return float(reward[0])

    def joints(self) -> JointState:
        """Measured joints."""
        robot = self.scene.agent.robot
        return JointState(robot.get_qpos()[0, :DOF].numpy(), robot.get_qvel()[0, :DOF].numpy())

    def position_rad(self) -> Array:
        """(8,) measured."""
        return self.joints().position_rad

    def image(self) -> Image:
        """(H, W, 3) uint8 of the base camera, with the configured noise."""
        width, height = self.config.image_size
        picture = np.empty((height, width, 3), dtype=np.uint8)
        self.draw(picture)
        return picture

    def draw(self, out: Image) -> None:
        """Write the image of the base camera into `out`, (H, W, 3) uint8."""
        self.scene.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        self._camera.take_picture()
        picture = np.asarray(self._camera.get_picture("Color"))[:, :, :3]  # (H, W, 3) uint8
        if self.config.camera_noise:
            noisy = picture + self._noise.normal(0, self.config.camera_noise, picture.shape)
            picture = np.clip(np.rint(noisy), 0, 255)
        np.copyto(out, picture, casting="unsafe")

    def observe(self, instruction: str | None = None) -> Observation:
        """Observation for a policy; `instruction` replaces the scene's."""
        time_s = self.step_index * self.period_s
        return Observation(self.image(), self.joints(), instruction or self.instruction, time_s)

    def close(self) -> None:
        """Free the simulation."""
        self.scene.close()
