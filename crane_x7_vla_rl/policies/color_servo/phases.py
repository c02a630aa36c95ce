"""The colour servo's phases: observation and image → goal of the joints.

For each observation the current phase sets the goal and names the next phase. Every change of phase
depends on the image and the measured joints; a timeout only ends a phase that takes too long. Every
failure (a miss, a lost or moved cube) and every new instruction lead back to WAIT, which plans from
what the arm sees and holds now.

Positions in m in the world frame of `camera`; the tool point is that of `kinematics`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.color_servo import grasp
from crane_x7_vla_rl.policies.color_servo.memory import COLOURS, Remembered, SceneMemory, is_seen_at
from crane_x7_vla_rl.policies.color_servo.motion import ARM_ACCELERATION_RAD_S2, JointGoal
from crane_x7_vla_rl.policies.color_servo.vision import Picture
from crane_x7_vla_rl.policies.words import NotUnderstood, Task, Verb, parse
from crane_x7_vla_rl.robot import ARM_DOF, DOF, HOME_RAD
from crane_x7_vla_rl.types import Array, Observation

logger = logging.getLogger(__name__)

OPEN_RAD, CLOSED_RAD = 0.32, -0.05
"""Open: 7 cm between the tips, room for a cube of 3 cm without hitting its neighbours.
Closed: more than the fingers can close, so that they press."""
HELD_MIN_RAD, HELD_MAX_RAD = 0.06, 0.26
"""Fingers that stop between these angles hold an object of a cube's size."""
GRASP_Z_M: Final = 0.008
"""Height of the tool above the surface under the cube."""
HOVER_Z_M, CARRY_Z_M, LIFT_Z_M = 0.085, 0.10, 0.165
LOW_Z_M: Final = 0.055
"""Below this the fingers may touch cubes when they move sideways."""
DROP_M: Final = 0.003
"""A cube is released this high above the surface where it is placed."""
NEAR_M, AT_DEPTH_M, MOVED_M = 0.008, 0.005, 0.015
SLOW: Final = 0.6
SETTLED_RAD_S: Final = 0.15
LOOKOUT_RAD: Final = 0.3
"""With every joint this near to home the arm hides nothing within its reach."""
FORGET_S: Final = 1.0
"""A cube that is not seen for this long from close above it or from the lookout is forgotten."""
LOST_FRAMES: Final = 4
PATIENCE_S: Final = 5.0


class Phase(StrEnum):
    """Phases of a task; each has a method of the same name."""

    WAIT = "wait"
    """Stay, and plan from what the arm sees and holds."""
    LOOK = "look"
    """Out of the camera's view, to find objects that the arm may hide."""
    RISE = "rise"
    """Straight up with open fingers."""
    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    HOLD_UP = "hold_up"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"
    DONE = "done"
    """Placed; out of the way, and checking that the cube stays."""


ENDLESS: Final = frozenset({Phase.WAIT, Phase.LOOK, Phase.HOLD_UP, Phase.DONE})


class PhaseMachine:
    """The memory and the phases of one robot."""

    def __init__(self) -> None:
        self.phase = Phase.WAIT
        self.held: str | None = None
        """Colour of the cube in the gripper."""
        self._scene = SceneMemory()
        self._instruction: str | None = None
        self._task: Task | NotUnderstood = NotUnderstood("no instruction yet")
        self._colour_before: str | None = None
        self._since_s = 0.0
        self._now_s: float | None = None
        self._said = ""
        self._lost_frames = 0
        self._misses = 0
        self._yaw: float | None = None
        self._spot = np.zeros(3)
        """Point on table or plate below the present grasp, lift or descent."""
        self._goal = JointGoal(HOME_RAD)
        self._gripper_rate = np.inf
        self._measured = np.zeros(DOF)
        self._tool = np.zeros(3)
        self._stop = np.zeros(DOF)
        self._put_at = np.zeros(3)
        """Where to put a cube that is in the way."""
        self._run: dict[Phase, Callable[[], Phase]] = {
            phase: getattr(self, f"_{phase}") for phase in Phase
        }

    @property
    def colour_before(self) -> str | None:
        """The colour that "it" in the next instruction means."""
        return self._task.colour if isinstance(self._task, Task) else self._colour_before

    def decide(
        self, observation: Observation, picture: Picture, wanted: Array, velocity: Array
    ) -> JointGoal:
        """Return the goal of the joints; a blank image stops the arm.

        `wanted`, `velocity`: (8,), of the running path at the image's time. Raises
        ValueError for measured joints that are not finite.
        """
        self._take_in(observation, wanted, velocity)
        if picture.is_blank():
            self._since_s = observation.time_s  # phases need an image
            self._stay("the camera's image is blank")
            return self._goal
        colour = self._task.colour if isinstance(self._task, Task) else None
        self._scene.see(
            picture, observation.time_s, named=colour, held=self.held, clear=self._at_lookout()
        )
        self._check_grip(picture)
        self._check_patience()
        try:
            for _ in Phase:
                following = self._run[self.phase]()
                if following is self.phase:
                    break
                self._enter(following)
        except UnreachableError as error:
            self._enter(Phase.WAIT)
            self._stay(str(error))
        return self._goal

    # --- measurements, instruction and held cube ------------------------------------------------

    def _take_in(self, observation: Observation, wanted: Array, velocity: Array) -> None:
        measured = observation.joints.position_rad
        if not np.isfinite(measured).all():
            raise ValueError(f"measured joints are {measured.tolist()}, expected finite angles")
        first = self._now_s is None
        if self._now_s is not None:
            passed_s = max(1e-3, observation.time_s - self._now_s)
            self._gripper_rate = abs(measured[ARM_DOF] - self._measured[ARM_DOF]) / passed_s
        self._now_s, self._measured = observation.time_s, measured
        self._tool = kinematics.tool_frame(measured)[:3, 3]
        self._stop = wanted + velocity * np.abs(velocity) / (2 * ARM_ACCELERATION_RAD_S2)
        self._stop[ARM_DOF] = wanted[ARM_DOF]
        if observation.instruction != self._instruction:
            self._take_instruction(observation.instruction)
        if first:
            self._since_s = observation.time_s

    def _take_instruction(self, instruction: str) -> None:
        self._colour_before = self.colour_before
        self._instruction, self._task = instruction, parse(instruction, self._colour_before)
        self._misses, self._said = 0, ""
        logger.info('instruction "%s": %s', shown(instruction), self._task)
        if self.phase is Phase.CLOSE:
            self._enter(Phase.RELEASE)
        elif self.phase is Phase.DESCEND:
            self._enter(Phase.RISE)
        elif self.phase not in {Phase.RISE, Phase.RELEASE}:
            self._enter(Phase.WAIT)

    def _check_grip(self, picture: Picture) -> None:
        """Detect that a cube is held at the start, or that the held one was lost."""
        gripper, up = self._measured[ARM_DOF], self._tool[2] > LOW_Z_M
        if self.held is None:
            if up and self.phase is Phase.WAIT and HELD_MIN_RAD < gripper < HELD_MAX_RAD:
                seen = (colour for colour in COLOURS if is_seen_at(picture, colour, self._tool))
                self.held = next(seen, None)
            return
        closed = gripper < HELD_MIN_RAD
        elsewhere = up and is_seen_at(picture, self.held, self._tool) is False
        self._lost_frames = self._lost_frames + 1 if closed or elsewhere else 0
        if self._lost_frames >= (2 if closed else LOST_FRAMES) and self.phase is not Phase.RELEASE:
            logger.info("the %s cube was lost while in phase %s", self.held, self.phase)
            self.held = None
            self._enter(Phase.RISE)

    def _check_patience(self) -> None:
        """End a phase that takes too long."""
        if self.phase in ENDLESS or self._elapsed_s() < PATIENCE_S:
            return
        logger.info("phase %s took over %g s: retrying", self.phase, PATIENCE_S)
        if self.phase is Phase.RELEASE:
            self.held = None
        stuck = self.held is not None or self.phase is Phase.RISE
        self._enter(Phase.WAIT if stuck else Phase.RISE)

    def _elapsed_s(self) -> float:
        assert self._now_s is not None
        return self._now_s - self._since_s

    def _enter(self, phase: Phase) -> None:
        logger.debug("phase %s → %s", self.phase, phase)
        assert self._now_s is not None
        self.phase, self._since_s = phase, self._now_s
        if phase is Phase.RISE:
            self._spot = np.append(self._tool[:2], self._scene.support_m(self._tool))
        if phase is Phase.APPROACH:
            self._yaw = None

    def _stay(self, reason: str) -> Phase:
        """Hold the present position; the reason is logged when it changes."""
        if reason != self._said:
            logger.info("holding: %s", shown(reason))
            self._said = reason
        self._goal = JointGoal(self._stop)
        return Phase.WAIT

    # --- phases: each sets the goal and returns the next phase ----------------------------------

    def _wait(self) -> Phase:
        task = self._task
        if isinstance(task, NotUnderstood):
            return self._stay(f'"{self._instruction}" is not a known task: {task.reason}')
        if self.held == task.colour:
            if task.verb is Verb.PLACE and self._scene.plate_m is None:
                return self._stay("the plate is not visible")
            self._spot = np.append(self._tool[:2], 0.0)
            return Phase.LIFT
        cube = self._scene.cubes.get(task.colour)
        if self.held is not None:
            if cube is None:
                return self._stay(f"no {task.colour} cube is visible")
            return self._plan_put_down(self.held)
        if cube is None:
            return Phase.LOOK
        position = cube.sight.position_m
        if task.verb is Verb.PLACE:
            if self._scene.is_on_plate(position):
                return Phase.DONE
            if self._scene.plate_m is None:
                return self._stay("the plate is not visible")
        self._grasp_goal(cube)  # raises if it is out of reach
        return Phase.APPROACH

    def _plan_put_down(self, held: str) -> Phase:
        spot = self._scene.free_spot(self._tool, held=held)
        if spot is None:
            return self._stay(f"no free spot to put down the {held} cube")
        self._put_at = np.append(spot, 0.0)
        self._spot = np.append(self._tool[:2], 0.0)
        return Phase.LIFT

    def _look(self) -> Phase:
        assert isinstance(self._task, Task)
        cube = self._scene.cubes.get(self._task.colour)
        if cube is not None:
            return Phase.WAIT
        if self._at_lookout():
            self._stay(f"no {self._task.colour} cube is visible")
        else:
            self._goal = JointGoal(np.append(HOME_RAD[:ARM_DOF], OPEN_RAD))
        return Phase.LOOK

    def _rise(self) -> Phase:
        self._spot_goal(HOVER_Z_M, OPEN_RAD)
        return Phase.WAIT if self._tool[2] > self._spot[2] + HOVER_Z_M - 0.02 else Phase.RISE

    def _approach(self) -> Phase:
        cube = self._named_cube()
        if cube is None:
            return Phase.WAIT
        position = cube.sight.position_m
        sideways = float(np.linalg.norm(self._tool[:2] - position[:2]))
        if self._tool[2] < LOW_Z_M and sideways > 2 * NEAR_M:
            return Phase.RISE
        if sideways < 0.05 and self._unseen_s(cube) > FORGET_S:
            self._scene.cubes.pop(self._colour())
            return Phase.WAIT
        self._spot = np.append(position[:2], self._scene.support_m(position))
        self._yaw = self._choose_yaw(cube)
        self._goal = grasp.above(self._spot, HOVER_Z_M, self._yaw, OPEN_RAD)
        turned = abs(self._goal.position_rad[ARM_DOF - 1] - self._measured[ARM_DOF - 1]) < 0.1
        opened = self._measured[ARM_DOF] > OPEN_RAD - 0.1
        return Phase.DESCEND if sideways < NEAR_M and turned and opened else Phase.APPROACH

    def _descend(self) -> Phase:
        cube = self._named_cube()
        if cube is not None:
            moved = float(np.linalg.norm(cube.sight.position_m[:2] - self._spot[:2]))
            if moved > MOVED_M:
                return Phase.APPROACH
            if self._tool[2] > LOW_Z_M:
                self._spot[:2] = cube.sight.position_m[:2]
        assert self._yaw is not None
        self._goal = grasp.above(self._spot, GRASP_Z_M, self._yaw, OPEN_RAD, SLOW)
        return Phase.CLOSE if self._at_depth(GRASP_Z_M) else Phase.DESCEND

    def _close(self) -> Phase:
        self._goal = JointGoal(np.append(self._goal.position_rad[:ARM_DOF], CLOSED_RAD))
        gripper = self._measured[ARM_DOF]
        settled = self._elapsed_s() > 0.3 and self._gripper_rate < SETTLED_RAD_S
        if not settled or gripper > HELD_MAX_RAD:
            return Phase.CLOSE
        if gripper < HELD_MIN_RAD:
            self._misses += 1
            logger.info("the fingers closed on nothing (%d misses)", self._misses)
            return Phase.RISE
        self.held, self._lost_frames = self._colour(), 0
        return Phase.LIFT

    def _lift(self) -> Phase:
        self._spot_goal(LIFT_Z_M, CLOSED_RAD)
        if self._is_to_lift():
            return Phase.HOLD_UP if self._tool[2] > LIFT_Z_M - 0.005 else Phase.LIFT
        return Phase.CARRY if self._tool[2] > CARRY_Z_M - 0.02 else Phase.LIFT

    def _hold_up(self) -> Phase:
        return Phase.HOLD_UP

    def _carry(self) -> Phase:
        task = self._task
        if isinstance(task, Task) and self.held == task.colour:
            assert self._scene.plate_m is not None
            destination = np.append(self._scene.plate_m, self._scene.support_m(self._scene.plate_m))
        else:
            destination = self._put_at
        self._spot = destination
        self._spot_goal(CARRY_Z_M, CLOSED_RAD)
        near = np.linalg.norm(self._tool[:2] - destination[:2]) < 1.5 * NEAR_M
        return Phase.LOWER if near else Phase.CARRY

    def _lower(self) -> Phase:
        self._spot_goal(GRASP_Z_M + DROP_M, CLOSED_RAD, SLOW)
        return Phase.RELEASE if self._at_depth(GRASP_Z_M + DROP_M) else Phase.LOWER

    def _release(self) -> Phase:
        self._goal = JointGoal(np.append(self._goal.position_rad[:ARM_DOF], OPEN_RAD))
        if self._measured[ARM_DOF] < OPEN_RAD - 0.06:
            return Phase.RELEASE
        self.held = None
        return Phase.RISE

    def _done(self) -> Phase:
        cube = self._named_cube()
        if cube is None or not self._scene.is_on_plate(cube.sight.position_m):
            return Phase.WAIT
        self._goal = JointGoal(np.append(HOME_RAD[:ARM_DOF], OPEN_RAD))
        return Phase.DONE

    # --- geometry -------------------------------------------------------------------------------

    def _colour(self) -> str:
        assert isinstance(self._task, Task)
        return self._task.colour

    def _named_cube(self) -> Remembered | None:
        return self._scene.cubes.get(self._colour())

    def _unseen_s(self, cube: Remembered) -> float:
        assert self._now_s is not None
        return self._now_s - cube.seen_s

    def _is_to_lift(self) -> bool:
        """Whether the held cube must stay up."""
        task = self._task
        return isinstance(task, Task) and task.verb is Verb.LIFT and self.held == task.colour

    def _at_lookout(self) -> bool:
        away = np.abs(self._measured - HOME_RAD)[: ARM_DOF - 1]  # the wrist hides nothing
        return bool(away.max() < LOOKOUT_RAD)

    def _at_depth(self, height_m: float) -> bool:
        return bool(self._tool[2] < self._spot[2] + height_m + AT_DEPTH_M)

    def _spot_goal(self, height_m: float, gripper: float, speed: float = 1.0) -> None:
        """Aim at `height_m` above the present spot, the wrist unchanged."""
        pan = np.arctan2(self._spot[1], self._spot[0])
        wrist = self._goal.position_rad[ARM_DOF - 1]
        self._goal = grasp.above(self._spot, height_m, pan - wrist, gripper, speed)

    def _grasp_goal(self, cube: Remembered) -> JointGoal:
        position = cube.sight.position_m
        spot = np.append(position[:2], self._scene.support_m(position))
        return grasp.above(spot, GRASP_Z_M, self._choose_yaw(cube), OPEN_RAD)

    def _choose_yaw(self, cube: Remembered) -> float:
        return grasp.choose_yaw(cube.sight, self._scene, self._colour(), self._yaw, self._misses)
