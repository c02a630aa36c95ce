"""One simulated arm in one scene: joint targets → observations, and the privileged state.

`observe` is for policies; `scene` and `success` are only for experts and evaluation. Steps render
no image: that takes more time than the physics, and a policy that acts in chunks needs one per
chunk.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sapien
import torch

from crane_x7_vla_rl import sim
from crane_x7_vla_rl.robot import DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.scenes import Variation, WorldConfig
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.layout import Arrangement
from crane_x7_vla_rl.types import WRIST, Array, Image, JointState, Observation

BASE_CAMERA: Final = "base_camera"
HAND_CAMERA: Final = "hand_camera"


class World:
    """The simulation of one `WorldConfig`."""

    def __init__(self, config: WorldConfig, has_wrist: bool = False) -> None:
        """`has_wrist`: observations have the hand camera's image, too, which takes as long again.

        Raises SimError for a wrong option, or a machine that cannot render.
        """
        torch.set_num_threads(1)  # one scene's tensors are too small to share among threads
        self.config, self._has_wrist = config, has_wrist
        if config.vary and config.variation != Variation():
            raise SimError("vary draws a variation for each scene; leave it or the variation out")
        self.scene: Any = None
        """The privileged view: a sim.scene.CubeScene."""
        self._build(config.variation)
        self._noise = np.random.default_rng(0)
        self.step_index = 0
        """Control steps since the reset."""
        self.success = False

    def _build(self, variation: Variation) -> None:
        """Make the scene, in place of the one before."""
        if self.scene is not None:
            self.scene.close()
        config, self._variation = self.config, variation
        self.scene = sim.make(
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
            variation=variation,
            cameras=(BASE_CAMERA, HAND_CAMERA) if self._has_wrist else (BASE_CAMERA,),
        ).unwrapped
        _, self._info = self.scene.reset(seed=0)
        self._camera = self._find(BASE_CAMERA)
        self._wrist = self._find(HAND_CAMERA) if self._has_wrist else None
        self._camera_at = self._camera.get_local_pose()

    def _find(self, name: str) -> Any:
        cameras = self.scene.scene.sub_scenes[0].get_cameras()
        return next(camera for camera in cameras if camera.name.endswith(name))

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

    def reset(self, seed: int, colour: str | None = None) -> None:
        """Start the episode of `seed`, which sets layout, named cube, start pose and noise.

        `colour` names another cube in the same layout.
        """
        if self.config.vary:
            self._build(Variation.drawn(seed, self.config.vary))
        options = {} if colour is None else {"colour": colour}
        _, self._info = self.scene.reset(seed=seed, options=options)
        self._noise = np.random.default_rng([seed, 1])
        self._place_camera()
        self.step_index, self.success = 0, False

    def _place_camera(self) -> None:
        shift, offset_m = np.zeros(3), self._variation.camera_offset_m
        if self.config.camera_shift_m:
            shift += self._noise.normal(0, self.config.camera_shift_m, 3)
        if offset_m:
            direction = self._noise.normal(0, 1, 3)
            shift += offset_m * direction / np.linalg.norm(direction)
        if shift.any():
            self._camera.set_local_pose(sapien.Pose(self._camera_at.p + shift, self._camera_at.q))

    def rearrange(self, generator: np.random.Generator, how: Arrangement) -> None:
        """Move cubes and plate during the episode."""
        self.scene.rearrange(np.random.RandomState(generator.integers(2**31)), how)

    def put_arm(self, position_rad: npt.ArrayLike) -> None:
        """Put the arm at joints (8,), rad, at once and at rest; nothing that it meets is moved."""
        position = np.asarray(position_rad, dtype=np.float32)
        self.scene.agent.reset(np.append(position, position[-1])[None])

    def step(self, target_rad: npt.ArrayLike) -> None:
        """Drive towards joint targets (8,), rad, for one period; clipped to the joints' limits."""
        target = np.clip(np.asarray(target_rad, dtype=np.float64), LOWER_RAD, UPPER_RAD)
        *_, self._info = self.scene.step(target.astype(np.float32))
        self.step_index += 1
        self.success = bool(self._info["success"])

    @property
    def is_grasped(self) -> bool:
        """Whether both fingers press the named cube."""
        return bool(self._info["grasped"][0])

    @property
    def height_m(self) -> float:
        """Height of the named cube above its start."""
        return float(self._info["height_m"][0])

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
        return self._image(self._camera)

    def _image(self, camera: Any) -> Image:
        width, height = self.config.image_size
        picture = np.empty((height, width, 3), dtype=np.uint8)
        self._draw(camera, picture)
        return picture

    def draw(self, out: Image) -> None:
        """Write the image of the base camera into `out`, (H, W, 3) uint8."""
        self._draw(self._camera, out)

    def _draw(self, camera: Any, out: Image) -> None:
        self.scene.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera.take_picture()
        picture = np.asarray(camera.get_picture("Color"))[:, :, :3]  # (H, W, 3) uint8
        if self.config.camera_noise:
            noisy = picture + self._noise.normal(0, self.config.camera_noise, picture.shape)
            picture = np.clip(np.rint(noisy), 0, 255)
        np.copyto(out, picture, casting="unsafe")

    def observe(self, instruction: str | None = None) -> Observation:
        """Observation for a policy; `instruction` replaces the scene's."""
        time_s, words = self.step_index * self.period_s, instruction or self.instruction
        image = self.image()
        more = {} if self._wrist is None else {WRIST: self._image(self._wrist)}
        return Observation(image, self.joints(), words, time_s, more)

    def close(self) -> None:
        """Free the simulation."""
        self.scene.close()
