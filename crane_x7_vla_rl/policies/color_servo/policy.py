"""The policy without weights: finds the named cube by its colour, grasps, lifts and places it.

Observations (image of the base camera, measured joints, instruction) → chunks of joint targets.
Each slot of a batch is one robot with a memory of its own. `phases` is what it does when, `vision`
how it sees, `motion` how it moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from crane_x7_vla_rl.camera import BASE_CAMERA, Camera
from crane_x7_vla_rl.policies.base import only_numbers
from crane_x7_vla_rl.policies.color_servo.motion import Motion
from crane_x7_vla_rl.policies.color_servo.phases import PhaseMachine
from crane_x7_vla_rl.policies.color_servo.vision import Picture
from crane_x7_vla_rl.types import ActionChunk, Observation


class ColorServo:
    """Closed loop on the image of `camera`; sees nothing but the observation."""

    may_answer_alike = True
    """It stays where it is, whatever the picture, while it has no task or sees no cube."""

    def __init__(self, camera: Camera = BASE_CAMERA) -> None:
        self._camera = camera
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

    def reset(self) -> None:
        """Forget everything remembered about earlier observations, of all slots."""
        self._slots.clear()

    def _predict_one(
        self, phases: PhaseMachine, motion: Motion, observation: Observation
    ) -> ActionChunk:
        wanted, velocity = motion.state(observation.joints, observation.time_s)
        picture = Picture(observation.image, self._camera)
        goal = phases.decide(observation, picture, wanted, velocity)
        chunk = motion.chunk(goal, observation.joints, observation.time_s)
        return only_numbers(chunk, observation.instruction)
