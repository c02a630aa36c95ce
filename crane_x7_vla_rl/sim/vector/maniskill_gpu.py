"""ManiSkill scenes on a GPU, for `--backend gpu`: joints and images stay on it.

UNVERIFIED on a GPU: SAPIEN's GPU PhysX library was not available during development. The same code
also runs with a single ManiSkill scene on the CPU, whose tensors have the same shapes; so the
bookkeeping is tested, GPU PhysX and its partial resets are not.

Legend: N scenes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sapien
import torch

from crane_x7_vla_rl import gpu_simulation, physx_library, sim
from crane_x7_vla_rl.robot import DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.sim import render
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector.batched import BatchedVectorEnv, TaskStatus
from crane_x7_vla_rl.sim.vector.true_state import true_state
from crane_x7_vla_rl.vector_config import Backend, VectorConfig


class Machine(gpu_simulation.Machine):
    """Requirements of GPU simulation, as torch and SAPIEN report them."""

    def check(self) -> None:
        """Raise SimError that lists everything missing."""
        if found := self.problems():
            raise SimError("\n  ".join(found))


def this_machine() -> Machine:
    """Return the capabilities of this machine."""
    folder = Path.home() / physx_library.FOLDER / sapien.physx.version()
    cuda = torch.cuda.is_available()
    return Machine(cuda, folder / physx_library.NAME, cuda and render.gpu_name() is not None)


def make(config: VectorConfig) -> BatchedVectorEnv:
    """Return the environments; raises SimError if the machine lacks a requirement."""
    this_machine().check()
    return BatchedVectorEnv(config, ManiSkillScenes(config, "gpu"))


class ManiSkillScenes:
    """N scenes of one ManiSkill environment; on the CPU N is 1, for tests."""

    def __init__(self, config: VectorConfig, backend: Backend) -> None:
        """Build; raises SimError."""
        world = config.world
        self._config, self._dense = config, config.rewards.kind == "dense"
        self._scene: Any = sim.make(
            world.task,
            backend=backend,
            num_envs=config.num_envs,
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_joint_pos",
            image_size=world.image_size,
            colours=world.colours,
            spawn_range_m=world.spawn_range_m,
            home_noise_rad=world.home_noise_rad,
            control_freq=world.control_hz,
        ).unwrapped
        self.device: torch.device = self._scene.device
        self._lower = torch.tensor(LOWER_RAD, dtype=torch.float32, device=self.device)
        self._upper = torch.tensor(UPPER_RAD, dtype=torch.float32, device=self.device)
        self._noise = torch.Generator(self.device)
        self._seeds = [0] * config.num_envs
        self._info: dict[str, Any] = {}
        if world.camera_shift_m:
            raise SimError(
                "camera_shift_m is set: this backend has one camera for all scenes; set it to 0 or"
                " use --backend cpu"
            )

    def begin(self, envs: list[int], seeds: list[int]) -> None:
        """See BatchedScenes. ManiSkill needs the seeds of all scenes, even for a partial reset."""
        for env, seed in zip(envs, seeds, strict=True):
            self._seeds[env] = seed
        index = torch.tensor(envs, device=self.device)
        _, self._info = self._scene.reset(seed=list(self._seeds), options={"env_idx": index})
        self._noise.manual_seed(sum(self._seeds))

    def step(self, targets_rad: torch.Tensor) -> None:
        """See BatchedScenes."""
        *_, self._info = self._scene.step(targets_rad.clamp(self._lower, self._upper))

    def progress(self) -> TaskStatus:
        """See BatchedScenes; progress is computed only for dense rewards."""
        success = self._info["success"]
        if not self._dense:
            return TaskStatus(success, torch.zeros_like(success, dtype=torch.float32))
        reward = self._scene.compute_normalized_dense_reward(None, None, self._info)
        return TaskStatus(success, reward)

    def state_rad(self) -> torch.Tensor:
        """See BatchedScenes."""
        state: torch.Tensor = self._scene.agent.robot.get_qpos()[:, :DOF].clone()
        return state

    def images(self) -> torch.Tensor:
        """See BatchedScenes."""
        scene = self._scene.scene
        scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera = scene.sensors["base_camera"]
        camera.capture()
        seen = camera.get_obs(rgb=True, depth=False, position=False, segmentation=False)
        picture: torch.Tensor = seen["rgb"]  # (N, H, W, 3) uint8
        noise = self._config.world.camera_noise
        if not noise:
            return picture.clone()
        drawn = torch.randn(picture.shape, generator=self._noise, device=self.device)
        return (picture + noise * drawn).round().clamp(0, 255).to(torch.uint8)

    def instructions(self) -> list[str]:
        """See BatchedScenes."""
        words: list[str] = self._scene.instruction
        return words

    def true_state(self, elapsed: torch.Tensor) -> torch.Tensor:
        """See BatchedScenes."""
        return true_state(self._scene, self._info["grasped"], elapsed)

    def close(self) -> None:
        """See BatchedScenes."""
        self._scene.close()


def lone_scene(config: VectorConfig) -> BatchedVectorEnv:
    """Return one environment of this kind on the CPU, for tests that compare backends."""
    if config.num_envs != 1:
        raise SimError(
            f"num_envs is {config.num_envs}, expected 1: ManiSkill has one scene on a CPU"
        )
    return BatchedVectorEnv(config, ManiSkillScenes(config, "cpu"))


__all__ = ["Machine", "ManiSkillScenes", "lone_scene", "make", "this_machine"]
