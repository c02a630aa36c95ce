"""The way from a request to the running trainer, the same for `lerobot` and `sft`.

Request → checks, most of them without LeRobot → data set → what to resume → plan → training.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import lerobot_env
from crane_x7_vla_rl.policies import cuda_devices, hub
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.lerobot_folder import CONFIG as CONFIG_NAME
from crane_x7_vla_rl.training import preflight, settings, terminal
from crane_x7_vla_rl.training.errors import ConfigError, PackageError
from crane_x7_vla_rl.training.lerobot import dataset, describe, options, resuming, run, saved
from crane_x7_vla_rl.training.lerobot import plan as plans
from crane_x7_vla_rl.training.lerobot.dataset import DataSet
from crane_x7_vla_rl.training.lerobot.plan import Machine, Plan
from crane_x7_vla_rl.training.lerobot.request import Request, Wish
from crane_x7_vla_rl.training.lerobot.resuming import Found, Places
from crane_x7_vla_rl.training.lerobot.run import Call
from crane_x7_vla_rl.training.lerobot.trainer import SCRIPT
from crane_x7_vla_rl.training.lerobot.upload import Both, Destination, HubCheckpoints
from crane_x7_vla_rl.training.tracking import probe_wandb

logger = logging.getLogger(__name__)

LOG_STEPS: Final = 200
STEPS: Final = 100_000
BATCH: Final = 8
"""LeRobot's defaults."""
SET_ANEW: Final = ("steps", "wandb.mode")
"""Options that the program sets when a run resumes, too."""


@dataclass(frozen=True)
class Settled:
    """A training that nothing but LeRobot itself can refuse any more."""

    plan: Plan
    python: Path
    """LeRobot's interpreter."""
    data: DataSet
    found: Found | None
    """Where it resumes."""
    config: Mapping[str, Any] | None
    """The configuration of LeRobot that it starts from."""

    def call(self, unit: str = "rad") -> Call:
        """Return how the trainer is started."""
        return call(self.plan, self.python, self.data, self.found, self.config, unit)


def go(request: Request, wish: Wish) -> int:
    """Train; returns 0, also after SIGTERM once everything is saved.

    Raises TrainingError, DataError and PolicyLoadError.
    """
    with terminal.outlived():
        settled = settle(request, wish)
        print(settled.plan.shown(), flush=True)
        if not wish.dry:
            destination = _destination(request, settled.found)
            if settled.found is not None:
                saved.prepare(settled.found.saved)
            run.train(settled.call(wish.unit), destination)
    return 0


def settle(request: Request, wish: Wish, first: bool = True) -> Settled:
    """Check everything, prepare the data set, and find what is resumed.

    Processes of a distributed training other than the first leave the run's folder alone.
    """
    machine = this_machine(request)
    python = Path("python") if wish.dry else interpreter()
    places = Places(
        plans.output_dir(request, machine), request.own.checkpoint.repo_id, machine.output_root
    )
    found = resuming.find(wish.resume, places)
    config = _config(request, found)
    full = request if config is None else _filled(request, config)
    plan = plans.make(full, machine, presets=config is None)
    for note in plan.notes:
        logger.warning("%s", note)
    if found is not None:
        resuming.check(found, request.options)
        plan = replace(plan, output_dir=_folder(request, plan, found))
    preflight.raise_all(preflight.output(plan.output_dir))
    dataset.check(plan.options)
    if found is None and not wish.dry:
        _check_weights(plan.options)
    if first:
        run.check_folder(plan.output_dir, found is not None)
    if wish.dry and not _local(plan.options):
        data = DataSet(str(plan.options[dataset.REPO]), None, {})
    else:
        data = dataset.prepare(plan.options, plan.output_dir, wish.instruction)
    plan = _complete(plan, data, wish, request, config, found)
    return Settled(plan, python, data, found, config)


def _config(request: Request, found: Found | None) -> Mapping[str, Any] | None:
    """Return the configuration of LeRobot that the run starts from, if there is one."""
    if found is not None:
        return saved.read(found.saved.folder / saved.CONFIG)
    path = request.options.get(options.CONFIG_PATH)
    return None if path is None else resuming.config_of(str(path))


def _filled(request: Request, config: Mapping[str, Any]) -> Request:
    return replace(request, options=resuming.filled(request.options, config))


def _check_weights(given: Mapping[str, Any]) -> None:
    """Raise PolicyLoadError if the policy to start from is neither here nor on the Hub.

    LeRobot needs minutes to say so.
    """
    for key in (options.PATH, plans.BASE):
        if (place := given.get(key)) is None:
            continue
        try:
            hub.peek(str(place), given.get("policy.pretrained_revision"), names=[CONFIG_NAME])
        except PolicyLoadError as error:
            raise PolicyLoadError(f"{key}: {error}") from error


def _local(given: Mapping[str, Any]) -> bool:
    return Path(str(given.get(dataset.ROOT) or given.get(dataset.REPO))).expanduser().exists()


def interpreter() -> Path:
    """Return LeRobot's Python; raises PackageError with the command that installs it."""
    try:
        return lerobot_env.interpreter(settings.lerobot_venv())
    except lerobot_env.LerobotEnvError as error:
        raise PackageError(str(error)) from error


def this_machine(request: Request) -> Machine:
    """Return what of this machine matters; raises ConfigError if W&B knows no login."""
    device = request.options.get("policy.device")
    gpus = 0 if device == "cpu" else cuda_devices.count() or 0
    return Machine(gpus, settings.output_root(), _wandb(request))


def _wandb(request: Request) -> dict[str, str]:
    if not request.options.get("wandb.enable"):
        return {}
    found = settings.wandb_options()
    mode = request.options.get("wandb.mode") or found.get("wandb.mode") or "online"
    if mode != "online":
        return found
    if problem := settings.wandb_login_problem():
        raise ConfigError(problem)
    if why := probe_wandb(settings.wandb_url()):
        logger.warning("W&B is not available, its run stays on disk: %s", why)
        return {**found, "wandb.mode": "offline"}
    return found


def _folder(request: Request, plan: Plan, found: Found | None) -> Path:
    """Return the run's folder: the resumed run's, unless another one is named."""
    if found is None or request.own.job.output_dir is not None:
        return plan.output_dir
    return found.run


def _complete(
    plan: Plan,
    data: DataSet,
    wish: Wish,
    request: Request,
    config: Mapping[str, Any] | None,
    found: Found | None,
) -> Plan:
    """Return the plan with the data set and the number of steps; of a configuration that LeRobot
    reads itself, only what differs."""
    wanted = {**plan.options, **data.options}
    if "steps" not in wanted and wish.epochs is not None:
        processes = request.own.accelerate.num_processes or 1
        batch = int(wanted.get("batch_size", BATCH))
        wanted["steps"] = steps(wish.epochs, data.frames, batch, processes)
    if wish.warmup_ratio is not None and config is None:
        _warm_up(wanted, wish.warmup_ratio)
    if config is None:
        return replace(plan, options=wanted)
    if found is None:
        start: dict[str, Any] = {options.CONFIG_PATH: str(request.options[options.CONFIG_PATH])}
    else:
        logger.info("resuming from %s, step %d", found.saved.folder, found.saved.step)
        start = {options.CONFIG_PATH: str(found.saved.model), "resume": True}
    mine = {key: wanted[key] for key in wanted if key in request.options or key in SET_ANEW}
    words = {
        **start, "output_dir": str(plan.output_dir), **data.options,
        **resuming.changed(config, mine), "policy.push_to_hub": False,
    }  # fmt: skip
    return replace(plan, options=words)


def steps(epochs: int, frames: int, batch_size: int, processes: int) -> int:
    """Return the number of updates of `epochs` passes over `frames`."""
    return max(-(-epochs * frames // (batch_size * processes)), 1)


def _warm_up(wanted: dict[str, Any], ratio: float) -> None:
    kind = wanted.get(options.TYPE)
    names = ("scheduler_warmup_steps", "scheduler_decay_steps")
    if kind is None or not all(options.has(str(kind), name) for name in names):
        raise ConfigError(f"--warmup-ratio: policies of type {kind} have no such schedule")
    total = int(wanted.get("steps", STEPS))
    wanted["policy.scheduler_warmup_steps"] = round(ratio * total)
    wanted["policy.scheduler_decay_steps"] = total


def call(
    plan: Plan,
    python: Path,
    data: DataSet,
    found: Found | None,
    config: Mapping[str, Any] | None,
    unit: str = "rad",
) -> Call:
    """Return how the trainer is started."""
    known = config or {}

    def number(name: str, default: int) -> int:
        return int(plan.options.get(name, known.get(name, default)))

    extra: dict[str, str] = {"PYTHONUNBUFFERED": "1", **dict(plan.environment)}
    if not plan.launcher:  # whose processes have another parent, and end with it
        extra["CRANE_X7_PARENT"] = str(os.getpid())
    if (text := describe.policy_io(data.info, _policy(plan, known), unit)) is not None:
        extra["CRANE_X7_POLICY_IO"] = text
    return Call(
        command=plan.command(python, SCRIPT),
        environment=settings.environment(extra),
        output_dir=plan.output_dir,
        steps=number("steps", STEPS),
        log_steps=max(number("log_freq", LOG_STEPS), 1),
        resumed=None if found is None else found.saved,
        uploaded=found is not None and found.from_hub,
        shown=plan.shown(),
    )


def _policy(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy's options as far as they are known before LeRobot starts."""
    path = plan.options.get(options.PATH)
    found = dict(config.get("policy") or {})
    if path is not None and (Path(str(path)) / "config.json").is_file():
        found |= json.loads((Path(str(path)) / "config.json").read_text(encoding="utf-8"))
    given = {
        k.removeprefix("policy."): v for k, v in plan.options.items() if k.startswith("policy.")
    }
    return {**found, **given}


def _destination(request: Request, found: Found | None) -> Destination | None:
    """Return where checkpoints go; the repositories are made now. Raises ConfigError."""
    own, policy_repo = request.own.checkpoint, request.options.get("policy.repo_id")
    targets = []
    if own.repo_id is not None:
        target = HubCheckpoints(own.repo_id)
        target.check()
        if found is None:
            target.refuse_other_run()
        targets.append(target)
    if policy_repo is not None and request.options.get("policy.push_to_hub") is not False:
        finished = HubCheckpoints(str(policy_repo), policy=True)
        finished.check()
        targets.append(finished)
    if not targets:
        return None
    every = own.upload_every_save or bool(request.options.get("save_checkpoint_to_hub"))
    return Destination(targets[0] if len(targets) == 1 else Both(tuple(targets)), every)
