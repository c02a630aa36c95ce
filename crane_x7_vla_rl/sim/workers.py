"""Processes that each hold a simulation: picklable requests → answers, with scenes on all cores.

A CPU simulates one scene per environment and renders it on one core, so scenes run in separate
processes. A function created in the process handles requests; requests and answers go over a pipe.
Workers exit when their pipe closes, so none outlives the parent. They ignore SIGTERM and Ctrl-C,
which reach a whole process group: a trainer that must stop still needs its simulations briefly.
What they log is logged by the parent.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Final, Self

from crane_x7_vla_rl.log_relay import LogCollector, LogRepeater
from crane_x7_vla_rl.sim.errors import SimError, WorkerLostError

Handler = Callable[[Any], Any]
"""Timeout from request to answer."""
END_S: Final = 10.0
"""A worker whose pipe is closed and that does not exit within this time is killed."""
SIMULATION: Final = "crane_x7_vla_rl.sim.world"
"""Imported once, in the forkserver of all workers: the import takes seconds of a core."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that workers leave to their parent."""
ANSWER_S: Final = 600.0
"""Timeout of the first answer, for which the simulation must start: minutes on a busy machine."""


class Workers:
    """`count` processes, each with its own handler."""

    def __init__(self, count: int, make: Callable[[], Handler]) -> None:
        """`make` runs in each process and must be picklable; it may raise SimError."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([SIMULATION])
        self._make = make
        self._log = LogRepeater()
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        for _ in range(count):
            process, pipe = self._start()
            self._processes.append(process)
            self._pipes.append(pipe)
        # Before multiprocessing waits for the processes to which it has sent a SIGTERM.
        atexit.register(self.close)

    def _start(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._make), daemon=True)
        # A process that is started here, including the forkserver, inherits the blocked signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # its start unblocks some of them
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        return process, here

    def __len__(self) -> int:
        return len(self._pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, worker: int, request: Any) -> None:
        """Send a request; answers come in the order of requests. Raises WorkerLostError."""
        try:
            self._pipes[worker].send(request)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(worker) from error

    def receive(self, worker: int, timeout_s: float = ANSWER_S) -> Any:
        """Return the answer; raises the SimError of the process, or WorkerLostError."""
        if not self._pipes[worker].poll(timeout_s):
            raise WorkerLostError(f"simulation {worker} did not answer within {timeout_s:g} s")
        try:
            answered, value, lines = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(worker) from error
        self._log.repeat(lines)
        if not answered:
            raise SimError(value)
        return value

    def ready(self, workers: Sequence[int], timeout_s: float = ANSWER_S) -> list[int]:
        """Return those of `workers` that have answered, at least one; raises SimError for none."""
        found = wait([self._pipes[worker] for worker in workers], timeout_s)
        if not found:
            raise SimError(f"no simulation of {len(workers)} answered within {timeout_s:g} s")
        return [worker for worker in workers if self._pipes[worker] in found]

    def restart(self, worker: int) -> None:
        """Kill the process, if it still runs, and start another one in its place."""
        self._pipes[worker].close()
        self._processes[worker].kill()  # this also ends a stopped process
        self._processes[worker].join(END_S)
        self._processes[worker], self._pipes[worker] = self._start()

    def process_id(self, worker: int) -> int:
        """Return the process's id."""
        return int(self._processes[worker].pid)

    def close(self) -> None:
        """End all processes, by force if necessary."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + END_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _died(self, worker: int) -> WorkerLostError:
        process = self._processes[worker]
        process.join(1.0)
        return WorkerLostError(
            f"simulation {worker} exited (exit code {process.exitcode}); -9 usually means"
            " that memory ran out: use fewer processes"
        )


def _serve(pipe: Connection, make: Callable[[], Handler]) -> None:
    """Answer until the pipe ends. Signals are for the parent, which closes the pipe."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.putenv("LP_NUM_THREADS", "1")  # lavapipe's; one process per core
    log = LogCollector()
    handler: Handler | None = None
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            handler = handler or make()
            answer = (True, handler(request))
        except SimError as error:
            answer = (False, str(error))
        except Exception:  # the edge of a process: the parent must get the error
            answer = (False, traceback.format_exc())
        try:
            pipe.send((*answer, log.take()))
        except (BrokenPipeError, ConnectionResetError):
            return
