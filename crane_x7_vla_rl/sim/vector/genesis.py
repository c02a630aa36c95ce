"""Genesis scenes, for `--simulator genesis`: Lift-CRANE-X7, all scenes in one simulation.

The same seed gives the same cubes on the same spots as in ManiSkill, with the same camera, and the
same arm with the same drives; physics and light are Genesis's, so the same targets have other
results. Success and rewards are those of sim.tasks.Lift.

Legend: N scenes, C cubes, K contacts. World frame as in sim.scene. Lengths in m.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Final

import numpy as np
import torch

from crane_x7_vla_rl.camera import BASE_CAMERA, vertical_fov_rad
from crane_x7_vla_rl.robot import (
    ARM_DOF,
    ARM_JOINTS,
    DOF,
    FINGER_A,
    FINGER_B,
    FINGER_LENGTH_M,
    HOME_RAD,
    JOINT_NAMES,
    LOWER_RAD,
    UPPER_RAD,
)
from crane_x7_vla_rl.scenes import LIFT_ID
from crane_x7_vla_rl.sim import agent, layout, model
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.layout import PLATE_RADIUS_M
from crane_x7_vla_rl.sim.scene import (
    COLOURS,
    CUBE_HALF_M,
    CUBE_KG,
    LIFT_M,
    PLATE_HEIGHT_M,
    TOUCH_N,
    z_axis,
)
from crane_x7_vla_rl.sim.tasks import HOLD_S
from crane_x7_vla_rl.sim.vector.batched import BatchedVectorEnv, TaskStatus
from crane_x7_vla_rl.vector_config import VectorConfig

PHYSICS_HZ: Final = 400
"""Least rate of physics: Genesis's contacts are softer than PhysX's and need smaller steps."""


def make(config: VectorConfig) -> BatchedVectorEnv:
    """Return the environments; raises SimError that names what is missing, and the remedy."""
    if importlib.util.find_spec("genesis") is None:
        raise SimError(
            "--simulator genesis: genesis cannot be imported. Install it into a separate"
            " environment, as it needs an older pillow: pip install 'crane-x7-remote[genesis]'; or"
            " use --simulator maniskill"
        )
    if config.world.task != LIFT_ID:
        raise SimError(
            f"--simulator genesis: {config.world.task} has no scenes for Genesis, only {LIFT_ID}"
            " has; use --simulator maniskill"
        )
    if config.world.camera_shift_m or config.world.camera_noise:
        raise SimError("--simulator genesis: camera_shift_m and camera_noise must be 0")
    if config.true_state:
        raise SimError(
            "--simulator genesis: a critic that sees the true state has no scenes for Genesis; use"
            " --critic own or shared, or --simulator maniskill"
        )
    if config.backend == "gpu" and not torch.cuda.is_available():
        raise SimError("--backend gpu: torch sees no CUDA GPU; use --backend cpu")
    return BatchedVectorEnv(config, GenesisScenes(config))


class GenesisScenes:
    """N scenes; see batched.BatchedScenes."""

    def __init__(self, config: VectorConfig) -> None:
        """Build and compile, which takes minutes on a machine's first run."""
        _draw_without_a_display()
        import genesis

        self._world, self._count = config.world, config.num_envs
        if not genesis._initialized:  # only once in a process; no public function tells
            backend = genesis.cpu if config.backend == "cpu" else genesis.cuda
            genesis.init(backend=backend, seed=0, logging_level="error")
        self.device: torch.device = torch.device(genesis.device)
        self._build(genesis)
        self._set_drives()
        size = (self._count,)
        self._named = torch.zeros(size, dtype=torch.long, device=self.device)
        self._held = torch.zeros(size, dtype=torch.long, device=self.device)
        self._now = TaskStatus(self._held > 0, torch.zeros(size, device=self.device))
        self._lower, self._upper = self._tensor(LOWER_RAD), self._tensor(UPPER_RAD)

    # --- built once ------------------------------------------------------------------------------

    def _build(self, genesis: Any) -> None:
        hz = self._world.control_hz
        morphs, vis = genesis.morphs, genesis.options.VisOptions
        self._scene: Any = genesis.Scene(
            show_viewer=False,
            sim_options=genesis.options.SimOptions(dt=1 / hz, substeps=-(-PHYSICS_HZ // hz)),
            rigid_options=genesis.options.RigidOptions(enable_self_collision=False),
            vis_options=vis(
                split_envs=True,
                shadow=False,
                ambient_light=(0.55, 0.55, 0.55),
                background_color=(0.63, 0.68, 0.72),
                lights=[{"type": "directional", "dir": (-0.5, 0.3, -1.0),
                         "color": (1.0, 1.0, 1.0), "intensity": 2.5}],
            ),
        )  # fmt: skip
        rigid, add = genesis.materials.Rigid, self._scene.add_entity
        add(
            morphs.Box(size=(0.8, 0.9, 0.04), pos=(0.3, 0, -0.02), fixed=True),
            surface=_paint(genesis, (0.42, 0.37, 0.32)),
        )
        self._robot = add(
            morphs.URDF(file=str(model.urdf_path()), fixed=True),
            material=rigid(friction=agent.FINGER_FRICTION),
        )
        self._cubes = [
            add(
                morphs.Box(size=(2 * CUBE_HALF_M,) * 3, pos=(1 + 0.1 * number, 0, 0.5)),
                material=rigid(rho=CUBE_KG / (2 * CUBE_HALF_M) ** 3, friction=1.0),
                surface=_paint(genesis, COLOURS[colour]),
            )
            for number, colour in enumerate(self._world.colours)
        ]
        self._plate = add(
            morphs.Cylinder(
                radius=PLATE_RADIUS_M,
                height=PLATE_HEIGHT_M,
                pos=(1, 1, 0.5),
                fixed=True,
                batch_fixed_verts=True,
            ),
            surface=_paint(genesis, (0.95, 0.95, 0.93)),
        )
        self._camera = self._add_camera()
        self._scene.build(n_envs=self._count, env_spacing=(0.0, 0.0))

    def _add_camera(self) -> Any:
        """Place the base camera; Genesis takes the vertical field of view, in degrees."""
        width, height = self._world.image_size
        fov_rad = vertical_fov_rad(BASE_CAMERA.horizontal_fov_rad, width, height)
        return self._scene.add_camera(
            res=(width, height),
            pos=BASE_CAMERA.position_m,
            lookat=BASE_CAMERA.target_m,
            fov=float(np.rad2deg(fov_rad)),
            near=0.05,
            far=5.0,
            GUI=False,
        )

    def _set_drives(self) -> None:
        """Set the drives of sim.agent."""
        names = (*JOINT_NAMES, FINGER_B.name)
        self._dofs = [self._robot.get_joint(name).dofs_idx_local[0] for name in names]
        arms, fingers = ARM_DOF, len(names) - ARM_DOF
        stiffness = [agent.ARM_STIFFNESS] * arms + [agent.FINGER_STIFFNESS] * fingers
        damping = [agent.ARM_DAMPING] * arms + [agent.FINGER_DAMPING] * fingers
        efforts = [joint.effort_nm for joint in ARM_JOINTS] + [agent.FINGER_FORCE_NM] * fingers
        limit = np.array(efforts)
        self._robot.set_dofs_kp(np.array(stiffness), self._dofs)
        self._robot.set_dofs_kv(np.array(damping), self._dofs)
        self._robot.set_dofs_force_range(-limit, limit, self._dofs)
        self._robot.set_dofs_armature(np.full(fingers, 1e-3), self._dofs[ARM_DOF:])
        link = self._robot.get_link
        self._hand = link(model.GRIPPER_BASE_LINK)
        self._fingers = [link(name).idx for name in model.FINGER_LINKS]

    # --- the interface ---------------------------------------------------------------------------

    def begin(self, envs: list[int], seeds: list[int]) -> None:
        """See BatchedScenes; sampled in the order of sim.scene, so that layouts are the same."""
        layouts, poses, colours = [], [], len(self._world.colours)
        for env, seed in zip(envs, seeds, strict=True):
            generator = np.random.RandomState(seed)
            layouts.append(layout.draw(generator, colours, self._world.spawn_range_m))
            self._named[env] = int(generator.randint(colours))
            pose = np.append(HOME_RAD, HOME_RAD[-1])
            if self._world.home_noise_rad:
                pose[:ARM_DOF] += generator.normal(0, self._world.home_noise_rad, ARM_DOF)
            poses.append(pose)
        self._put(envs, np.array(layouts))
        joints = self._tensor(np.array(poses))
        self._robot.set_dofs_position(joints, self._dofs, envs, zero_velocity=True)
        self._robot.control_dofs_position(joints, self._dofs, envs)
        self._held[envs] = 0
        self._scene.visualizer.update(force=True)
        self._now = self._judge(counts=False)

    def _put(self, envs: list[int], layouts: np.ndarray[Any, Any]) -> None:
        """Place cubes and plate at (n, C + 1, 3) x, y, yaw, at rest."""
        for column, body in enumerate((*self._cubes, self._plate)):
            x, y, yaw = layouts[:, column].T
            height = PLATE_HEIGHT_M / 2 if body is self._plate else CUBE_HALF_M
            position = np.column_stack([x, y, np.full_like(x, height)])
            half, zero = yaw / 2, np.zeros_like(yaw)
            turn = np.column_stack([np.cos(half), zero, zero, np.sin(half)])
            body.set_pos(self._tensor(position), envs)
            body.set_quat(self._tensor(turn), envs)
            if body is not self._plate:
                body.zero_all_dofs_velocity(envs)

    def step(self, targets_rad: torch.Tensor) -> None:
        """See BatchedScenes; finger B follows finger A's target."""
        targets = targets_rad.clamp(self._lower, self._upper)
        both = torch.cat([targets, targets[:, -1:]], dim=1)
        self._robot.control_dofs_position(both, self._dofs)
        self._scene.step()
        self._now = self._judge(counts=True)

    def progress(self) -> TaskStatus:
        """See BatchedScenes."""
        return self._now

    def state_rad(self) -> torch.Tensor:
        """See BatchedScenes."""
        state: torch.Tensor = self._robot.get_dofs_position(self._dofs[:DOF])
        return state.to(torch.float32).clone()

    def images(self) -> torch.Tensor:
        """See BatchedScenes."""
        picture = np.asarray(self._camera.render()[0])  # (N, H, W, 3) uint8
        return torch.from_numpy(picture.copy()).to(self.device)

    def instructions(self) -> list[str]:
        """See BatchedScenes."""
        return [f"pick up the {self._world.colours[index]} cube" for index in self._named.tolist()]

    def true_state(self, elapsed: torch.Tensor) -> torch.Tensor:
        """See BatchedScenes; `make` refuses to be here."""
        raise NotImplementedError

    def close(self) -> None:
        """See BatchedScenes."""
        self._scene.destroy()

    # --- the present state -----------------------------------------------------------------------

    def _judge(self, counts: bool) -> TaskStatus:
        """Return the state of the task, as in sim.tasks.Lift."""
        everywhere = torch.arange(self._count, device=self.device)
        cubes = torch.stack([cube.get_pos() for cube in self._cubes], dim=1)  # (N, C, 3)
        position = cubes[everywhere, self._named]
        grasped = self._touched()[everywhere, self._named]
        rise = position[:, 2] - CUBE_HALF_M
        up = grasped & (rise >= LIFT_M)
        self._held = torch.where(up, self._held + int(counts), 0)
        success = self._held >= HOLD_S * self._world.control_hz
        distance = torch.linalg.vector_norm(position - self._tool_position(), dim=-1)
        near = 1 - torch.tanh(5 * distance)
        height = (rise / LIFT_M).clamp(0, 1)
        total = near + grasped.float() * (1 + height) + success.float()
        return TaskStatus(success, (total / 4).to(torch.float32))

    def _tool_position(self) -> torch.Tensor:
        """(N, 3): the point between the fingertips."""
        reach = FINGER_A.origin_m[2] + FINGER_LENGTH_M
        position: torch.Tensor = self._hand.get_pos() + reach * z_axis(self._hand.get_quat())
        return position

    def _touched(self) -> torch.Tensor:
        """(N, C) bool: both fingers press the cube."""
        columns = []
        for cube in self._cubes:
            contacts = self._robot.get_contacts(with_entity=cube)
            valid = contacts["valid_mask"]  # (N, K)
            touched = torch.ones(self._count, dtype=torch.bool, device=self.device)
            for finger in self._fingers:
                mine = valid & ((contacts["link_a"] == finger) | (contacts["link_b"] == finger))
                force = (contacts["force_a"] * mine[..., None]).sum(1)  # (N, 3)
                touched &= torch.linalg.vector_norm(force, dim=-1) >= TOUCH_N
            columns.append(touched)
        return torch.stack(columns, dim=1)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def _draw_without_a_display() -> None:
    """Bind OpenGL to EGL, even if `ssh -X` has set a display, unless the user has chosen.

    PyOpenGL binds once, when genesis imports it. Its platform is PYOPENGL_PLATFORM.
    """
    import OpenGL

    if OpenGL.environ_key("PLATFORM", None) is None:
        OpenGL.setPlatform("egl")


def _paint(genesis: Any, colour: tuple[float, float, float]) -> Any:
    return genesis.surfaces.Rough(color=(*colour, 1.0))
