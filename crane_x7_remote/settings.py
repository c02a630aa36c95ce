"""Every variable, its default and its unit. Environment and flags → one frozen `Settings`.

`os.environ` is read here and in crane_x7_vla_rl/training/settings.py, because a training may start
without any command of this package. Each field is an environment variable of the same name in
capitals; `add_flags` gives a command flags for those that it needs, of the same name with dashes.
Precedence: default < variable < flag. Secrets are stripped, words such as `null` mean unset where
no value can be such a word, and all mistakes are reported at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from crane_x7_remote import addresses, settings_help, settings_values
from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl import old_names, secret_text, variables
from crane_x7_vla_rl.prompt import MAX_INSTRUCTION_BYTES, clean_instruction

OLD_NAMES = {
    "TS_AUTH_KEY": "ts_authkey",
    "VERDA_CLIENT_ID": "datacrunch_client_id",
    "VERDA_CLIENT_SECRET": "datacrunch_client_secret",
}
"""Other names: Tailscale's own container accepts the first, Verda's own library the others."""
BOOT_PREFIXES = (
    "ts_",
    "ssh_",
    "public_key",
    "boot_",
    "hf_home",
    "wandb_",
    "lift_",
    "guard_",
    "dashboard_",
    "output_",
    "datacrunch_",
    "vast_",
    "runpod_",
    "verda_",
    "cloud_",
)
"""Fields that `boot`, `cloud` or the robot's side reads, or that are only passed on: not flags of a
role."""
UNSETTABLE = (
    "rosbridge_host", "rosbridge_proxy", "vla_policy", "vla_model_path", "vla_center_crop",
    "vla_chunk_steps", "ts_hostname", "ts_state_dir", "ts_socket", "ts_socks5_server",
    "ts_outbound_http_proxy_listen", "ssh_listen_address", "ssh_state_dir", "boot_run_dir",
    "lift_simulator", "lift_backend", "lift_render", "hf_home", "wandb_dir", "camera_pose",
    "output_root", "policy_server", "policy_proxy", "policy_io", "lerobot_venv",
    "datacrunch_client_id", "cloud_ledger",
)  # fmt: skip
"""Fields besides secrets and keys for which null, None, nil and undefined mean unset, and which are
stripped of blanks and quotes. Numbers are excluded: MAX_JUMP=none must not be guessed. So are texts
that may be such words: an instruction, a topic, a key of statistics."""
OF_CHECKPOINTS = ("vla_inference_rate", "vla_temperature", "max_jump", "trajectory_validity")
"""Numbers that a checkpoint may decide: an empty variable, as in a template's field, is unset."""

EmptyIsNone = BeforeValidator(lambda value: None if value == "" else value)
"""Templates often pass an empty variable; for an optional setting it means unset."""


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]
OptionalText = Annotated[str | None, EmptyIsNone]


class Settings(BaseSettings):
    """Every setting: the fields' docstrings are the help of flags and docs/settings.md."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, case_sensitive=False
    )

    rosbridge_host: str = "crane-x7-local"
    """Host name or address of the robot's rosbridge server; host:port and ws://host:port are \
accepted."""
    rosbridge_port: Port = 9090
    """Port of the robot's rosbridge server."""
    rosbridge_proxy: Annotated[str | None, EmptyIsNone] = None
    """Proxy towards rosbridge, such as socks5h://127.0.0.1:1055 or http://127.0.0.1:1055."""
    peer_wait_timeout: Positive = 300.0
    """Seconds to wait for rosbridge to answer at the start."""

    vla_policy: Annotated[
        Literal["color-servo", "openvla", "remote", "lerobot"] | None, EmptyIsNone
    ] = None
    """Policy that drives: color-servo, openvla, remote (the server of POLICY_SERVER) or lerobot. \
Unset: VLA_MODEL_PATH or POLICY_SERVER decides."""
    vla_model_path: Annotated[str | None, EmptyIsNone] = None
    """Folder or Hub id of the model; owner/name@revision pins a branch, tag or commit. `train` \
starts from it, unless its configuration or a flag names another model."""
    vla_task_instruction: str = "pick up the object"
    """Task at the start."""
    vla_device: str = "auto"
    """Device of the model: cuda, cuda:1, cpu, or auto (CUDA if available, else the CPU)."""
    vla_inference_rate: Annotated[float, Field(gt=0, le=200, allow_inf_nan=False)] = 10.0
    """Trajectories per second, Hz; unset: the checkpoint's rate, else 10."""
    vla_unnorm_key: str = "crane_x7"
    """Key of the statistics that convert the model's outputs to radians."""
    vla_center_crop: Annotated[bool | None, EmptyIsNone] = None
    """Crop images to the centre's 90 %, as after training with random crops. Unset: as the \
checkpoint says, else no."""
    vla_chunk_steps: Annotated[int | None, Field(ge=1, le=100), EmptyIsNone] = None
    """Steps per prediction of an OpenVLA-OFT checkpoint, as in its training: 8 for LIBERO's."""
    vla_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Sampling temperature of action tokens: 0 takes the most likely one, 1 samples as trained; \
unset: the checkpoint's, else 0."""
    vla_speculation: bool = False
    """Decode an action's tokens in fewer passes, with the last action as a draft; the tokens are \
the same. Not yet measured on a GPU."""
    policy_server: OptionalText = None
    """Address of a policy server that speaks openpi's protocol, such as ws://192.168.1.20:8000."""
    policy_proxy: Annotated[str | None, EmptyIsNone] = None
    """Proxy towards the policy server, such as socks5h://127.0.0.1:1055. In the image unset: the \
tailnet's, if the server's host may be on it."""
    policy_api_key: Annotated[SecretStr | None, EmptyIsNone] = None
    """API key of the policy server, or file:/path to one."""
    policy_io: OptionalText = None
    """YAML file that describes inputs and outputs of a remote or LeRobot policy, or one of droid, \
aloha, libero, lerobot and crane_x7. Unset: as the server or the checkpoint states."""
    policy_jpeg: Annotated[int | None, Field(ge=1, le=100), EmptyIsNone] = None
    """Send images to the policy server as JPEG of this quality, 1 to 100: for slow links, and if \
the server takes JPEG. Unset: uncompressed."""
    lerobot_venv: OptionalText = None
    """Folder of LeRobot's Python environment. Unset: .venv-lerobot of this checkout, which \
scripts/setup-lerobot makes, or the image's."""
    hf_token: Annotated[SecretStr | None, EmptyIsNone] = None
    """Token for private models on the Hugging Face Hub."""

    max_frame_age: Positive = 0.5
    """Seconds after which a camera frame or joint state is too old to act on."""
    policy_timeout: Positive = 1.0
    """Seconds after which a prediction is cancelled and its result discarded."""
    trajectory_validity: Positive = 0.5
    """Seconds after its frame after which a receiver must refuse a trajectory. Unset: 0.5; with a \
model two periods of the rate, if that is longer, at most 2."""
    max_jump: Positive = 1.0
    """Largest distance in rad between a target and the measured arm joint. A policy whose \
targets are goals rather than steps needs more. Unset: the checkpoint's, at most 2, else 1."""
    speed: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Share of the arm's velocity and acceleration limits for paths, above 0 to 1; 0.3 for the \
first day with a real arm, which then lags its targets. Braking keeps the full limits."""
    dry_run: bool = False
    """Predict and check, but send nothing to the arm; only /vla/status is published."""

    camera_pose: OptionalText = None
    """YAML file with the pose of the camera, such as configs/camera_pose.yaml; sim: the simulated \
robot's camera. Unset: as the robot states on /vla/camera_pose. Only color-servo needs it."""
    camera_topic: str = "/camera/color/image_raw/compressed"
    """Camera topic, sensor_msgs/CompressedImage."""
    wrist_camera_topic: str = ""
    """Topic of a second camera, on the gripper, for policies that want its images, \
sensor_msgs/CompressedImage; empty: none. Set it for the guard, too."""
    joint_states_topic: str = "/joint_states"
    """Joint states, sensor_msgs/JointState, joints in any order."""
    instruction_topic: str = "/vla/update_instruction"
    """Topic that changes the task while the loop runs, std_msgs/String."""
    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    """Topic of the arm's controller, trajectory_msgs/JointTrajectory; empty: not published."""
    trajectory_topic: str = "/vla/predicted_trajectory"
    """Trajectory of all 8 joints, trajectory_msgs/JointTrajectory; empty: not published."""
    action_topic: str = "/vla/predicted_action"
    """Targets of 7 arm joints and the gripper, std_msgs/Float32MultiArray; empty: not published."""
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"
    """Action of the gripper's controller, control_msgs/GripperCommand; empty: the gripper is not \
driven."""

    ts_authkey: Annotated[SecretStr | None, EmptyIsNone] = None
    """Auth key of the tailnet, or file:/path to one; unset: no tailnet is joined."""
    ts_hostname: OptionalText = None
    """Name on the tailnet; unset: crane-x7-inference for role infer, else crane-x7-vla-rl."""
    ts_state_dir: OptionalText = "/var/lib/tailscale"
    """Folder of the state that survives a restart; mount a volume there. Without a volume at the \
default folder the node leaves the tailnet when the container stops. Empty: it is also registered \
as ephemeral."""
    ts_userspace: bool = True
    """Userspace networking; false needs /dev/net/tun and the capability NET_ADMIN."""
    ts_socket: OptionalText = None
    """Socket of tailscaled; unset: /var/run/tailscale/tailscaled.sock as root, else in \
BOOT_RUN_DIR."""
    ts_socks5_server: OptionalText = "127.0.0.1:1055"
    """Address of tailscaled's SOCKS5 proxy into the tailnet; localhost only. Empty: no proxy."""
    ts_outbound_http_proxy_listen: OptionalText = None
    """Address of tailscaled's HTTP proxy into the tailnet; localhost only. Empty: no proxy."""
    ts_extra_args: str = ""
    """Additional flags of `tailscale up`, such as --login-server=https://…"""
    ts_tailscaled_extra_args: str = ""
    """Additional flags of tailscaled."""
    ts_auth_once: bool = False
    """Use the auth key only if the saved state is not logged in."""
    ts_accept_dns: bool = False
    """Use the tailnet's DNS configuration."""
    ts_login_timeout: Positive = 60.0
    """Seconds for joining the tailnet before boot fails."""
    ts_enable_health_check: bool = True
    """Serve /healthz on TS_LOCAL_ADDR_PORT."""
    ts_local_addr_port: str = "127.0.0.1:9002"
    """Address and port of /healthz."""

    ssh_public_key: OptionalText = None
    """Public keys that may log in as user vla, one per line; unset: no sshd."""
    public_key: OptionalText = None
    """More public keys; Runpod's name for them."""
    ssh_port: Port = 22
    """Port of sshd."""
    ssh_listen_address: OptionalText = None
    """Address that sshd listens on; unset: all. 127.0.0.1: logins through the tailnet only."""
    ssh_state_dir: OptionalText = None
    """Folder of the host key; unset: TS_STATE_DIR/ssh, or a folder inside the container if no \
state is kept."""

    boot_run_dir: OptionalText = None
    """Folder for sockets and generated files; unset: /run/crane-x7 as root, else in /tmp."""
    lift_simulator: Annotated[
        Literal["maniskill", "genesis", "isaacsim"], BeforeValidator(lambda v: v or "maniskill")
    ] = "maniskill"
    """Simulator of `train`; its configuration file and --simulator override it."""
    lift_backend: Annotated[Literal["cpu", "gpu"], BeforeValidator(lambda v: v or "gpu")] = "gpu"
    """Where `train` simulates, cpu or gpu; its configuration file and --backend override it."""
    lift_render: Annotated[
        Literal["auto", "gpu", "cpu"], BeforeValidator(lambda v: v or "auto")
    ] = "auto"
    """Device that draws the images of `train --backend cpu`: gpu, cpu (Mesa) or auto, a GPU if it \
can draw; its configuration file and --render override it."""
    output_root: OptionalText = None
    """Folder of the results of `train`, `sft`, `evaluate` and `demo`; unset: outputs below the \
working folder. The image sets /workspace/vla-rl/outputs."""
    hf_home: OptionalText = None
    """Cache of the Hugging Face Hub; user vla must be able to write to it."""
    wandb_dir: OptionalText = None
    """Folder of W&B's files; user vla must be able to write to it."""
    wandb_api_key: Annotated[SecretStr | None, EmptyIsNone] = None
    """API key of W&B; passed on to the role and to ssh sessions."""

    rosbridge_token: Annotated[SecretStr | None, EmptyIsNone] = None
    """Token of the guard in front of rosbridge, or file:/path to one; rosbridge needs none."""
    guard_listen: str = "127.0.0.1:9091"
    """Address of `guard`, address:port; several with commas. An address that is neither local \
nor in the tailnet needs GUARD_TOKEN."""
    guard_upstream: str = "127.0.0.1:9090"
    """The rosbridge server behind the guard, host:port."""
    guard_token: Annotated[SecretStr | None, EmptyIsNone] = None
    """Token that clients of the guard must send, or file:/path to one; unset: none."""
    guard_link_timeout: Positive = 5.0
    """Seconds after which the guard stops the arm, until `resume`, if the driving loop has lost \
its link."""
    guard_max_clients: Annotated[int, Field(ge=1, le=100)] = 8
    """Clients that the guard serves at the same time."""
    guard_topics: str = ""
    """Additional topics that clients of the guard may subscribe to: topic=type, with commas."""
    guard_pass_action: bool = False
    """Let ACTION_TOPIC pass the guard; it commands the arm past every check."""

    dashboard_listen: str = "127.0.0.1:8686"
    """Address of the dashboard's page, address:port. One that other machines can reach needs \
DASHBOARD_TOKEN."""
    dashboard_token: Annotated[SecretStr | None, EmptyIsNone] = None
    """Token that browsers of the dashboard must give, or file:/path to one; unset: none."""

    datacrunch_client_id: OptionalText = None
    """Verda's client id, for `cloud`; Verda was DataCrunch before. VERDA_CLIENT_ID is read, too."""
    datacrunch_client_secret: Annotated[SecretStr | None, EmptyIsNone] = None
    """Verda's client secret, for `cloud`. VERDA_CLIENT_SECRET is read, too."""
    vast_api_key: Annotated[SecretStr | None, EmptyIsNone] = None
    """API key of Vast.ai, for `cloud`."""
    runpod_api_key: Annotated[SecretStr | None, EmptyIsNone] = None
    """API key of Runpod, for `cloud`."""
    verda_base_url: str = "https://api.verda.com/v1"
    """Address of Verda's API."""
    vast_base_url: str = "https://console.vast.ai"
    """Address of Vast.ai's API."""
    runpod_base_url: str = "https://api.runpod.io"
    """Address of Runpod's API."""
    ssh_private_key: OptionalText = None
    """Private key for rented machines: a file, or the key itself. Unset: each run gets its own."""
    verda_ssh_private_key: OptionalText = None
    """The same; SSH_PRIVATE_KEY overrides it."""
    verda_ssh_key_name: OptionalText = None
    """Not needed: `cloud` registers the public key at Verda, for the run alone."""
    cloud_ledger: OptionalText = None
    """Folder of the ledger of rented machines; unset: ~/.local/state/crane-x7-remote/cloud."""

    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """Parts of the environment that were skipped, one line each: a warning, not an error."""
        return self._notes

    @field_validator("vla_task_instruction")
    @classmethod
    def _instruction_is_fit_for_a_prompt(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; expected a task such as 'pick up the red cube'")
        words = clean_instruction(value)
        if len(words.encode()) > MAX_INSTRUCTION_BYTES:
            raise ValueError(f"is longer than {MAX_INSTRUCTION_BYTES} bytes")
        return words

    @field_validator("ts_socks5_server", "ts_outbound_http_proxy_listen")
    @classmethod
    def _proxy_is_ours_alone(cls, value: str | None) -> str | None:
        if value is not None and not addresses.is_loopback(addresses.split_address(value)[0]):
            raise ValueError(
                "would let anyone into the tailnet; expected a loopback address, such as"
                " 127.0.0.1:1055"
            )
        return value

    @field_validator("ts_local_addr_port")
    @classmethod
    def _address_has_a_port(cls, value: str) -> str:
        addresses.split_address(value)
        return value

    @field_validator("ts_extra_args", "ts_tailscaled_extra_args")
    @classmethod
    def _words_are_closed_and_hold_no_key(cls, value: str) -> str:
        if variables.means_unset(value):
            return ""
        for word in shlex.split(value):
            if word.lstrip("-").partition("=")[0] in ("authkey", "auth-key"):
                raise ValueError("contains the auth key, which `ps` would show; use TS_AUTHKEY")
        return value

    @field_validator("guard_listen", "guard_upstream", "dashboard_listen")
    @classmethod
    def _addresses_have_ports(cls, value: str) -> str:
        addresses.listen_addresses(value)
        return value

    @field_validator("guard_topics")
    @classmethod
    def _topics_have_types(cls, value: str) -> str:
        settings_values.topic_types(value)
        return value

    @field_validator("wrist_camera_topic")
    @classmethod
    def _cameras_are_two(cls, value: str, info: ValidationInfo) -> str:
        if value and value == info.data.get("camera_topic"):
            raise ValueError(
                "is CAMERA_TOPIC, too: a policy would see one camera twice; expected the topic of"
                " the camera on the gripper, or empty"
            )
        return value

    @field_validator("ts_hostname")
    @classmethod
    def _hostname_is_one_label(cls, value: str | None) -> str | None:
        letters = (value or "a").replace("-", "a")
        if not (letters.isascii() and letters.isalnum()) or len(letters) > 63:
            raise ValueError("expected up to 63 letters, digits and dashes")
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

    A flag of None is unset. Raises SettingsError that names every wrong variable.
    """
    environ = os.environ if environ is None else environ
    secret_text.remember_environment(environ)
    meant, problems = _tidied(environ)
    values: dict[str, Any] = {
        name: meant[name.upper()]
        for name in Settings.model_fields
        if name.upper() in meant and not (name in OF_CHECKPOINTS and not meant[name.upper()])
    }
    for old, name in OLD_NAMES.items():
        if old in meant:
            values.setdefault(name, meant[old])
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    notes = settings_values.read_keys(values, problems)
    settings_values.read_addresses(values, problems)
    settings_values.read_secrets(values, problems, secret_variables())
    known = [name.upper() for name in Settings.model_fields]
    problems += settings_values.unknown_variables(environ, known, OLD_NAMES)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [settings_help.explain(each, Settings.model_fields) for each in error.errors()]
    if problems:
        # A wrong secret is reported both as a variable and as the field's value.
        given = {name for name, value in (flags or {}).items() if value is not None}
        lines = [f"  {settings_help.named(line, given)}" for line in dict.fromkeys(problems)]
        raise SettingsError("settings are wrong:\n" + "\n".join(lines))
    settings._notes = tuple(notes)
    return settings


def older_variables() -> list[str]:
    """Return a line for each variable of older documents that is set, and read no more."""
    return old_names.variable_hints(os.environ)


def line_to_complete() -> str | None:
    """Return the line that a shell wants completed; None if this process is not a completion."""
    return variables.line_to_complete(os.environ)


def tidy_environment() -> None:
    """Tidy this process's environment, and mask its secrets from now on.

    For libraries that read it directly, and for child processes. An unusable secret stays, so that
    `load` reports it.
    """
    secret_text.remember_environment(os.environ)
    meant = inherited()
    for name in os.environ.keys() - meant.keys():
        del os.environ[name]
    os.environ.update(meant)


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Give `parser` a flag for each named field, with its docstring and default as help."""
    settings_help.add_flags(parser, names, Settings.model_fields)


def from_args(args: argparse.Namespace) -> Settings:
    """Return settings from the environment and the parsed flags of `add_flags`."""
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    return load(flags)


def inherited() -> dict[str, str]:
    """Return the tidied environment of this process, for child processes."""
    return _tidied(os.environ)[0]


def as_environment(settings: Settings) -> dict[str, str]:
    """Return an environment, with secrets, in which a child process loads the same settings."""
    environ = inherited()
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        environ[name.upper()] = "" if value is None else str(value)
    return environ


def output_root() -> Path:
    """Return the folder below which commands write by default."""
    return Path(variables.output_root(os.environ)).expanduser()


def secret_variables() -> frozenset[str]:
    """Return every variable whose value is a secret."""
    named = {
        name.upper()
        for name, field in Settings.model_fields.items()
        if SecretStr in typing.get_args(field.annotation)
    }
    return frozenset(named | set(OLD_NAMES) | set(variables.SECRETS))


def role_fields() -> list[str]:
    """Return the fields that a role such as `infer` reads."""
    return [name for name in Settings.model_fields if not name.startswith(BOOT_PREFIXES)]


def _tidied(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    texts = [name.upper() for name in UNSETTABLE]
    return variables.tidied(environ, secret_variables(), texts)
