"""An arm in its own process, with the interface of any other.

Rendering holds Python's interpreter lock for up to 20 ms per image; in the server's process that
would delay every message. Calls go through a pipe one at a time; only the child process writes to
it. A simulation that crashes, for example in a Vulkan driver, raises a SimulationError here. The
parent logs what it logs at its start.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from crane_x7_remote.errors import SimulationError
from crane_x7_remote.sim_robot.arm import Arm
from crane_x7_vla_rl.log_relay import LogCollector, LogRepeater
from crane_x7_vla_rl.types import JointState

Array = npt.NDArray[np.float64]
Joints = tuple[Array, Array]
"""Position and velocity, as sent through the pipe."""

ANSWER_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 1.0


class ProcessArm:
    """See sim_robot.arm.Arm; `make` is pickled and called in the child."""

    def __init__(self, make: Callable[[], Arm], start_timeout_s: float = 170.0) -> None:
        """Raises SimulationError if the arm cannot be created."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, make), daemon=True, name="arm")
        self._child.start()
        theirs.close()
        try:
            self.period_s, self._joints, lines = self._answer(start_timeout_s)
        except SimulationError:
            self.close()
            raise
        LogRepeater().repeat(lines)

    def step(self, target_rad: Array) -> None:
        """See Arm."""
        self._joints = self._ask("step", target_rad)

    def joints(self) -> JointState:
        """See Arm."""
        return JointState(*self._joints)

    def jpeg(self) -> bytes:
        """See Arm."""
        picture: bytes = self._ask("jpeg")
        return picture

    def wrist_jpeg(self) -> bytes:
        """See Arm."""
        picture: bytes = self._ask("wrist_jpeg")
        return picture

    def view_jpeg(self) -> bytes:
        """See Arm."""
        picture: bytes = self._ask("view_jpeg")
        return picture

    def scene(self) -> dict[str, dict[str, Any]]:
        """See Arm."""
        cubes: dict[str, dict[str, Any]] = self._ask("scene")
        return cubes

    def put_back(self, colour: str) -> None:
        """See Arm."""
        self._ask("put_back", colour)

    def arrange(self, seed: int) -> None:
        """See Arm."""
        self._ask("arrange", seed)

    def close(self) -> None:
        """See Arm."""
        self._pipe.close()
        self._child.join(STOP_TIMEOUT_S)
        if self._child.is_alive():
            self._child.kill()
            self._child.join(STOP_TIMEOUT_S)

    def _ask(self, call: str, *args: Any) -> Any:
        try:
            self._pipe.send((call, args))
        except OSError as error:
            raise SimulationError(self._explain_end()) from error
        return self._answer(ANSWER_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise SimulationError(f"the simulation did not answer within {timeout_s:g} s")
            error, answer = self._pipe.recv()
        except (EOFError, OSError) as gone:
            raise SimulationError(self._explain_end()) from gone
        if error is not None:
            raise SimulationError(error)
        return answer

    def _explain_end(self) -> str:
        self._child.join(STOP_TIMEOUT_S)
        return (
            f"the simulation's process ended with exit code {self._child.exitcode}; a negative code"
            " is a signal; -11 (SIGSEGV) points at the Vulkan driver"
        )


def _serve(pipe: Connection, make: Callable[[], Arm]) -> None:
    """Create the arm and serve the parent's calls until it closes the pipe."""
    # Ctrl-C reaches the whole group; the parent decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = LogCollector()
    try:
        arm = make()
        pipe.send((None, (arm.period_s, _plain(arm.joints()), log.take())))
        while True:
            call, args = pipe.recv()
            answer = getattr(arm, call)(*args)
            pipe.send((None, _plain(arm.joints()) if call == "step" else answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send((str(error), None))


def _plain(state: JointState) -> Joints:
    return state.position_rad, state.velocity_rad_s
