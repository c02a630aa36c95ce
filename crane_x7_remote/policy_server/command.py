"""`crane-x7-remote serve-policy`: a policy of this project for openpi's clients, until a signal.

Prints one line that starts with `ready` and names the address. SIGTERM, SIGINT and SIGHUP end it
with exit code 0.
"""

from __future__ import annotations

import argparse
from typing import Annotated, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote import settings_values
from crane_x7_remote.errors import ExitCode, PolicyError, SettingsError
from crane_x7_remote.policy_server import choice
from crane_x7_remote.policy_server.served import Kind, PerClient, Shared, try_out
from crane_x7_remote.policy_server.server import PolicyServer, ServerConfig, serve
from crane_x7_vla_rl.fields import argument_type, within
from crane_x7_vla_rl.policies.base import CameraUser, Policy
from crane_x7_vla_rl.types import WRIST

FLAGS: Final = (
    "vla_policy", "vla_model_path", "vla_task_instruction", "vla_device", "vla_unnorm_key",
    "vla_center_crop", "vla_chunk_steps", "vla_temperature", "vla_speculation", "hf_token",
    "policy_api_key", "policy_io", "camera_pose",
)  # fmt: skip
COMMON: Final = ("vla_policy", "vla_model_path", "vla_device", "policy_api_key", "host", "port")
"""See command_line."""
PORT: Final = argument_type(Annotated[int, within(0, 65535)])
COUNT: Final = argument_type(Annotated[int, within(1, 256)])
REMEMBERING: Final = ("color-servo",)
"""Policies that remember what they saw: each client gets its own."""
CAMERAS: Final = (WRIST,)
"""What clients can send besides the base camera's picture, see served.py."""
FOR_ONE: Final = ("lerobot",)
"""Policies that remember and are too large for several: one client at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `serve-policy`."""
    defaults = ServerConfig()
    add = parser.add_argument
    add("--host", default=defaults.host,
        help="address to listen on; one that others can reach needs an API key"
        " (%(default)s)")  # fmt: skip
    add("--port", type=PORT, default=defaults.port,
        help="port; 0 picks a free port (%(default)s)")  # fmt: skip
    add("--max-batch", type=COUNT, default=defaults.max_batch, metavar="N",
        help="most observations of several clients in one prediction (%(default)s)")  # fmt: skip
    add("--max-clients", type=COUNT, default=defaults.max_clients, metavar="N",
        help="clients that are served at the same time (%(default)s)")  # fmt: skip
    settings_module.add_flags(parser, FLAGS)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; raises SettingsError, PolicyError and ServeError."""
    settings = settings_module.from_args(args)
    name = choice.policy_name(settings)
    if name == "remote":
        raise SettingsError(
            "serve-policy serves its own policy, not another server's: set VLA_MODEL_PATH, or"
            " VLA_POLICY=color-servo"
        )
    names = choice.option_names(args)
    choice.check(name, settings, names, CAMERAS)
    config = ServerConfig(
        host=args.host,
        port=args.port,
        api_key=settings_values.token_text(settings.policy_api_key, "POLICY_API_KEY"),
        max_batch=args.max_batch,
        max_clients=1 if name in FOR_ONE else args.max_clients,
    )
    PolicyServer.check(config)
    camera = choice.camera(args, settings)

    def make() -> Policy:
        policy = choice.load(name, settings, names, CAMERAS)
        if camera is not None and isinstance(policy, CameraUser):
            policy.look_through(camera)
        return policy

    first = make()
    kind = _try_out(first, name, settings.vla_task_instruction)

    def restarted() -> Policy:
        first.reset()
        return first

    answer: Shared | PerClient
    if name in REMEMBERING:
        answer = PerClient(make)
    else:
        answer = PerClient(restarted) if name in FOR_ONE else Shared(first)

    def ready(port: int) -> None:
        key = "with an API key" if config.api_key else "no API key"
        print(
            f"ready: {name} at ws://{args.host}:{port}, {kind.chunk_steps} steps of"
            f" {kind.period_s:g} s, {key}",
            flush=True,
        )

    serve(answer, kind.metadata(), config, ready, answer.forget)
    return ExitCode.OK


def _try_out(policy: Policy, name: str, instruction: str) -> Kind:
    try:
        return try_out(policy, name, instruction)
    except Exception as error:
        raise PolicyError(
            f"policy {name} failed on a synthetic image: {type(error).__name__}: {error}"
        ) from error
