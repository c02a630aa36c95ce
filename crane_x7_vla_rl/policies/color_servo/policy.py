"""The policy without weights: finds the named cube by its colour, grasps, lifts and places it.

Observations (image of the base camera, measured joints, instruction) → chunks of joint targets.
Each slot of a batch is one robot with its own memory. `phases` decides what it does, `vision` finds
objects, `motion` plans the path.
"""

from __future__ import annotations

from collections.abc import Sequence

from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose
from crane_x7_vla_rl.policies.base import only_numbers
from crane_x7_vla_rl.policies.color_servo.motion import Motion
from crane_x7_vla_rl.policies.color_servo.phases import PhaseMachine
from crane_x7_vla_rl.policies.color_servo.vision import Picture
from crane_x7_vla_rl.policies.words import UNDERSTOOD, NotUnderstood, parse
from crane_x7_vla_rl.types import ActionChunk, Observation


class ColorServo:
    """Closed loop on the image of one camera; uses nothing but the observation."""

    may_answer_alike = True
    """It stays where it is, for any image, while it has no task or sees no cube."""

    def __init__(self, pose: CameraPose = SIM_POSE) -> None:
        """`pose` defaults to the simulated robot's camera."""
        self._pose = pose
        self._slots: list[tuple[PhaseMachine, Motion]] = []

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; slot i of every call belongs to robot i.

        Raises ValueError for measured joints that are not finite, and NotFiniteError.
        """
        while len(self._slots) < len(observations):
            self._slots.append((PhaseMachine(), Motion()))
        return [
            self._predict_one(*slot, observation)
            for slot, observation in zip(self._slots, observations, strict=False)
        ]

    def look_through(self, pose: CameraPose) -> None:
        """See base.CameraUser; `reset` forgets objects seen through another camera."""
        self._pose = pose

    def refusal(self, instruction: str) -> str | None:
        """See base.Interpreter."""
        before = self._slots[0][0].colour_before if self._slots else None
        task = parse(instruction, before)
        if not isinstance(task, NotUnderstood):
            return None
        return f'color-servo does not understand "{instruction}": {task.reason}; {UNDERSTOOD}'

    def reset(self) -> None:
        """Forget all earlier observations, of all slots."""
        self._slots.clear()

    def _predict_one(
        self, phases: PhaseMachine, motion: Motion, observation: Observation
    ) -> ActionChunk:
        wanted, velocity = motion.state(observation.joints, observation.time_s)
        height, width = observation.image.shape[:2]
        image = self._pose.rectified(observation.image)
        picture = Picture(image, self._pose.camera(width, height))
        goal = phases.decide(observation, picture, wanted, velocity)
        chunk = motion.chunk(goal, observation.joints, observation.time_s)
        return only_numbers(chunk, observation.instruction)
