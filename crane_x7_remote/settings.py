"""Environment → one frozen `Settings`: every variable, its default and its unit, in one place.

`os.environ` is read here and nowhere else. Each field is an environment variable of the same name
in capitals and a flag of the same name with dashes; precedence: default < variable < flag. All
mistakes are reported at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from crane_x7_remote.errors import SettingsError

OWN_PREFIXES = ("VLA_", "ROSBRIDGE_")
"""A variable that starts like this and is no field is taken for a typing mistake."""

EmptyIsNone = BeforeValidator(lambda value: None if value == "" else value)
"""Templates often pass on an empty variable; for an optional one that means unset."""

ALIASES = {"vla_policy": ("--policy",)}
"""Further names of some flags."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Everything that can be set from outside."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, case_sensitive=False
    )

    rosbridge_host: str = "crane-x7-local"
    """Host name or address of the robot's rosbridge server."""
    rosbridge_port: Annotated[int, Field(ge=1, le=65535)] = 9090
    """Port of the robot's rosbridge server."""
    rosbridge_proxy: Annotated[str | None, EmptyIsNone] = None
    """Proxy towards rosbridge, such as socks5h://127.0.0.1:1055 or http://127.0.0.1:1055."""
    peer_wait_timeout: Positive = 300.0
    """Seconds to wait for rosbridge to answer at the start before giving up."""

    vla_policy: Annotated[Literal["color-servo", "openvla"] | None, EmptyIsNone] = None
    """Which policy drives, color-servo or openvla; without it, VLA_MODEL_PATH decides."""
    vla_model_path: Annotated[str | None, EmptyIsNone] = None
    """Local folder or Hub id of the model; owner/name@revision pins a branch, tag or commit."""
    vla_task_instruction: str = "pick up the object"
    """What the robot is asked to do at the start."""
    vla_device: str = "cuda"
    """Device that the model runs on: cuda, cuda:1 or cpu."""
    vla_inference_rate: Annotated[float, Field(gt=0, le=200, allow_inf_nan=False)] = 10.0
    """Trajectories per second, Hz."""
    vla_unnorm_key: str = "crane_x7"
    """Key of the statistics that turn the model's outputs into radians."""
    hf_token: Annotated[SecretStr | None, EmptyIsNone] = None
    """Token for private models on the Hugging Face Hub."""

    max_frame_age: Positive = 0.5
    """Seconds after which a camera frame or joint state is too old to act on."""
    policy_timeout: Positive = 1.0
    """Seconds after which a prediction is given up and its result thrown away."""
    trajectory_validity: Positive = 0.5
    """Seconds after its frame at which a receiver must refuse a trajectory."""
    dry_run: bool = False
    """Predict and check, but publish nothing."""

    camera_topic: str = "/camera/color/image_raw/compressed"
    """sensor_msgs/CompressedImage to act on."""
    joint_states_topic: str = "/joint_states"
    """sensor_msgs/JointState, joints in any order."""
    instruction_topic: str = "/vla/update_instruction"
    """std_msgs/String that changes the task while running."""
    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    """trajectory_msgs/JointTrajectory for the arm's controller; empty: not published."""
    trajectory_topic: str = "/vla/predicted_trajectory"
    """trajectory_msgs/JointTrajectory over all 8 joints; empty: not published."""
    action_topic: str = "/vla/predicted_action"
    """std_msgs/Float32MultiArray, 7 arm joints + gripper; empty: not published."""
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"
    """control_msgs GripperCommand action for the gripper; empty: the gripper is not driven."""

    @field_validator("vla_task_instruction")
    @classmethod
    def _instruction_is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; expected a task such as 'pick up the red cube'")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from `load` alone, which merges flags over the environment."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Return settings from `environ` (default: the process's) with `flags` (field → value) on top.

    A flag of None counts as not given. Raises SettingsError that names every wrong variable.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {
        name: environ[name.upper()] for name in Settings.model_fields if name.upper() in environ
    }
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    problems = list(_unknown_variables(environ))
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_explain(problem) for problem in error.errors()]
    if problems:
        raise SettingsError("settings are wrong:\n" + "\n".join(f"  {line}" for line in problems))
    return settings


def add_flags(parser: argparse.ArgumentParser, fields: Iterable[str]) -> None:
    """Give `parser` a flag for each named field, with its docstring and default as help.

    Values stay text, so that variables and flags are checked by the same code.
    """
    for name in fields:
        field = Settings.model_fields[name]
        default = "unset" if field.default is None else repr(field.default)
        help_text = f"{field.description} [{name.upper()}, default {default}]".replace("%", "%%")
        flags = ("--" + name.replace("_", "-"), *ALIASES.get(name, ()))
        if field.annotation is bool:
            parser.add_argument(
                *flags,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=help_text,
            )
        else:
            metavar = "SECRET" if SecretStr in typing.get_args(field.annotation) else "VALUE"
            parser.add_argument(*flags, dest=name, metavar=metavar, help=help_text)


def from_args(args: argparse.Namespace) -> Settings:
    """Return settings from the environment and the parsed flags of `add_flags`."""
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    return load(flags)


def _unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    known = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environ):
        if variable.startswith(OWN_PREFIXES) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{variable} is unknown{hint}"


def _explain(problem: Mapping[str, Any]) -> str:
    variable = str(problem["loc"][0]).upper()
    message = str(problem["msg"]).removeprefix("Value error, ")
    is_secret = "TOKEN" in variable or "KEY" in variable
    came = "***" if is_secret else repr(problem["input"])
    return f"{variable}={came}: {message}"


def as_markdown() -> str:
    """Return the table of docs/settings.md; a test holds the file to it."""
    lines = [
        "# Settings",
        "",
        "Each is an environment variable and a flag of the same name in lower case with dashes",
        "(`--rosbridge-host`). Default < variable < flag. Empty means unset where that is allowed.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "(unset)" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
