"""Which policy a command runs. Settings and flags → name, model options, a loaded `Policy`.

`infer` and `serve-policy` choose in the same way.
"""

from __future__ import annotations

import argparse

from crane_x7_remote import settings_values
from crane_x7_remote.errors import PolicyError, SettingsError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.policies import load as policies
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError
from crane_x7_vla_rl.policies.kind import kind_of
from crane_x7_vla_rl.policies.preflight import OptionNames
from crane_x7_vla_rl.types import WRIST


def policy_name(settings: Settings) -> str:
    """Return VLA_POLICY, or what model and server imply; raises SettingsError and PolicyError."""
    path, server = settings.vla_model_path, settings.policy_server
    if settings.vla_policy is not None:
        return settings.vla_policy
    if path is not None and server is not None:
        raise SettingsError(
            "both VLA_MODEL_PATH and POLICY_SERVER are set: set VLA_POLICY=remote to ask the"
            " server, or unset POLICY_SERVER"
        )
    if server is not None:
        return "remote"
    if path is None:
        raise SettingsError(
            "no policy selected: set VLA_MODEL_PATH to a model, POLICY_SERVER to a server, or"
            " VLA_POLICY=color-servo"
        )
    try:
        return kind_of(path, _hub_token(settings))
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error


def model_options(settings: Settings, cameras: tuple[str, ...] | None = None) -> ModelOptions:
    """Return the settings of a model; `cameras`: those that it may use besides the base camera,
    None: those of the robot. Raises SettingsError for an API key that cannot be read."""
    return ModelOptions(
        path=settings.vla_model_path,
        device=settings.vla_device,
        unnorm_key=settings.vla_unnorm_key,
        token=_hub_token(settings),
        center_crop=settings.vla_center_crop,
        chunk_steps=settings.vla_chunk_steps,
        temperature=settings.vla_temperature,
        speculation=settings.vla_speculation,
        server=settings.policy_server,
        proxy=settings.policy_proxy,
        api_key=settings_values.token_text(settings.policy_api_key, "POLICY_API_KEY"),
        policy_io=settings.policy_io,
        jpeg_quality=settings.policy_jpeg,
        lerobot_venv=settings.lerobot_venv,
        answer_timeout_s=settings.policy_timeout,
        more_cameras=more_cameras(settings) if cameras is None else cameras,
    )


def more_cameras(settings: Settings) -> tuple[str, ...]:
    """Return the cameras that the robot has besides the base camera."""
    return (WRIST,) if settings.wrist_camera_topic else ()


def option_names(args: argparse.Namespace) -> OptionNames:
    """Return what sets the model's options, for messages: flags that are given, else variables."""
    variables = {
        "path": "vla_model_path", "device": "vla_device", "unnorm_key": "vla_unnorm_key",
        "server": "policy_server", "api_key": "policy_api_key", "policy_io": "policy_io",
    }  # fmt: skip
    given = {
        name: field for name, field in variables.items() if getattr(args, field, None) is not None
    }
    return OptionNames(**{name: f"--{field.replace('_', '-')}" for name, field in given.items()})


def check(
    name: str, settings: Settings, names: OptionNames, cameras: tuple[str, ...] | None = None
) -> None:
    """Refuse a wrong device or model before anything is opened, imported or downloaded; `cameras`
    as in `model_options`. Raises PolicyError."""
    try:
        policies.check(name, model_options(settings, cameras), names)
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error


def load(
    name: str, settings: Settings, names: OptionNames, cameras: tuple[str, ...] | None = None
) -> Policy:
    """Return the policy; `cameras` as in `model_options`. Raises PolicyError."""
    try:
        return policies.load_policy(name, model_options(settings, cameras), names)
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error


def camera(args: argparse.Namespace, settings: Settings) -> CameraPose | None:
    """Return the camera's pose, if CAMERA_POSE or its flag is set; raises SettingsError."""
    if settings.camera_pose is None:
        return None
    try:
        return camera_pose.read(settings.camera_pose)
    except camera_pose.CameraPoseError as error:
        name = "CAMERA_POSE" if args.camera_pose is None else "--camera-pose"
        raise SettingsError(f"{name}: {error}") from error


def _hub_token(settings: Settings) -> str | None:
    return None if settings.hf_token is None else settings.hf_token.get_secret_value()
