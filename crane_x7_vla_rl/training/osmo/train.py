"""One training, alone or as one of torchrun's processes. `OsmoConfig` → `checkpoint_<step>/`.

The run's folder (<output.dir>-run/lerobot) is LeRobot's; a later start finds its newest complete
checkpoint and resumes. With RANK set, each process starts its own LeRobot; the first one of all
alone logs, saves and writes the result.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.errors import OutputError, UnfinishedError
from crane_x7_vla_rl.training.interrupt import Interrupt
from crane_x7_vla_rl.training.lerobot import output, run, saved, start
from crane_x7_vla_rl.training.lerobot.request import Wish
from crane_x7_vla_rl.training.lerobot.run import Call
from crane_x7_vla_rl.training.lerobot.saved import Saved
from crane_x7_vla_rl.training.lerobot.trainer import Trainer
from crane_x7_vla_rl.training.osmo import act, bags
from crane_x7_vla_rl.training.osmo.config import OsmoConfig

logger = logging.getLogger(__name__)

SCRIPT: Final = Path(__file__).with_name("trainer_process.py")
CHECKPOINT: Final = "checkpoint_{step:06d}"
CONFIG: Final = "config.yaml"
"""In a checkpoint's folder: the configuration that it was trained with."""
SHARED_MEMORY: Final = Path("/dev/shm")
KEPT: Final = ("train.log", run.METRICS)


def train(config: OsmoConfig) -> Path | None:
    """Train to the last step; return the folder of the result, None in a process but the first.

    Raises UnfinishedError where a later start resumes, TrainingError, DataError, PolicyLoadError.
    """
    first = settings.is_first_process()
    found = saved.newest(config.run)
    if found is not None and found.step >= config.training.steps:
        logger.info("%s has all %d steps already", config.run, config.training.steps)
        return deliver(config, found) if first else None
    data = bags.prepare(config.data, config.dataset)
    workers = act.workers(config, saved.read(data / layout.INFO), _shared_bytes())
    settled = start.settle(act.request(config, data, workers), Wish(("auto",)), first)
    if not first:
        settled = _elsewhere(settled)
    call = _call(config, settled)
    if not first:
        _follow(call)
        return None
    print(settled.plan.shown(), flush=True)
    if settled.found is not None:
        saved.prepare(settled.found.saved)
    newest = run.train(call)
    if newest is None or newest.step < config.training.steps:
        raise UnfinishedError(
            f"stopped at step {0 if newest is None else newest.step} of {config.training.steps};"
            " start again to resume"
        )
    return deliver(config, newest)


def _shared_bytes() -> int | None:
    """Return the free shared memory for one process of this machine; None if there is no limit."""
    if not SHARED_MEMORY.is_dir():
        return None
    return shutil.disk_usage(SHARED_MEMORY).free // settings.local_process_count()


def _elsewhere(settled: start.Settled) -> start.Settled:
    """Return the training with another folder, for a process that is not the first.

    It writes nothing, but LeRobot refuses a new training whose folder exists in any process.
    """
    if settled.found is not None:
        return settled
    folder = settled.plan.output_dir
    folder = folder.with_name(f"{folder.name}-unused-{settings.process_rank()}")
    options = {**settled.plan.options, "output_dir": str(folder)}
    return replace(settled, plan=replace(settled.plan, options=options, output_dir=folder))


def _call(config: OsmoConfig, settled: start.Settled) -> Call:
    """Return how LeRobot is started: as our script, and as one of several."""
    call = settled.call()
    extra = {"WANDB_TAGS": ",".join(config.wandb.tags)} if config.wandb.enabled else {}
    environment = {**call.environment, **extra}
    if settings.process_count() > 1:
        environment = settings.worker_environment(environment)
    if config.data.action == "delta":
        environment.pop("CRANE_X7_POLICY_IO", None)  # it would say joint_target
    return replace(
        call, command=settled.plan.command(settled.python, SCRIPT), environment=environment
    )


def _follow(call: Call) -> None:
    """Run a process of LeRobot that is not the first: it writes nothing. Raises its failure."""
    tail: deque[str] = deque(maxlen=run.TAIL)
    with Interrupt() as interrupt, Trainer(call.command, call.environment) as trainer:
        interrupt.training = True
        for text in trainer.lines():
            if interrupt.wanted and not trainer.asked:
                trainer.ask()
            if text:
                tail.append(output.COLOUR.sub("", text))
                logger.debug("LeRobot: %s", text)
        code = trainer.code()
        if trainer.asked:
            raise UnfinishedError("stopped by a signal; start again to resume")
    if code:
        raise output.failure(code, list(tail))


def deliver(config: OsmoConfig, checkpoint: Saved) -> Path:
    """Write the policy, the configuration and the logs into the result's folder; return it.

    Files are links to those of the run where the disk allows it. Raises OutputError.
    """
    name = CHECKPOINT.format(step=checkpoint.step)
    target, partial = config.result / name, config.result / f".{name}"
    try:
        config.result.mkdir(parents=True, exist_ok=True)
        for left in (partial, target):
            if left.exists():
                shutil.rmtree(left)
        shutil.copytree(checkpoint.model, partial / saved.MODEL, copy_function=_link)
        (partial / CONFIG).write_text(loader.to_yaml(_with_joints(config)), encoding="utf-8")
        partial.rename(target)
        for each in KEPT:
            if (config.run / each).is_file():
                shutil.copyfile(config.run / each, config.result / each)
    except OSError as error:
        raise OutputError(f"{config.result}: cannot be written: {shown(error)}") from error
    logger.info("trained: %s", target / saved.MODEL)
    return config.result


def _with_joints(config: OsmoConfig) -> OsmoConfig:
    """Return the configuration with the joints that the bags had."""
    info = saved.read(config.dataset / layout.INFO)
    names = info.get("features", {}).get(layout.ACTION, {}).get("names") or ()
    return replace(config, data=replace(config.data, joints=tuple(names)))


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
