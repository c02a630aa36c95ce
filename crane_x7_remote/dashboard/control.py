"""What the page's buttons do: stop, resume, a new task, the recorder. Words → an honest answer.

A stop first goes to the guard beside the robot, which brakes the arm and blocks everything until
`resume`. Without a guard that confirms it, the loop's process is told to end, and the answer says
that nothing else was done. Each method may take seconds, and runs on its own thread.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from typing import Literal

from crane_x7_remote.dashboard.robot import Robot
from crane_x7_remote.errors import GuardError
from crane_x7_remote.guard.stop import ask, in_words
from crane_x7_remote.rosbridge import messages, record_status
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

StopMeans = Literal["guard", "loop", "nothing"]


@dataclass(frozen=True)
class Answer:
    """What was done."""

    ok: bool
    text: str
    """For the operator."""
    status: int = 200
    """HTTP status."""


class Loop:
    """The process of the loop that started this one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.is_told = False
        """Whether it was told to end."""

    @property
    def lives(self) -> bool:
        """Whether it is still our parent: a number alone may belong to another process by now."""
        return os.getppid() == self._pid

    def end(self) -> bool:
        """Tell it to brake the arm and end; False if it has ended."""
        if not self.lives:
            return False
        os.kill(self._pid, signal.SIGTERM)
        self.is_told = True
        return True


class Control:
    """The buttons of one robot."""

    def __init__(self, robot: Robot, guard: LinkConfig, loop: Loop | None) -> None:
        """`guard` is the guard's own path for stops; `loop` is the one of this process's feed."""
        self._robot = robot
        self._guard = guard
        self._loop = loop

    def stop_means(self) -> StopMeans:
        """Return what a stop would act on now."""
        if self._robot.has_guard():
            return "guard"
        return "loop" if self._loop is not None and self._loop.lives else "nothing"

    def stop(self) -> Answer:
        """Stop the arm by the best available means."""
        had_guard = self._robot.has_guard()
        is_ended = not had_guard and self._end_loop()  # at once: nobody else will brake
        try:
            state = ask(self._guard, True, "dashboard")
        except GuardError as error:
            return self._unguarded(error, had_guard, is_ended or self._end_loop())
        logger.warning("stopped from the dashboard")
        return Answer(True, in_words(state))

    def _end_loop(self) -> bool:
        return self._loop is not None and self._loop.end()

    def _unguarded(self, error: GuardError, had_guard: bool, is_ended: bool) -> Answer:
        why = str(error).removesuffix("; use the emergency stop") if had_guard else "no guard"
        logger.error("stop from the dashboard: %s; loop told to end: %s", why, is_ended)
        if is_ended:
            done = "the loop was told to brake the arm and end; nothing blocks another loop"
            return Answer(False, f"{why}: {done}. If the arm moves, use the emergency stop", 502)
        return Answer(False, f"{why}: nothing was stopped. Use the emergency stop", 502)

    def resume(self) -> Answer:
        """Let trajectories pass the guard again."""
        try:
            state = ask(self._guard, False, "dashboard")
        except GuardError as error:
            return Answer(False, str(error), 502)
        logger.warning("resumed from the dashboard")
        return Answer(True, in_words(state))

    def say(self, text: object) -> Answer:
        """Give the loops a new task, and wait for their answer."""
        try:
            instruction = messages.instruction({"data": text})
        except messages.MessageError as error:
            return Answer(False, str(error), 400)
        try:
            answers = self._robot.say(instruction)
        except ConnectionError as error:
            return Answer(False, str(error), 503)
        logger.info('task from the dashboard: "%s"', shown(instruction))
        if not answers:
            return Answer(False, "sent, but no loop answered within 3 s", 504)
        refused = [each.reason for _, each in answers.values() if each.task_state == "refused"]
        if refused:
            return Answer(False, f"refused: {refused[0]}", 409)
        return Answer(True, f"accepted: {instruction}")

    def record(self, word: object) -> Answer:
        """Tell the recorder to start, stop or discard an episode."""
        try:
            known = record_status.word({"data": word})
        except messages.MessageError as error:
            return Answer(False, str(error), 400)
        if not self._robot.has_recorder():
            return Answer(False, "no recorder runs; start one: crane-x7-remote record", 409)
        try:
            self._robot.tell_recorder(known)
        except ConnectionError as error:
            return Answer(False, str(error), 503)
        return Answer(True, f"recorder: {known}")
