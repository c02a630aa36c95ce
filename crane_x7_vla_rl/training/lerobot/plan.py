"""A request on this machine. `Request`, GPUs, variables → the `Plan`: LeRobot's words, and how it
is started.

Pure: nothing is read from disk or network here. Presets: what the base of π0 and its relatives
needs, unless the request says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.lerobot import options as lerobot
from crane_x7_vla_rl.training.lerobot.config import AccelerateSection
from crane_x7_vla_rl.training.lerobot.request import Request

_PI: Final = {"compile_model": True, "gradient_checkpointing": True, "dtype": "bfloat16"}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "pi0": {"pretrained_path": "lerobot/pi0_base", **_PI},
    "pi05": {"pretrained_path": "lerobot/pi05_base", **_PI},
}
"""Policy type → options that are set unless the request sets them; an option set to null is not."""
BASE: Final = "policy.pretrained_path"
DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}
MODULE: Final = "lerobot.scripts.lerobot_train"
LAUNCH: Final = "accelerate.commands.launch"


@dataclass(frozen=True)
class Machine:
    """What a plan depends on beside the request."""

    gpus: int = 0
    output_root: Path = Path("outputs")
    wandb: Mapping[str, str] = field(default_factory=dict)
    """wandb.project, .entity and .mode as the variables WANDB_… have them; LeRobot reads none."""


@dataclass(frozen=True)
class Plan:
    """How LeRobot's trainer is started."""

    options: Mapping[str, Any]
    """In the order of its words."""
    output_dir: Path
    launcher: tuple[str, ...] = ()
    """Words of `accelerate launch`; () for one process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set for it."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @property
    def words(self) -> list[str]:
        """LeRobot's command-line words."""
        return lerobot.words(self.options)

    def command(self, python: Path, script: Path | None = None) -> list[str]:
        """Return the command; `script` replaces LeRobot's module, and starts it itself."""
        program = ["-m", MODULE] if script is None else [str(script)]
        if not self.launcher:
            return [str(python), *program, *self.words]
        module = ["--module", MODULE] if script is None else [str(script)]
        return [str(python), "-m", LAUNCH, *self.launcher, *module, *self.words]

    def shown(self) -> str:
        """Return the command as one types it in LeRobot's environment, a word per line."""
        from shlex import quote

        launch = f"accelerate launch {' '.join(map(quote, self.launcher))} --module {MODULE}"
        variables = "".join(f"{name}={quote(value)} " for name, value in self.environment.items())
        lines = [variables + (launch if self.launcher else "lerobot-train")]
        return " \\\n    ".join([*lines, *map(quote, self.words)])


def make(request: Request, machine: Machine, presets: bool = True) -> Plan:
    """Return the plan of a training; raises ConfigError for what cannot work together.

    Without `presets`, a configuration of LeRobot has every option already.
    """
    options = dict(request.options)
    _check_policy(options)
    where = output_dir(request, machine)
    launcher, environment = _launch(request.own.accelerate, machine.gpus, options)
    for name, value in PRESETS.get(request.policy_type or "", {}).items() if presets else ():
        options.setdefault(f"policy.{name}", value)
    if lerobot.RENAME in options and not (options.get(lerobot.PATH) or options.get(BASE)):
        raise ConfigError(
            "policy.rename_map needs a pretrained policy (policy.path or policy.pretrained_path):"
            " a new one takes its names from the data set"
        )
    options |= {"policy.push_to_hub": False, "output_dir": str(where)}
    if request.own.job.name is not None:
        options["job_name"] = request.own.job.name
    options.pop("save_checkpoint_to_hub", None)  # the supervisor uploads
    if "env.type" not in options and presets:
        options.setdefault("env_eval_freq", 0)
    _wandb(options, machine)
    return Plan(options, where, launcher, environment, _notes(request))


def _check_policy(options: dict[str, Any]) -> None:
    for key in (lerobot.PATH, lerobot.TYPE):
        if options.get(key, "") is None:
            del options[key]
    if lerobot.PATH in options and options.get(BASE):
        raise ConfigError(
            "policy.path and policy.pretrained_path are both set; keep policy.path to continue a"
            " policy with its own options, policy.pretrained_path for the weights alone"
        )
    if lerobot.PATH not in options and lerobot.TYPE not in options:
        raise ConfigError(
            "policy.type is not set; give policy.type to train a new policy, or policy.path to"
            f" continue one; types: {', '.join(lerobot.policy_types())}"
        )
    if lerobot.PATH in options:
        options.pop(lerobot.TYPE, None)  # LeRobot takes it from the policy, and refuses both
    if options.get("policy.push_to_hub") and not options.get("policy.repo_id"):
        raise ConfigError("policy.push_to_hub needs policy.repo_id: owner/name on the Hub")
    if not options.get("dataset.repo_id") and not options.get("dataset.root"):
        raise ConfigError(
            "dataset.repo_id is not set; give a data set's Hub id, or dataset.root for a folder"
        )


def output_dir(request: Request, machine: Machine) -> Path:
    """Return the folder of the run."""
    job = request.own.job
    name = job.name or request.policy_type or "lerobot"
    return Path(job.output_dir or machine.output_root / "train" / name).expanduser()


def _launch(
    wanted: AccelerateSection, gpus: int, options: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words of `accelerate launch`, and variables; sets policy.dtype."""
    count = wanted.num_processes or max(gpus, 1)
    several = count > 1 or (wanted.num_machines or 1) > 1 or wanted.config_file is not None
    use = several if wanted.use is None else wanted.use
    precision = wanted.mixed_precision
    kind = options.get(lerobot.TYPE)
    if precision is not None and kind is not None and lerobot.has(str(kind), "dtype"):
        given = options["policy.dtype"] = options.get("policy.dtype") or DTYPES[precision]
        if given != DTYPES[precision]:
            raise ConfigError(
                f"accelerate.mixed_precision is {precision}, and policy.dtype is {given}; LeRobot"
                " computes as policy.dtype says: keep one of the two"
            )
    if not use:
        return (), {} if precision is None else {"ACCELERATE_MIXED_PRECISION": precision}
    words = [] if wanted.config_file is None else [f"--config_file={wanted.config_file}"]
    if wanted.config_file is None or wanted.num_processes is not None:
        words += ["--multi_gpu"] * (count > 1) + [f"--num_processes={count}"]
    if wanted.num_machines is not None:
        words.append(f"--num_machines={wanted.num_machines}")
    if precision is not None:
        words.append(f"--mixed_precision={precision}")
    return tuple(words), {}


def _wandb(options: dict[str, Any], machine: Machine) -> None:
    """Set W&B's options from the variables, and no artifact of every save unless it is wanted."""
    if not options.get("wandb.enable"):
        return
    for name, value in machine.wandb.items():
        options.setdefault(name, value)
    options.setdefault("wandb.disable_artifact", True)


def _notes(request: Request) -> tuple[str, ...]:
    notes = []
    if request.own.torch.nightly:
        notes.append(
            "torch.nightly: no nightly PyTorch is installed. The pinned one runs on a B200, and"
            " LeRobot's release refuses newer ones; remove the key"
        )
    return tuple(notes)
