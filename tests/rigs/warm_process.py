"""Processes with their heavy imports done: forks of a server that has imported them once.

`python -m crane_x7_vla_rl.training.cli` needs some seconds for its imports alone, each time. Tests
of what only a process can show (signals, kill -9, several ranks) get one of these instead: it has
its own memory, signal handlers and output, and runs the same `main`. The server has one thread, so
that its forks inherit no lock; its forks die with it, and it dies with pytest.

Who sets variables that a preloaded library reads at import (`HF_*`) needs a new interpreter.

Each leads its own process group, as a container's role does.

`python warm_process.py` is the server: a line of JSON on stdin, {"argv", "env", "output", "folder",
"first"} → {"pid"}, or {"wait": pid} → {"code"}, null while it runs; it ends with stdin.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import Any, NoReturn

from places import RIGS, ROOT

PRELOADED = ("crane_x7_vla_rl.training.sft.loop", "crane_x7_vla_rl.training.rl.loop", "peft")
"""Without pyarrow, which starts a thread."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PR_SET_PDEATHSIG = 1


class WarmProcess:
    """What tests use of `subprocess.Popen`, for a fork of the server."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], first: Sequence[str] = ()) -> None:
        """`first` are a module, a function of it, and the words that it is called with before."""
        self.returncode: int | None = None
        handle, path = mkstemp(dir=_server().folder)
        os.close(handle)
        self._output = Path(path)
        environ = dict(os.environ) | ONE_THREAD | env
        asked = {"argv": list(argv), "env": environ, "output": path, "folder": str(ROOT)}
        asked["first"] = list(first)
        self.pid = int(_server().ask(asked)["pid"])

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N, None while it runs."""
        if self.returncode is None:
            self.returncode = _server().ask({"wait": self.pid})["code"]
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def send_group(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        assert self.poll() is None
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """As `kill -9`."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it said, once it has ended; raises subprocess.TimeoutExpired."""
        end_s = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.01)
        return self._output.read_text(), ""


class Server:
    """The process that forks."""

    def __init__(self) -> None:
        self.folder = mkdtemp(prefix="warm_process-")
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": f"{ROOT}:{RIGS}"},
        )  # fmt: skip
        self._turn = threading.Lock()
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the server's answer."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None
        assert taken is not None
        with self._turn:
            given.write(json.dumps(request) + "\n")
            given.flush()
            line = taken.readline()
        assert line, f"the server of warm processes ended with {self._process.wait()}"
        return dict(json.loads(line))

    def close(self) -> None:
        """End it, and with it all its forks."""
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@lru_cache(maxsize=1)
def _server() -> Server:
    return Server()


def serve() -> None:
    """Answer until stdin ends."""
    for module in PRELOADED:
        importlib.import_module(module)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) == 1, f"a fork of several threads may hang: {threads}"
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            answer = {"pid": os.fork() or run(request)}
        print(json.dumps(answer), flush=True)


def run(request: dict[str, Any]) -> NoReturn:
    """Be the command."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate((nothing, output, output)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    from crane_x7_vla_rl.training import cli

    if request["first"]:
        module, name, *words = request["first"]
        getattr(importlib.import_module(module), name)(*words)
    sys.exit(cli.main(request["argv"]))


if __name__ == "__main__":
    serve()
