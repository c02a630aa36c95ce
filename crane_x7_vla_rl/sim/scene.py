"""The scene of both tasks: table, cubes, plate, cameras, reset by seed, and each cube's state.

Legend: N parallel scenes, C cubes. World frame: mounting surface under the robot, z up, x forward;
the table's top is at z = 0. Lengths in m.

Each episode places the cubes and the plate on four spots in a random order, each shifted by up to
`spawn_range_m`. A light scene on purpose: flat colours, no textures, no shadows, a few hundred
vertices.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.render import ShaderConfig
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building import ActorBuilder
from mani_skill.utils.structs.actor import Actor
from mani_skill.utils.structs.pose import Pose
from mani_skill.utils.structs.types import SceneConfig, SimConfig
from sapien.physx import PhysxMaterial

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.camera import (
    BASE_CAMERA,
    VIEW_CAMERA,
    VIEW_SIZE,
    Camera,
    vertical_fov_rad,
)
from crane_x7_vla_rl.robot import (
    CAMERA_HORIZONTAL_FOV_RAD,
    CAMERA_IN_GRIPPER_BASE_M,
    FINGER_A,
    FINGER_LENGTH_M,
    HOME_RAD,
)
from crane_x7_vla_rl.scenes import Variation
from crane_x7_vla_rl.sim import layout, shaders
from crane_x7_vla_rl.sim.agent import CraneX7
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.layout import PLATE_RADIUS_M, Arrangement

COLOURS: Final = {
    "red": (0.80, 0.06, 0.06),
    "green": (0.06, 0.60, 0.12),
    "blue": (0.06, 0.15, 0.80),
}
CUBE_HALF_M: Final = 0.015
CUBE_KG: Final = 0.03
CUBE_FRICTION: Final = 0.3
"""ManiSkill's default of every body; the fingers have more, see sim.agent."""
PLATE_HEIGHT_M: Final = 0.006
LIFT_M: Final = 0.10
TOUCH_N: Final = 0.3
"""A finger holds a cube when it presses at least this hard; a cube weighs 0.3 N."""
OPEN_RAD: Final = 0.15
AWAY_M: Final = 0.06
STILL_M_S: Final = 0.05
CAMERAS: Final = ("base_camera", "hand_camera")
NO_VARIATION: Final = Variation()


@dataclass(frozen=True)
class CubeStatus:
    """The true state of one cube; for rewards and reports, never for a policy."""

    grasped: bool
    lifted: bool
    """Grasped, and LIFT_M above its start."""
    placed: bool
    """At rest on the plate, the gripper open and away."""
    position_m: tuple[float, float, float]


class CubeScene(BaseEnv):
    """A CRANE-X7 with coloured cubes and a plate; the tasks define success."""

    SUPPORTED_ROBOTS: ClassVar = ["crane_x7"]
    agent: CraneX7

    def __init__(
        self,
        *args: Any,
        image_size: tuple[int, int] = (128, 128),
        cameras: tuple[str, ...] = ("base_camera",),
        colours: tuple[str, ...] = tuple(COLOURS),
        spawn_range_m: float = 0.03,
        home_noise_rad: float = 0.02,
        control_freq: int = 20,
        base_camera: Camera = BASE_CAMERA,
        variation: Variation = NO_VARIATION,
        **kwargs: Any,
    ) -> None:
        """`image_size` is (width, height); `cameras` of CAMERAS are rendered, each takes time;
        `colours` of COLOURS are the cubes' colours; `base_camera` is the pose of the base camera;
        `variation` changes light, cubes and arm (its camera is moved by sim.world).
        Raises SimError for a wrong option."""
        _check_choice("cameras", cameras, CAMERAS)
        _check_choice("colours", colours, tuple(COLOURS))
        if not 0 <= spawn_range_m <= 0.05:
            raise SimError(f"spawn_range_m is {spawn_range_m}, expected 0 to 0.05 m")
        fields.check(variation, "variation.", SimError)
        self.variation = variation
        self.cube_half_m = CUBE_HALF_M * variation.cube_size
        self.image_size = image_size
        self.camera_names = cameras
        self.base_camera = base_camera
        self.colours = colours
        self.spawn_range_m = spawn_range_m
        self.home_noise_rad = home_noise_rad
        self._control_hz = control_freq
        kwargs.setdefault("robot_uids", "crane_x7")
        super().__init__(*args, **kwargs)

    # --- built once ------------------------------------------------------------------------------

    @property
    def _default_sim_config(self) -> SimConfig:
        # Four physics steps per control step at 20 Hz; the soft fingers stay stable down to 60 Hz.
        sim_hz = self._control_hz * max(1, round(80 / self._control_hz))
        return SimConfig(
            sim_freq=sim_hz,
            control_freq=self._control_hz,
            scene_config=SceneConfig(solver_position_iterations=12),
        )

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        width, height = self.image_size
        configs = []
        shader = self._shader()
        if "base_camera" in self.camera_names:
            camera = self.base_camera
            pose = sapien_utils.look_at(camera.position_m, camera.target_m, camera.up_m)
            fov = vertical_fov_rad(camera.horizontal_fov_rad, width, height)
            lens = (width, height, fov, 0.05, 5)
            configs.append(CameraConfig("base_camera", pose, *lens, shader_config=shader))
        if "hand_camera" in self.camera_names:
            # Looks along the fingers (+z of the gripper base), its upper side towards +y.
            axes = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = axes, CAMERA_IN_GRIPPER_BASE_M
            fov = vertical_fov_rad(CAMERA_HORIZONTAL_FOV_RAD, width, height)
            pose, lens = sapien.Pose(matrix), (width, height, fov, 0.01, 5)
            mount = self.agent.gripper_base
            configs.append(
                CameraConfig("hand_camera", pose, *lens, mount=mount, shader_config=shader)
            )
        return configs

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        width, height = VIEW_SIZE
        pose = sapien_utils.look_at(VIEW_CAMERA.position_m, VIEW_CAMERA.target_m)
        fov = vertical_fov_rad(VIEW_CAMERA.horizontal_fov_rad, width, height)
        return CameraConfig(
            "render_camera", pose, width, height, fov, 0.05, 10, shader_config=self._shader()
        )

    def _shader(self) -> ShaderConfig | None:
        """Shaders: on a CPU without the parts that start slowly; None: ManiSkill's choice."""
        return None if self.backend.render_device.is_cuda() else shaders.without_table()

    def _load_agent(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._load_agent(options, sapien.Pose(), *args, **kwargs)
        self.agent.vary(self.variation)

    def _load_lighting(self, options: dict[str, Any]) -> None:
        del options
        factor = self.variation.light
        self.scene.set_ambient_light([0.55 * factor] * 3)
        self.scene.add_directional_light([-0.5, 0.3, -1.0], [0.9 * factor] * 3)

    def _load_scene(self, options: dict[str, Any]) -> None:
        del options
        table = self.scene.create_actor_builder()
        half = [0.4, 0.45, 0.02]
        table.add_box_collision(half_size=half)
        table.add_box_visual(half_size=half, material=_material((0.42, 0.37, 0.32)))
        table.initial_pose = sapien.Pose([0.3, 0, -0.02])
        self.table = table.build_static("table")
        wall = self.scene.create_actor_builder()
        wall.add_box_visual(half_size=[0.01, 4, 4], material=_material((0.63, 0.68, 0.72)))
        wall.initial_pose = sapien.Pose([-0.8, 0, 0])
        self.wall = wall.build_static("wall")
        self.cubes: dict[str, Actor] = {colour: self._build_cube(colour) for colour in self.colours}
        self.plate = self._build_plate()

    def _build_cube(self, colour: str) -> Actor:
        builder: ActorBuilder = self.scene.create_actor_builder()
        half, factor = [self.cube_half_m] * 3, self.variation.friction
        material = None if factor == 1 else PhysxMaterial(*[CUBE_FRICTION * factor] * 2, 0.0)
        density = CUBE_KG / (2 * CUBE_HALF_M) ** 3
        builder.add_box_collision(half_size=half, material=material, density=density)
        builder.add_box_visual(half_size=half, material=_material(cube_rgb(colour, self.variation)))
        # Built at separate places, so that no two bodies ever overlap.
        builder.initial_pose = sapien.Pose([1 + 0.1 * len(colour), 0, 0.5])
        return builder.build(f"cube_{colour}")

    def _build_plate(self) -> Actor:
        """A round plate, a flat cylinder; the axis of cylinders is x, so it is rotated."""
        builder: ActorBuilder = self.scene.create_actor_builder()
        pose = sapien.Pose(q=[np.cos(np.pi / 4), 0, np.sin(np.pi / 4), 0])
        size = {"radius": PLATE_RADIUS_M, "half_length": PLATE_HEIGHT_M / 2}
        builder.add_cylinder_collision(pose, **size)
        builder.add_cylinder_visual(pose, material=_material((0.95, 0.95, 0.93)), **size)
        builder.initial_pose = sapien.Pose([1, 1, 0.5])
        return builder.build_kinematic("plate")

    # --- the start of an episode -----------------------------------------------------------------

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        count = len(env_idx)
        generators = [self._batched_episode_rng[int(index)] for index in env_idx]
        cubes, spread_m = len(self.colours), self.spawn_range_m
        layouts = [layout.draw(generator, cubes, spread_m) for generator in generators]
        self._put(np.array(layouts))  # (n, C + 1, 3)
        self._name_cubes(env_idx, generators, options)
        qpos = np.tile(np.append(HOME_RAD, HOME_RAD[-1]), (count, 1))
        for row, generator in enumerate(generators):
            noise = generator.normal(0, self.home_noise_rad, 7) if self.home_noise_rad else 0.0
            qpos[row, :7] += noise
        self.agent.reset(qpos)
        if not hasattr(self, "_held_steps"):
            self._held_steps = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
            self._counted_at = torch.zeros_like(self.elapsed_steps)
        self._held_steps[env_idx] = 0
        self._counted_at[env_idx] = 0

    def _put(self, layouts: np.ndarray[Any, Any]) -> None:
        """Place cubes and plate at (n, C + 1, 3), at rest."""
        for column, actor in enumerate((*self.cubes.values(), self.plate)):
            xy_yaw = torch.as_tensor(layouts[:, column], dtype=torch.float32, device=self.device)
            height = PLATE_HEIGHT_M / 2 if actor is self.plate else self.cube_half_m
            _rest(actor, _upright(xy_yaw, height))

    def rearrange(self, generator: np.random.RandomState, how: Arrangement) -> None:
        """Move cubes and plate during an episode, as a person might; only on the CPU."""
        if how is Arrangement.EXCHANGED:
            poses = [cube.pose.raw_pose.clone() for cube in self.cubes.values()]
            for cube, pose in zip(self.cubes.values(), poses[1:] + poses[:1], strict=True):
                _rest(cube, Pose.create(pose))
            return
        drawn = layout.draw(generator, len(self.colours), self.spawn_range_m)
        self._put(layout.arrange(drawn, how, self._named_list[0])[None])

    def _name_cubes(
        self, env_idx: torch.Tensor, generators: list[Any], options: dict[str, Any]
    ) -> None:
        """Choose the cube that each instruction names: option "colour", or by the seed."""
        wanted = options.get("colour")
        if wanted is not None and wanted not in self.colours:
            raise SimError(f"colour {wanted!r} is not one of the cubes: {', '.join(self.colours)}")
        if not hasattr(self, "named"):
            self.named = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        drawn = [int(generator.randint(len(self.colours))) for generator in generators]
        if wanted is not None:
            drawn = [self.colours.index(wanted)] * len(drawn)
        self.named[env_idx] = torch.tensor(drawn, device=self.device)
        self._named_list: list[int] = self.named.tolist()

    @property
    def named_colours(self) -> list[str]:
        """The colour that each scene's instruction names, N of them."""
        return [self.colours[index] for index in self._named_list]

    @property
    def instruction(self) -> list[str]:
        """The task of each scene in words, N of them."""
        raise NotImplementedError

    # --- the present state -----------------------------------------------------------------------

    def tool_position(self) -> torch.Tensor:
        """(N, 3): the point between the fingertips."""
        pose = self.agent.gripper_base.pose
        reach = FINGER_A.origin_m[2] + FINGER_LENGTH_M
        position: torch.Tensor = pose.p + reach * z_axis(pose.q)
        return position

    def _cube_positions(self) -> torch.Tensor:
        """(N, 3) of the named cubes."""
        cubes = list(self.cubes.values())
        if len(set(self._named_list)) == 1:
            only: torch.Tensor = cubes[self._named_list[0]].pose.p
            return only
        every = torch.stack([cube.pose.p for cube in cubes], dim=1)  # (N, C, 3)
        return every[torch.arange(self.num_envs, device=self.device), self.named]

    def _touched(self, cube: Actor) -> torch.Tensor:
        """(N,) bool: both fingers press the cube."""
        touched = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        for finger in self.agent.fingers:
            force = self.scene.get_pairwise_contact_forces(finger, cube)
            touched &= torch.linalg.vector_norm(force, dim=-1) >= TOUCH_N
        return touched

    def _named_grasped(self, position: torch.Tensor) -> torch.Tensor:
        """(N,) bool. Contacts are the slowest query of a step, so they are read only if a named
        cube, at `position` (N, 3), is near the fingertips."""
        near = torch.linalg.vector_norm(position - self.tool_position(), dim=-1) < 0.06
        grasped: torch.Tensor = torch.zeros_like(near)
        if not self.gpu_sim_enabled and not bool(near.any()):
            return grasped
        for index in sorted(set(self._named_list)):
            mine = self.named == index
            grasped |= mine & near & self._touched(self.cubes[self.colours[index]])
        return grasped

    def _on_plate(self, cube: Actor) -> torch.Tensor:
        """(N,) bool: the cube rests on the plate, the gripper open and away from it."""
        offset = cube.pose.p - self.plate.pose.p
        over = torch.linalg.vector_norm(offset[:, :2], dim=-1) < PLATE_RADIUS_M
        resting = (offset[:, 2] - PLATE_HEIGHT_M / 2 - self.cube_half_m).abs() < 0.008
        still = torch.linalg.vector_norm(cube.linear_velocity, dim=-1) < STILL_M_S
        away = torch.linalg.vector_norm(cube.pose.p - self.tool_position(), dim=-1) > AWAY_M
        opened = self.agent.robot.get_qpos()[:, 7] > OPEN_RAD
        placed: torch.Tensor = over & resting & still & away & opened
        return placed

    def _count_held(self, now: torch.Tensor) -> None:
        """Count the control steps in a row for which `now` (N,) has been true, once per step."""
        fresh = self.elapsed_steps != self._counted_at
        counted = torch.where(
            now, self._held_steps + fresh.int(), torch.zeros_like(self._held_steps)
        )
        self._held_steps, self._counted_at = counted, self.elapsed_steps.clone()

    def cube_status(self, scene: int = 0) -> dict[str, CubeStatus]:
        """Return the true state of every cube in one scene, not only of the named one."""
        status = {}
        for colour, cube in self.cubes.items():
            position = cube.pose.p[scene].tolist()
            grasped = bool(self._touched(cube)[scene])
            lifted = grasped and position[2] - self.cube_half_m >= LIFT_M
            placed = bool(self._on_plate(cube)[scene])
            status[colour] = CubeStatus(grasped, lifted, placed, tuple(position))
        return status

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, torch.Tensor]:
        """True positions, only in the state modes: an image policy must not see them."""
        if not self.obs_mode_struct.use_state:
            return {}
        del info
        position = self._cube_positions()
        return {
            "tool_position_m": self.tool_position(),
            "cube_position_m": position,
            "plate_position_m": self.plate.pose.p,
        }


def cube_rgb(colour: str, variation: Variation) -> tuple[float, float, float]:
    """Return the RGB, 0…1, of the cube with this name."""
    if not variation.hue_deg and variation.lightness == 1:
        return COLOURS[colour]
    hue, lightness, saturation = colorsys.rgb_to_hls(*COLOURS[colour])
    light = min(1.0, lightness * variation.lightness)
    return colorsys.hls_to_rgb((hue + variation.hue_deg / 360) % 1, light, saturation)


def _check_choice(name: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not chosen or not set(chosen) <= set(known) or len(set(chosen)) != len(chosen):
        raise SimError(
            f"{name} is {', '.join(chosen) or 'empty'}, expected some of {', '.join(known)},"
            " each once"
        )


def _material(colour: tuple[float, float, float]) -> sapien.render.RenderMaterial:
    return sapien.render.RenderMaterial(base_color=[*colour, 1.0], roughness=0.9, specular=0.1)


def _upright(xy_yaw: torch.Tensor, height_m: float) -> Pose:
    """Poses on the table; `xy_yaw` is (n, 3)."""
    half = xy_yaw[:, 2] / 2
    zero = torch.zeros_like(half)
    position = torch.stack([xy_yaw[:, 0], xy_yaw[:, 1], zero + height_m], dim=-1)
    return Pose.create_from_pq(position, torch.stack([half.cos(), zero, zero, half.sin()], dim=-1))


def _rest(actor: Actor, pose: Pose) -> None:
    """Set the actor's pose; it is at rest then."""
    actor.set_pose(pose)
    if actor.px_body_type == "dynamic":
        actor.set_linear_velocity(torch.zeros(3))
        actor.set_angular_velocity(torch.zeros(3))


def z_axis(q: torch.Tensor) -> torch.Tensor:
    """(N, 3): where unit quaternions (N, 4), w first, rotate the z axis."""
    w, x, y, z = q.unbind(-1)
    return torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=-1)
