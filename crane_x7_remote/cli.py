"""`crane-x7-remote`: one table of commands; each is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from crane_x7_remote import settings
from crane_x7_remote.errors import ExitCode, RemoteError
from crane_x7_vla_rl import log_text

COMMANDS = {
    "infer": ("crane_x7_remote.inference.command", "drive the arm: camera in, trajectories out"),
    "sim-robot": ("crane_x7_remote.sim_robot.command", "a simulated CRANE-X7 behind rosbridge"),
    "say": ("crane_x7_remote.say", "change the task of a running loop"),
    "guard": ("crane_x7_remote.guard.command", "beside the robot: the gate before rosbridge"),
    "stop": ("crane_x7_remote.guard.stop", "brake the arm and let nothing pass the guard"),
    "resume": ("crane_x7_remote.guard.stop", "let trajectories pass the guard again"),
    "boot": ("crane_x7_remote.boot.command", "join the tailnet, open sshd, run a role"),
    "status": ("crane_x7_remote.boot.status", "whether tunnel, sshd, role and robot are up"),
    "demo": ("crane_x7_remote.demo.command", "simulated robot and loop together, with a report"),
    "tunnel": ("crane_x7_remote.tunnel.command", "bring the robot's rosbridge to this machine"),
}
"""Name → module with `add_arguments(parser)` and `run(args) -> int`, and its line of help."""


class Parser(argparse.ArgumentParser):
    """Masks the environment's secrets in its error messages."""

    def error(self, message: str) -> NoReturn:
        """Print usage and `message`, and exit with code 2."""
        super().error(log_text.tell(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in `argv` and return its exit code (see errors.ExitCode)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    log_text.install()
    settings.tidy_environment()
    parser = Parser(
        prog="crane-x7-remote",
        description="Run vision-language-action policies on a CRANE-X7 arm from anywhere.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, (module_name, help_text) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name == chosen:
            module = importlib.import_module(module_name)
            command.add_argument("--log-level", default="info", help="debug, info, warning, error")
            module.add_arguments(command)
    args = parser.parse_args(argv)
    _configure_logging(args.log_level)
    try:
        return int(module.run(args))
    except RemoteError as error:
        print(log_text.tell(f"crane-x7-remote {args.command}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        return ExitCode.OUTPUT


def _configure_logging(level: str) -> None:
    line = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    log_text.configure(level, line, datefmt="%H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
