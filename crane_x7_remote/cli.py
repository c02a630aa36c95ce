"""`crane-x7-remote`: one table of commands; each is imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from crane_x7_remote import settings
from crane_x7_remote.errors import RemoteError
from crane_x7_vla_rl import command_line

COMMANDS = {
    "infer": ("crane_x7_remote.inference.command", "drive the arm: camera in, trajectories out"),
    "sim-robot": ("crane_x7_remote.sim_robot.command", "a simulated CRANE-X7 behind rosbridge"),
    "serve-policy": ("crane_x7_remote.policy_server.command", "a policy for openpi's clients"),
    "say": ("crane_x7_remote.say", "change the task of a running loop"),
    "trial": ("crane_x7_remote.trial.command", "episodes of a policy on the arm, each judged"),
    "watch": ("crane_x7_remote.watch.command", "a running loop and its robot in a terminal"),
    "guard": ("crane_x7_remote.guard.command", "next to the robot: the gate in front of rosbridge"),
    "stop": ("crane_x7_remote.guard.stop", "brake the arm and block everything at the guard"),
    "resume": ("crane_x7_remote.guard.stop", "let the guard pass trajectories again"),
    "record": ("crane_x7_remote.record.command", "episodes of the arm into a LeRobot data set"),
    "replay": (
        "crane_x7_remote.record.replay_command",
        "a recorded episode, on the arm or to a loop",
    ),
    "boot": ("crane_x7_remote.boot.command", "join the tailnet, open sshd, run a role"),
    "status": ("crane_x7_remote.boot.status", "whether tunnel, sshd, role and robot are up"),
    "calibrate": ("crane_x7_remote.calibrate.command", "find the camera's lens and pose"),
    "demo": ("crane_x7_remote.demo.command", "simulated robot and loop together, with a report"),
    "dashboard": ("crane_x7_remote.dashboard.command", "a page with camera, arm, loop and a stop"),
    "tunnel": ("crane_x7_remote.tunnel.command", "bring the robot's rosbridge to this machine"),
    "cloud": ("crane_x7_remote.cloud.command", "rent a GPU, train on it, always delete it"),
    "doctor": ("crane_x7_remote.doctor.command", "find what is wrong, and how to cure it"),
}
"""Name → module with `add_arguments(parser)` and `run(args) -> int`, and its line of help."""
PROGRAM = command_line.Program(
    name="crane-x7-remote",
    description="Run vision-language-action policies on a CRANE-X7 arm from anywhere.",
    commands=COMMANDS,
    failure_code=lambda error: error.exit_code if isinstance(error, RemoteError) else None,
    old_names={},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in `argv` and return its exit code (see errors.ExitCode)."""
    settings.tidy_environment()
    return command_line.main(PROGRAM, argv, settings.line_to_complete())


if __name__ == "__main__":
    sys.exit(main())
