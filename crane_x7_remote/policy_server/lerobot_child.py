"""A LeRobot checkpoint in a process of LeRobot's environment. `ModelOptions` → a `Policy`.

The process is `crane_x7_remote.lerobot.serve` (see there); a `RemotePolicy` asks it. Its log goes
to this program's. It ends with this program, because its standard input then ends. If it dies, each
prediction raises, which the loop turns into a `Hold`, until a new process on the same port serves.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.policy_server import policy_io_file, remote
from crane_x7_remote.policy_server.client import PolicyClient, PolicyServerError
from crane_x7_remote.policy_server.policy_io import PolicyIO
from crane_x7_remote.policy_server.policy_io_file import PolicyIoError
from crane_x7_vla_rl.lerobot_env import LerobotEnvError, interpreter
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies import hub, lerobot_folder
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError
from crane_x7_vla_rl.types import ActionChunk, Observation

logger = logging.getLogger(__name__)

MODULE: Final = "crane_x7_remote.lerobot.serve"
SERVING: Final = "serving "
ERROR: Final = "error: "
"""Begin the child's line with its address, and the line of an expected error."""
LOAD_S: Final = 900.0
"""How long loading may take; π0 has 7 GB of weights, possibly on a slow disk."""
STOP_S: Final = 5.0
LAST_LINES: Final = 20
"""Lines of its log that are kept for the message, should it die."""
LINE_CHARACTERS: Final = 500


class LerobotChildError(RemoteError):
    """LeRobot's process has ended, or is not ready."""


class LerobotChild:
    """One process that serves a checkpoint, started again on the same port after its death."""

    def __init__(self, command: Sequence[str], cwd: Path, load_s: float = LOAD_S) -> None:
        """`command` starts the server, without its port; nothing is started yet."""
        self._command = list(command)
        self._cwd = cwd
        self._load_s = load_s
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._starter: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self.starts = 0
        """How often a process has begun to serve."""

    @property
    def pid(self) -> int | None:
        """Process id of the present process."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Start the process, wait until it serves, and return its URL; raises LerobotChildError."""
        self._lines.clear()
        process = subprocess.Popen(
            [*self._command, "--port", str(self._port), "--until-stdin-closes"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", cwd=self._cwd,
            start_new_session=True,  # Ctrl-C ends the loop, in order, and then this process
        )  # fmt: skip
        with self._lock:
            self._process = process
            if self._is_closed:
                process.kill()
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(
            target=self._repeat, args=(process.stderr,), name="lerobot-log", daemon=True
        )
        reader.start()
        line = _first_line(process, process.stdout, self._load_s)
        if not line.startswith(SERVING):
            code = _end(process)
            reader.join(STOP_S)
            raise LerobotChildError(self._why(code))
        url = line.removeprefix(SERVING).strip()
        self._port = int(url.rpartition(":")[2])
        self.starts += 1
        return url

    def check(self) -> None:
        """Raise LerobotChildError unless the process serves; start a new one if it has ended."""
        with self._lock:
            if self._starter is not None and self._starter.is_alive():
                raise LerobotChildError("LeRobot's process is being started again")
            code = None if self._process is None else self._process.poll()
            if self._process is not None and code is None:
                return
            if self._is_closed:
                raise LerobotChildError("LeRobot's process was ended")
            self._starter = threading.Thread(target=self._restart, name="lerobot", daemon=True)
        said = self._why(code)
        logger.warning("%s; starting it again", said)
        self._starter.start()
        raise LerobotChildError(f"{said}; it is being started again")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            _end(process)

    def _restart(self) -> None:
        if self._process is not None:
            _end(self._process)
        try:
            self.start()
        except (LerobotChildError, OSError) as error:
            logger.error("LeRobot's process could not be started again: %s", error)
        else:
            logger.info("LeRobot's process serves again")

    def _repeat(self, stream: IO[str]) -> None:
        """Log what the process says."""
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                if text := line.strip():
                    self._lines.append(text)
                    logger.info("lerobot: %s", shown(text, LINE_CHARACTERS))

    def _why(self, code: int | None) -> str:
        """Return why the process ended: its own error, else its last line."""
        lines = list(self._lines)
        own = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        if own:
            return own[-1]
        ended = f"LeRobot's process ended with exit code {code}"
        if code is None:
            ended = f"LeRobot's process did not serve within {self._load_s:g} s"
        elif code < 0:
            ended = f"LeRobot's process was killed by signal {-code}"
            if code == -9:
                ended += " (out of memory?)"
        return f"{ended}; its last line: {shown(lines[-1])}" if lines else ended


class LerobotPolicy:
    """The policy in the process: a `RemotePolicy` that knows whether the process lives."""

    def __init__(self, child: LerobotChild, policy: remote.RemotePolicy) -> None:
        self.child = child
        self._policy = policy

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return a chunk for each observation; raises RemoteError and AnswerError."""
        self.child.check()
        return self._policy.predict(observations)

    def warming_up(self) -> AbstractContextManager[None]:
        """See policies.base.Timed."""
        return self._policy.warming_up()

    @property
    def more_cameras(self) -> tuple[str, ...]:
        """See policies.base.CameraChooser."""
        return self._policy.more_cameras

    def reset(self) -> None:
        """Forget earlier observations."""
        self._policy.reset()

    def close(self) -> None:
        """End the process."""
        self._policy.close()
        self.child.close()


def load(options: ModelOptions) -> Policy:
    """Return the policy of the checkpoint `options.path`; raises PolicyLoadError.

    The cheap checks come first: LeRobot's environment, the files, what the policy takes and gives.
    """
    assert options.path is not None  # policies.load.check refuses that
    try:
        python = interpreter(options.lerobot_venv)
        folder = checkpoint(options.path, options.token)
        io = described(folder, options.policy_io)
        policy_io_file.check_cameras(io, options.more_cameras)
    except (LerobotEnvError, PolicyIoError) as error:
        raise PolicyLoadError(str(error)) from error
    checkout = Path(__file__).parents[2]
    command = [
        str(python), "-m", MODULE, "--checkpoint", str(folder), "--device", options.device,
    ]  # fmt: skip
    logger.info("loading %s in LeRobot's environment %s", folder, python.parents[1])
    # In a checkout, `python -m` finds this package in the working folder; in the image it is
    # installed in LeRobot's environment.
    return _started(
        LerobotChild(command, checkout if (checkout / "pyproject.toml").is_file() else folder),
        io, options,
    )  # fmt: skip


def checkpoint(path: str, token: str | None = None) -> Path:
    """Return the `pretrained_model` folder of a folder or Hub id; raises PolicyLoadError."""
    place = hub.resolve(path, token=token)
    folder = lerobot_folder.find(place)
    if folder is None:
        raise PolicyLoadError(
            f"{place} holds no LeRobot checkpoint: expected config.json with `type` and"
            " `input_features`"
        )
    if wrong := lerobot_folder.missing(folder):
        raise PolicyLoadError(f"{folder}: {'; '.join(wrong)}; copy the checkpoint again")
    return folder.absolute()


def described(folder: Path, name_or_path: str | None) -> PolicyIO:
    """Return POLICY_IO's description, else the checkpoint's; raises PolicyIoError for none."""
    if name_or_path is not None:
        return policy_io_file.read(name_or_path)
    own = folder / lerobot_folder.POLICY_IO
    if not own.is_file():
        raise PolicyIoError(
            f"{folder} does not state joint order, units and cameras: set POLICY_IO to a file or"
            f" preset ({', '.join(policy_io_file.PRESETS)}), or put {own.name} into the folder"
        )
    return policy_io_file.read(own)


def _started(child: LerobotChild, io: PolicyIO, options: ModelOptions) -> LerobotPolicy:
    atexit.register(child.close)
    try:
        client = PolicyClient(
            child.start(), answer_timeout_s=options.answer_timeout_s + remote.BEYOND_S
        )
        return LerobotPolicy(child, remote.connected(client, io, more_cameras=options.more_cameras))
    except (LerobotChildError, PolicyServerError, PolicyIoError, OSError) as error:
        child.close()
        raise PolicyLoadError(str(error)) from error


def _first_line(process: subprocess.Popen[str], stream: IO[str], limit_s: float) -> str:
    """Return the process's first line of output; "" if it ends, or after the limit."""
    found: list[str] = []

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):
            found.append(stream.readline())

    reader: Callable[[], None] = read
    thread = threading.Thread(target=reader, name="lerobot-ready", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not found:
        return ""
    if not found[0]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    return found[0]


def _end(process: subprocess.Popen[str]) -> int | None:
    """End a process and return its exit code; None if it had not ended before."""
    code = process.poll()
    if code is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    return code
