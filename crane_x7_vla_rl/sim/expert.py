"""A scripted expert for both tasks: the true state of the scene → joint targets of the next step.

Each target depends on the true state in this step and on the phase of the task: hover, descend,
close, lift, and to place carry, lower, release, retreat. If it is pushed off its path, or the cube
is lost, the expert corrects or starts again, so that its episodes show how to recover. A target is
the arm's measured position plus one step towards the goal, never a function of the clock: a policy
without memory can learn it.

Legend: angles in rad, lengths in m. Never for a policy: it reads state that no camera shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl import kinematics, sim
from crane_x7_vla_rl.robot import ARM_DOF, DOF, HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.sim.layout import PLATE_RADIUS_M
from crane_x7_vla_rl.sim.scene import CUBE_HALF_M, PLATE_HEIGHT_M
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.types import Array

OPEN_RAD, SHUT_RAD = 0.6, -0.05
"""Targets of the gripper: about 8 cm apart, and pressing."""
LAG_S: Final = 0.06
"""How far the measured arm lags its target, see sim.agent."""
HOVER_M: Final = 0.10
GRASP_M: Final = CUBE_HALF_M - 0.004
"""Height of the fingertips around a cube: they sink as they close, and must not hit the table."""
TOP_M: Final = 0.16
"""A cube held here is 14 cm above its start; 10 cm is success."""
FURTHEST_M: Final = 0.36
"""From the robot's axis. No cube is placed further away, but a pushed arm could drift there."""
RELEASE_M: Final = PLATE_HEIGHT_M + CUBE_HALF_M + 0.004
OVER_M, THERE_M = 0.015, 0.010
"""Largest sideways error at which the fingers may descend, and close."""
OVER_PLATE_M: Final = 0.03
"""A cube nearer than this to the plate's axis can be lowered."""
FINGERS_OPEN_RAD: Final = 0.45
FINGERS_EMPTY_RAD: Final = 0.05
"""Closed fingers with a smaller measured angle hold nothing; around a cube it is 0.19."""


class ExpertPhase(Enum):
    """Phases of the task."""

    HOVER = auto()
    DESCEND = auto()
    CLOSE = auto()
    LIFT = auto()
    CARRY = auto()
    LOWER = auto()
    RELEASE = auto()
    RETREAT = auto()


HOLDING: Final = (ExpertPhase.LIFT, ExpertPhase.CARRY, ExpertPhase.LOWER)


@dataclass(frozen=True)
class Manner:
    """How the expert moves."""

    arm_rad_s: float = 1.6
    """Speed of the joint with the longest way; a third of the servos' limit."""
    gripper_rad_s: float = 4.0
    turns_wrist: bool = True
    """False keeps the wrist as at home: the closing fingers turn the cube instead, and a policy
    need not see the orientation of a cube of two pixels."""


@dataclass(frozen=True, eq=False)
class SceneState:
    """The true state in one step."""

    tool_m: Array
    """(3,) between the fingertips."""
    cube_m: Array
    """(3,) the named cube."""
    cube_yaw_rad: float
    plate_m: Array
    """(3,)."""
    grasped: bool
    joints_rad: Array
    """(8,) measured."""
    turns_wrist: bool
    """See Manner."""

    @property
    def beside_m(self) -> float:
        """Horizontal distance from the fingertips to the cube."""
        return float(np.linalg.norm((self.tool_m - self.cube_m)[:2]))

    @property
    def gripper_rad(self) -> float:
        """Measured."""
        return float(self.joints_rad[ARM_DOF])


def scene_state(world: World, turns_wrist: bool = True, colour: str | None = None) -> SceneState:
    """Return the true state of `world` now; `colour` is the cube's, default: the named one."""
    scene, colour = world.scene, colour or world.named_colour
    cube = scene.cubes[colour]
    turn = cube.pose.q[0].tolist()
    return SceneState(
        tool_m=_vector(scene.tool_position()[0]),
        cube_m=_vector(cube.pose.p[0]),
        cube_yaw_rad=2 * float(np.arctan2(turn[3], turn[0])),
        plate_m=_vector(scene.plate.pose.p[0]),
        grasped=scene.cube_status()[colour].grasped,
        joints_rad=world.position_rad(),
        turns_wrist=turns_wrist,
    )


class Expert:
    """Solves the task of one world, one episode after another."""

    def __init__(self, world: World, manner: Manner | None = None) -> None:
        self._world, self._manner = world, manner or Manner()
        self._places = world.config.task == sim.PICK_PLACE_ID
        self._colour: str | None = None
        self.phase = ExpertPhase.HOVER

    def reset(self) -> None:
        """Start an episode; call after the world's reset."""
        self.phase = ExpertPhase.HOVER

    def take(self, colour: str, places: bool) -> None:
        """Continue from the present state with the cube of `colour`: place it, or only lift it."""
        self._colour, self._places = colour, places
        self.phase = _phase_of(scene_state(self._world, colour=colour), places)

    def reaches(self) -> bool:
        """Whether the next target is in reach: a cube may have been pushed away."""
        phase = self.phase
        try:
            self.act()
        except kinematics.UnreachableError:
            return False
        finally:
            self.phase = phase
        return True

    def act(self) -> Array:
        """Return joint targets (8,) for the next step; raises UnreachableError."""
        now = scene_state(self._world, self._manner.turns_wrist, self._colour)
        self.phase = self._next_phase(now)
        arm, gripper = _GOALS[self.phase](now)
        return self._one_step(now.joints_rad, np.append(arm, gripper))

    def _next_phase(self, now: SceneState) -> ExpertPhase:
        """Change to the next phase if this one has ended, or back if the cube is lost."""
        phase = self.phase
        if phase in HOLDING and not now.grasped and now.gripper_rad < FINGERS_EMPTY_RAD:
            return ExpertPhase.HOVER
        if phase in HOLDING and now.beside_m > 0.04:
            return ExpertPhase.HOVER
        if phase is ExpertPhase.DESCEND and now.beside_m > 2 * OVER_M:
            return ExpertPhase.HOVER
        last = ExpertPhase.RETREAT if self._places else ExpertPhase.LIFT
        return _FOLLOWING[phase] if phase is not last and _REACHED[phase](now) else phase

    def _one_step(self, measured: Array, goal: Array) -> Array:
        """Return the target one step from `measured` towards `goal`, within limits."""
        seconds = self._world.period_s + LAG_S
        target = measured.copy()
        away = goal - measured
        longest = float(np.abs(away[:ARM_DOF]).max())
        share = min(1.0, self._manner.arm_rad_s * seconds / max(longest, 1e-9))
        target[:ARM_DOF] += share * away[:ARM_DOF]
        reach = self._manner.gripper_rad_s * seconds
        target[ARM_DOF] += np.clip(away[ARM_DOF], -reach, reach)
        return np.clip(target, LOWER_RAD[:DOF], UPPER_RAD[:DOF])


# --- the goal of each phase ----------------------------------------------------------------------


def _above(now: SceneState, point_m: npt.ArrayLike, height_m: float) -> Array:
    """Return the arm's joints with the fingertips at a height over (x, y), turned like the cube."""
    x, y = np.asarray(point_m)[:2]
    wrist = HOME_RAD[ARM_DOF - 1]
    if not now.turns_wrist:
        return kinematics.reach((x, y, height_m), float(np.arctan2(y, x) - wrist))
    options = [
        kinematics.reach((x, y, height_m), now.cube_yaw_rad + quarter)
        for quarter in (0.0, np.pi / 2)
    ]
    return min(options, key=lambda arm: abs(float(arm[ARM_DOF - 1]) - wrist))


def _straight(now: SceneState, height_m: float) -> float:
    """Return the next height towards `height_m`: a path in joint space would not be straight."""
    return float(now.tool_m[2] + np.clip(height_m - now.tool_m[2], -0.05, 0.05))


def _up(now: SceneState, height_m: float) -> Array:
    """Return the joints straight above the fingertips, no further out than FURTHEST_M."""
    radius = float(np.hypot(*now.tool_m[:2]))
    return _above(now, now.tool_m * min(1.0, FURTHEST_M / radius), height_m)


def _held_over(now: SceneState, point_m: Array, height_m: float) -> Array:
    """Return the joints that move the cube, which may be off-centre in the hand, over (x, y)."""
    offset = (now.cube_m - now.tool_m)[:2]
    return _above(now, point_m[:2] - offset, height_m)


_GOALS: Final[dict[ExpertPhase, Callable[[SceneState], tuple[Array, float]]]] = {
    ExpertPhase.HOVER: lambda now: (_above(now, now.cube_m, HOVER_M), OPEN_RAD),
    ExpertPhase.DESCEND: lambda now: (_above(now, now.cube_m, _straight(now, GRASP_M)), OPEN_RAD),
    ExpertPhase.CLOSE: lambda now: (_above(now, now.cube_m, GRASP_M), SHUT_RAD),
    ExpertPhase.LIFT: lambda now: (_up(now, TOP_M), SHUT_RAD),
    ExpertPhase.CARRY: lambda now: (_held_over(now, now.plate_m, TOP_M), SHUT_RAD),
    ExpertPhase.LOWER: lambda now: (
        _held_over(now, now.plate_m, _straight(now, RELEASE_M)), SHUT_RAD
    ),
    ExpertPhase.RELEASE: lambda now: (_up(now, float(now.tool_m[2])), OPEN_RAD),
    ExpertPhase.RETREAT: lambda now: (_up(now, _straight(now, TOP_M)), OPEN_RAD),
}  # fmt: skip

_FOLLOWING: Final = {
    ExpertPhase.HOVER: ExpertPhase.DESCEND,
    ExpertPhase.DESCEND: ExpertPhase.CLOSE,
    ExpertPhase.CLOSE: ExpertPhase.LIFT,
    ExpertPhase.LIFT: ExpertPhase.CARRY,
    ExpertPhase.CARRY: ExpertPhase.LOWER,
    ExpertPhase.LOWER: ExpertPhase.RELEASE,
    ExpertPhase.RELEASE: ExpertPhase.RETREAT,
}

_REACHED: Final[dict[ExpertPhase, Callable[[SceneState], bool]]] = {
    ExpertPhase.HOVER: lambda now: now.beside_m < OVER_M and now.gripper_rad > FINGERS_OPEN_RAD,
    ExpertPhase.DESCEND: lambda now: now.beside_m < THERE_M and now.tool_m[2] < GRASP_M + 0.008,
    ExpertPhase.CLOSE: lambda now: now.grasped or now.gripper_rad < FINGERS_EMPTY_RAD,
    ExpertPhase.LIFT: lambda now: bool(now.tool_m[2] > TOP_M - 0.03),
    ExpertPhase.CARRY: lambda now: bool(np.linalg.norm((now.cube_m - now.plate_m)[:2]) < 0.02),
    ExpertPhase.LOWER: lambda now: bool(now.tool_m[2] < RELEASE_M + 0.006),
    ExpertPhase.RELEASE: lambda now: now.gripper_rad > FINGERS_OPEN_RAD,
}


def _phase_of(now: SceneState, places: bool) -> ExpertPhase:
    """Return the phase in which the expert itself would be here.

    Another one would show two ways from one state: a policy that learns both stays where it is.
    """
    aside_m = float(np.linalg.norm((now.cube_m - now.plate_m)[:2]))
    is_down = now.cube_m[2] < RELEASE_M + 0.006
    if places and is_down and aside_m < (OVER_PLATE_M if now.grasped else PLATE_RADIUS_M):
        return ExpertPhase.RELEASE
    if now.grasped:
        return ExpertPhase.LOWER if places and aside_m < OVER_PLATE_M else ExpertPhase.LIFT
    return ExpertPhase.CLOSE if _REACHED[ExpertPhase.DESCEND](now) else ExpertPhase.HOVER


def _vector(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)
