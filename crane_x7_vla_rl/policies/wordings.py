"""A policy that knows a few fixed instructions follows other wordings of them, or refuses.

Observations with any instruction → those with the nearest of the policy's own → its chunks. For an
instruction that is none of its tasks the arm stays where it was when it came, and `refusal` tells
why. It is for checkpoints whose skills.json says `"wordings": true`; see `skills`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.words import NotUnderstood, Task, parse
from crane_x7_vla_rl.prompt import clean_instruction
from crane_x7_vla_rl.robot import ARM_DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, Observation

logger = logging.getLogger(__name__)

STOP_RAD_S2: Final = 3.0
"""A moving arm is told to stay where it can stop with this deceleration, which is less than the
loop's limit."""
MOST_SAID: Final = 100
"""Wordings whose meaning is logged, for one robot alone."""


class Paced(Protocol):
    """A policy whose chunks have a fixed period."""

    @property
    def period_s(self) -> float:
        """Time between targets."""
        ...

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """See base.Policy."""
        ...

    def reset(self) -> None:
        """See base.Policy."""
        ...


class Wordings:
    """Resolves an instruction to one of a few."""

    def __init__(self, instructions: Sequence[str], source: str) -> None:
        """`source` names the file for messages; raises PolicyLoadError for one that is unclear."""
        self.instructions = tuple(instructions)
        self._by_task: dict[Task, str] = {}
        for text in instructions:
            task = parse(text)
            if isinstance(task, NotUnderstood):
                raise PolicyLoadError(
                    f'{source}: wordings is true, but "{text}" in instructions is {task}; expected'
                    ' instructions such as "pick up the red cube", or wordings to be false'
                )
            self._by_task.setdefault(task, text)
        self._colours = tuple(dict.fromkeys(task.colour for task in self._by_task))

    def resolve(self, instruction: str) -> str | NotUnderstood:
        """Return the one of the instructions that it means, or why it means none of them."""
        try:
            words = clean_instruction(instruction)
        except ValueError as error:
            return NotUnderstood(str(error))
        for own in self.instructions:
            if words.casefold() == own.casefold():
                return own
        task = parse(words, colours=self._colours)
        if isinstance(task, NotUnderstood):
            return task
        if task not in self._by_task:
            return NotUnderstood(f"this policy has not learned to {task}")
        return self._by_task[task]

    def refusal(self, instruction: str) -> str | None:
        """Return why it means none of the instructions, and which there are; None if it does."""
        meant = self.resolve(instruction)
        if not isinstance(meant, NotUnderstood):
            return None
        return (
            f'the policy does not follow "{instruction}": {meant.reason}; it knows:'
            f" {', '.join(self.instructions)}, and other words for them in English or Japanese"
        )


@dataclass
class _Slot:
    """What is remembered of one robot."""

    gripper_rad: float | None = None
    """Its last target."""
    stay_rad: Array | None = field(default=None, repr=False)
    """(8,) where it stays while its instruction is refused."""

    def follow(self, chunk: ActionChunk) -> ActionChunk:
        """Return the chunk; the next refusal starts from it."""
        self.gripper_rad, self.stay_rad = float(chunk.position_rad[-1, ARM_DOF]), None
        return chunk

    def stay(self, seen: Observation, chunk: ActionChunk) -> ActionChunk:
        """Return a chunk of the same length that holds the arm, and what the fingers hold.

        The place is that of the first refused observation: measured again each time, it would sink
        with every step by as much as the arm lags behind.
        """
        if self.stay_rad is None:
            velocity = np.nan_to_num(seen.joints.velocity_rad_s)
            stop_rad = seen.joints.position_rad + velocity * np.abs(velocity) / (2 * STOP_RAD_S2)
            self.stay_rad = np.clip(stop_rad, LOWER_RAD, UPPER_RAD)
            if self.gripper_rad is not None:
                self.stay_rad[ARM_DOF] = self.gripper_rad
        steps = len(chunk.position_rad)
        return replace(chunk, position_rad=np.tile(self.stay_rad, (steps, 1)))


class WordedPolicy:
    """A policy whose instructions may be worded freely; slot i is one robot."""

    def __init__(self, policy: Paced, wordings: Wordings) -> None:
        self._policy, self._wordings = policy, wordings
        self._slots: list[_Slot] = []
        self._said: set[str] = set()
        self.may_answer_alike = False
        """Whether it stays where it is, for any image, as in the newest prediction."""

    @property
    def period_s(self) -> float:
        """Time between targets."""
        return self._policy.period_s

    def refusal(self, instruction: str) -> str | None:
        """See base.Interpreter."""
        return self._wordings.refusal(instruction)

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation; raises what the policy raises.

        The policy predicts for a refused instruction, too, for one that it knows, so that it is
        warm when it is needed; the targets are replaced.
        """
        meant = [self._meant(each.instruction, len(observations) == 1) for each in observations]
        known = self._wordings.instructions[0]
        told = [known if isinstance(own, NotUnderstood) else own for own in meant]
        chunks = self._policy.predict(
            [replace(each, instruction=own) for each, own in zip(observations, told, strict=True)]
        )
        self.may_answer_alike = any(isinstance(own, NotUnderstood) for own in meant)
        self._slots += [_Slot() for _ in observations[len(self._slots) :]]
        return [
            slot.stay(seen, chunk) if isinstance(own, NotUnderstood) else slot.follow(chunk)
            for slot, seen, own, chunk in zip(
                self._slots, observations, meant, chunks, strict=False
            )
        ]

    def _meant(self, instruction: str, is_alone: bool) -> str | NotUnderstood:
        meant = self._wordings.resolve(instruction)
        if is_alone and instruction not in self._said and len(self._said) < MOST_SAID:
            self._said.add(instruction)
            if isinstance(meant, NotUnderstood):
                logger.info('holding: "%s" is %s', shown(instruction), shown(str(meant)))
            elif meant != instruction:
                logger.info('"%s" is understood as "%s"', shown(instruction), meant)
        return meant

    def reset(self) -> None:
        """See base.Policy."""
        self._policy.reset()
        self._slots.clear()
