"""What the demo shows: flags, settings, a checkpoint's small files → `DemoPlan`.

The policy determines the scene, the tasks and the rate unless a flag does: for colour servo the
values below, for a checkpoint those that policies/about.py reads. Also here: the commands of both
processes. The loop takes its limits, such as the jump, from the checkpoint.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, get_args

from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import DashboardError, PolicyError, SettingsError
from crane_x7_remote.policy_server import choice, lerobot_child, policy_io_file
from crane_x7_remote.policy_server.policy_io_file import PolicyIoError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.fields import FiniteAmount, argument_type, within
from crane_x7_vla_rl.policies import about, lerobot_folder
from crane_x7_vla_rl.policies import load as policies
from crane_x7_vla_rl.policies.about import Chosen
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.kind import kind_of
from crane_x7_vla_rl.policies.load import POLICY_NAMES, SMALL, TINY, has_random_weights
from crane_x7_vla_rl.policies.preflight import OptionNames
from crane_x7_vla_rl.policies.skills import Skills
from crane_x7_vla_rl.scenes import COLOUR_NAMES, EVALUATION_SEED, PICK_PLACE_ID, Render, WorldConfig

NVIDIA_DEVICE = Path("/dev/nvidiactl")
SHIPPING: Final = {"small": SMALL, "tiny": TINY}
"""Policies in this repository, by the name of their folder; the first is the demo's."""
NAMES: Final = (*SHIPPING, *POLICY_NAMES)
USUAL: Final = Skills(
    task=PICK_PLACE_ID,
    colours=COLOUR_NAMES,
    spawn_range_m=WorldConfig.spawn_range_m,
    instructions=("pick up the red cube", "place the blue cube on the plate"),
    rate_hz=10.0,
)
"""For colour servo, and for a checkpoint without its own."""
SHOWN: Final = 3
"""How many of a policy's own tasks are shown."""
CAMERA_HZ: Final = 30.0
DASHBOARD_PORT: Final = 8686
PORT: Final = argument_type(Annotated[int, within(1, 65535)])
FLAGS: Final = {
    "colours": "--colours", "spawn_range_m": "--spawn-range-m", "rate_hz": "--rate",
    "temperature": "--temperature",
}  # fmt: skip
"""Name of a checkpoint's value → the demo's flag."""


@dataclass(frozen=True)
class Model:
    """The policy's weights and device."""

    path: str
    device: str
    is_random: bool
    """Its config states that its weights are random."""
    kind: str = "openvla"
    """Name of its policy for load_policy: openvla, or lerobot for a LeRobot checkpoint."""


@dataclass(frozen=True)
class DemoPlan:
    """Settings of one demo."""

    seed: int
    scene_seed: int
    """Seed of the simulation: after the seeds that a checkpoint may have been trained on."""
    instructions: tuple[str, ...]
    """The tasks, one after another."""
    policy: str
    """Its name for load_policy."""
    model: Model | None
    skills: Skills
    """The scene, the rate and the temperature."""
    image_size: str
    render: str
    camera_rate_hz: float
    timeouts_s: tuple[float, ...]
    """Time limit of each task; tasks after the last one have its limit."""
    rate_reason: str
    """Why the loop runs at its rate."""
    dashboard: int | None
    """Port of the loop's page; None: no page."""
    settings: Settings
    """Settings of the environment, which both processes inherit."""

    def timeout_s(self, task: int) -> float:
        """Time limit of the task with this number, from 0."""
        return self.timeouts_s[min(task, len(self.timeouts_s) - 1)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the plan."""
    add = parser.add_argument
    add("--policy", default=NAMES[0], metavar="POLICY",
        help="policy that drives: small or tiny (ship with the project), color-servo, openvla (the"
        " model of VLA_MODEL_PATH), or a checkpoint's folder or Hub id (%(default)s)")  # fmt: skip
    add("--instruction", metavar="TASK", help="first task (the policy's own)")
    add("--then", nargs="+", metavar="TASK",
        help="further tasks, each sent when the one before it is done; empty: none"
        " (the policy's own)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="seed of the scene, which sets the cubes' positions (%(default)s)")  # fmt: skip
    add("--colours", nargs="+", choices=COLOUR_NAMES, metavar="COLOUR",
        help=f"cubes in the scene: {', '.join(COLOUR_NAMES)} (the policy's own)")  # fmt: skip
    add("--spawn-range-m", type=argument_type(FiniteAmount), metavar="M",
        help="largest distance of cubes and plate from their default positions, 0 to 0.05"
        " (the policy's own)")  # fmt: skip
    add("--rate", type=float, metavar="HZ", help="inference rate (the policy's own)")
    add("--temperature", type=argument_type(FiniteAmount), metavar="T",
        help="sampling temperature of a model's tokens (the policy's own)")  # fmt: skip
    add("--image-size", default="640x480", metavar="WIDTHxHEIGHT",
        help="image size of the policy's camera (%(default)s)")  # fmt: skip
    add("--render", choices=get_args(Render), default=WorldConfig.render,
        help="device that draws the images: gpu, a CUDA GPU; cpu, Mesa; auto, a GPU if it can draw"
        " (%(default)s)")  # fmt: skip
    add("--camera-rate", type=float, default=CAMERA_HZ, metavar="HZ",
        help="rate of the policy's camera (%(default)g)")  # fmt: skip
    add("--timeout", type=float, nargs="+", default=(30.0, 45.0), metavar="S",
        help="time limit of each task in seconds; the last one counts for all further tasks"
        " (30 45)")  # fmt: skip
    add("--dashboard", type=PORT, nargs="?", const=DASHBOARD_PORT, metavar="PORT",
        help="show the run on a page at 127.0.0.1:PORT (%(const)s)")  # fmt: skip


def read(args: argparse.Namespace) -> DemoPlan:
    """Return the plan in parsed flags; raises SettingsError and PolicyError."""
    settings = settings_module.load()
    model = _model(args.policy, settings)
    chosen = _choose(model, settings, args)
    skills = Skills(**chosen.values)
    if min(args.timeout) <= 0:
        raise SettingsError(
            f"--timeout is {' '.join(f'{limit:g}' for limit in args.timeout)}, expected positive"
            " numbers of seconds"
        )
    return DemoPlan(
        seed=args.seed,
        scene_seed=args.seed + (0 if model is None else EVALUATION_SEED),
        instructions=_tasks(skills, args),
        policy=args.policy if model is None else model.kind,
        model=model,
        skills=skills,
        image_size=args.image_size,
        render=args.render,
        camera_rate_hz=args.camera_rate,
        timeouts_s=tuple(args.timeout),
        rate_reason=_rate_reason(chosen.sources["rate_hz"]),
        dashboard=args.dashboard,
        settings=settings,
    )


def check(plan: DemoPlan) -> None:
    """Refuse a checkpoint that the loop cannot load and a port that is taken, before anything
    starts; raises PolicyError and DashboardError."""
    _check_page(plan.dashboard)
    if plan.model is None:
        return
    token = _token(plan.settings)
    options = ModelOptions(
        plan.model.path, plan.model.device, plan.settings.vla_unnorm_key, token=token
    )
    try:
        policies.check(plan.policy, options, OptionNames(path="--policy"))
        if plan.policy == "lerobot":
            _check_cameras(plan.model.path, plan.settings)
    except (PolicyLoadError, PolicyIoError) as error:
        raise PolicyError(str(error)) from error


def _check_page(port: int | None) -> None:
    """The loop would drive without its page; here somebody wants to see it."""
    if port is None:
        return
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise DashboardError(
            f"cannot listen on 127.0.0.1:{port} (--dashboard): {error.strerror}; choose another"
            " port"
        ) from error


def _check_cameras(path: str, settings: Settings) -> None:
    """Refuse a policy of two cameras if there is one; the loop checks checkpoints of the Hub."""
    folder = lerobot_folder.find(Path(path).expanduser())
    if folder is not None:
        io = lerobot_child.described(folder, settings.policy_io)
        policy_io_file.check_cameras(io, choice.more_cameras(settings))


def _token(settings: Settings) -> str | None:
    return None if settings.hf_token is None else settings.hf_token.get_secret_value()


def _tasks(skills: Skills, args: argparse.Namespace) -> tuple[str, ...]:
    """Return the first task and, unless they are empty, those after it."""
    first = skills.instructions[0] if args.instruction is None else args.instruction
    if not first.strip():
        raise SettingsError("--instruction is empty; expected a task for the robot")
    then = skills.instructions[1:SHOWN] if args.then is None else args.then
    return first, *(text.strip() for text in then if text.strip())


def _choose(model: Model | None, settings: Settings, args: argparse.Namespace) -> Chosen:
    """Return the plan's skills: from a flag, else from the checkpoint, else the default."""
    given = {
        "colours": args.colours and tuple(args.colours),
        "spawn_range_m": args.spawn_range_m,
        "rate_hz": args.rate,
        "temperature": args.temperature,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        said = {} if model is None else about.said_by(model.path, _token(settings))
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error
    chosen = about.choose(given, said, {**vars(USUAL), "image_size": None}, FLAGS)
    values = {**chosen.values, "image_size": None}  # the demo's camera has --image-size
    if chosen.sources["instructions"] == about.DEFAULT:
        values["instructions"] = _usual_tasks(values["task"], values["colours"])
    return Chosen(values, chosen.sources)


def _usual_tasks(task: str, colours: Sequence[str]) -> tuple[str, ...]:
    """Return tasks for the cubes, and the plate, of the scene."""
    has_plate = task == PICK_PLACE_ID
    fitting = tuple(
        text
        for text in USUAL.instructions
        if any(colour in text for colour in colours) and (has_plate or "plate" not in text)
    )
    return fitting or (f"pick up the {colours[0]} cube",)


def _rate_reason(source: str) -> str:
    usual = {about.GIVEN: "set by --rate", about.DEFAULT: "the demo's default"}
    return usual.get(source, f"the policy's own rate, from its {source}")


def _model(policy: str, settings: Settings) -> Model | None:
    """Return the policy's model; its device is the CPU if no GPU exists and VLA_DEVICE is unset.
    The policies that ship are too small to gain from a GPU."""
    if policy == "color-servo":
        return None
    path: str | None = str(SHIPPING.get(policy, policy))
    if policy == "openvla":
        path = settings.vla_model_path
    if path is None:
        raise SettingsError(
            "--policy openvla needs a model: set VLA_MODEL_PATH to a folder or Hub id; to create"
            " one with random weights: python -m crane_x7_vla_rl.policies.openvla.builder"
            " outputs/tiny"
        )
    if policy not in NAMES and "/" not in policy and not Path(policy).expanduser().is_dir():
        raise SettingsError(
            f"--policy {policy} is unknown: expected {', '.join(NAMES)}, or a checkpoint's folder"
            " or Hub id (owner/name)"
        )
    device = settings.vla_device
    if "vla_device" not in settings.model_fields_set and (
        policy in SHIPPING or not NVIDIA_DEVICE.exists()
    ):
        device = "cpu"
    try:
        kind = kind_of(path, _token(settings))
    except PolicyLoadError as error:
        raise PolicyError(str(error)) from error
    return Model(path, device, has_random_weights(path), kind)


def robot_command(plan: DemoPlan) -> list[str]:
    """Return the arguments that start the robot, behind its guard."""
    skills = plan.skills
    return [
        "sim-robot", "--port", "0", "--guard", "0", "--seed", str(plan.scene_seed),
        "--task", skills.task, "--colours", *skills.colours,
        "--spawn-range-m", f"{skills.spawn_range_m:g}",
        "--image-size", plan.image_size, "--render", plan.render,
        "--camera-rate", f"{plan.camera_rate_hz:g}",
        "--control-rate", f"{max(30.0, plan.camera_rate_hz):g}",
    ]  # fmt: skip


def loop_command(plan: DemoPlan, port: int, metrics: Path) -> list[str]:
    """Return the arguments that start the loop; `port` is the guard's."""
    command = [
        "infer", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port),
        "--vla-policy", plan.policy, "--vla-task-instruction", plan.instructions[0],
        "--vla-inference-rate", f"{plan.skills.rate_hz:g}", "--metrics", str(metrics),
    ]  # fmt: skip
    if plan.dashboard is not None:
        command += ["--dashboard", str(plan.dashboard)]
    if plan.model is None:
        return command
    model = ["--vla-model-path", plan.model.path, "--vla-device", plan.model.device]
    return [*command, *model, "--vla-temperature", f"{plan.skills.temperature:g}"]
