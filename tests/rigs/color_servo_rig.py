"""A closed loop of the colour servo and the simulated arm, without a network.

The policy sees JPEG images of the base camera at 10 Hz; what it answers takes effect `delay_steps`
control steps (20 Hz) after the image. Chunks may be lost. Times are of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg

from crane_x7_vla_rl import sim
from crane_x7_vla_rl.policies.color_servo.policy import ColorServo
from crane_x7_vla_rl.types import ActionChunk, Image, JointState, Observation

CONTROL_HZ = 20
STEPS_PER_IMAGE = 2


def make_env(
    image_size: tuple[int, int] = (640, 480),
    home_noise_rad: float = 0.02,
    obs_mode: str = "none",
    **options: Any,
) -> Any:
    """Without observations: drawing is most of a step's time, and `Rig.observe` draws."""
    return sim.make(
        sim.PICK_PLACE_ID,
        obs_mode=obs_mode,
        image_size=image_size,
        control_mode="pd_joint_pos",
        reward_mode="none",
        home_noise_rad=home_noise_rad,
        control_freq=CONTROL_HZ,
        **options,
    )


@dataclass
class Rig:
    """One robot, one policy; `instruction` may be changed while it runs."""

    env: Any
    delay_steps: int = 1
    loss: float = 0.0
    """Share of chunks that never reach the arm."""
    policy: ColorServo = field(default_factory=ColorServo)
    instruction: str = ""
    covered: bool = False
    """Whether the camera sees nothing but its own noise."""
    time_s: float = 0.0
    targets: list[np.ndarray] = field(default_factory=list)
    """(8,) of each control step."""
    recording: list[tuple[Observation, ActionChunk]] | None = None
    """Where it is a list, it gets what the policy was handed and what that answered."""

    def reset(self, seed: int) -> None:
        self.env.reset(seed=seed)
        self._rng = np.random.default_rng(seed)
        self.policy.reset()
        self.time_s, self.targets, self._steps, self.covered = 0.0, [], 0, False
        self._running: tuple[float, ActionChunk] | None = None
        self._coming: list[tuple[int, float, ActionChunk]] = []
        self._rest = self.joints().position_rad

    @property
    def scene(self) -> Any:
        return self.env.unwrapped

    @property
    def phase(self) -> str:
        return str(self.policy._slots[0][0].phase) if self.policy._slots else ""

    def joints(self) -> JointState:
        robot = self.scene.agent.robot
        return JointState(
            robot.get_qpos()[0, :8].numpy().astype(float),
            robot.get_qvel()[0, :8].numpy().astype(float),
        )

    def _draw(self) -> Image:
        scene = self.scene.scene
        scene.update_render(update_sensors=True, update_human_render_cameras=False)
        cameras = scene.sub_scenes[0].get_cameras()
        camera = next(camera for camera in cameras if camera.name.endswith("base_camera"))
        camera.take_picture()
        return np.asarray(camera.get_picture("Color"))[:, :, :3]

    def observe(self) -> Observation:
        rgb = self._draw()
        if self.covered:
            rgb = self._rng.integers(0, 6, rgb.shape, dtype=np.uint8)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=80)
        image = simplejpeg.decode_jpeg(jpeg)
        return Observation(image, self.joints(), self.instruction, self.time_s)

    def step(self) -> None:
        """One control step; every second one begins with an image."""
        if self._steps % STEPS_PER_IMAGE == 0:
            observation = self.observe()
            chunk = self.policy.predict([observation])[0]
            if self.recording is not None:
                self.recording.append((observation, chunk))
            if self._rng.random() >= self.loss:
                self._coming.append((self._steps + self.delay_steps, self.time_s, chunk))
        while self._coming and self._coming[0][0] <= self._steps:
            _, stamp_s, chunk = self._coming.pop(0)
            self._running = (stamp_s, chunk)
        target = self._target()
        self.targets.append(target)
        self.env.step(target.astype(np.float32)[None])
        self._steps += 1
        self.time_s = self._steps / CONTROL_HZ

    def _target(self) -> np.ndarray:
        if self._running is None:
            return self._rest
        stamp_s, chunk = self._running
        due = round((self.time_s - stamp_s) / chunk.period_s)
        return chunk.position_rad[min(max(due, 0), len(chunk.position_rad) - 1)]

    def run_until(self, condition: Callable[[], bool], limit_s: float, hold_s: float = 0.0) -> bool:
        """Step until `condition` has been true for `hold_s`; False if that takes over `limit_s`."""
        end_s, since_s = self.time_s + limit_s, None
        while self.time_s < end_s:
            self.step()
            if not condition():
                since_s = None
            elif since_s is None:
                since_s = self.time_s
            if since_s is not None and self.time_s - since_s >= hold_s - 1e-9:
                return True
        return False

    def lifted(self, colour: str) -> bool:
        return bool(self.scene.cube_status()[colour].lifted)

    def placed(self, colour: str) -> bool:
        return bool(self.scene.cube_status()[colour].placed)

    def position(self, colour: str) -> np.ndarray:
        return np.array(self.scene.cube_status()[colour].position_m)

    def move_cube(self, colour: str, xyz: tuple[float, float, float]) -> None:
        import sapien

        cube = self.scene.cubes[colour]
        cube.set_pose(sapien.Pose(list(xyz)))
        cube.set_linear_velocity(np.zeros(3))
        cube.set_angular_velocity(np.zeros(3))
