"""Cheap checks of a run, before torch is imported or weights are fetched.

A configuration → nothing, or one error that lists every problem with its cure. A single problem is
raised unchanged; of several, the first one's exit code is used. Problems of weights, data or a
simulation are found where those are opened.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from crane_x7_vla_rl import gpu_simulation
from crane_x7_vla_rl.data import source
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.policies import cuda_devices, hub
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY, PolicyLoadError
from crane_x7_vla_rl.policies.openvla.weights import layout as layouts
from crane_x7_vla_rl.policies.openvla.weights.layout import Layout
from crane_x7_vla_rl.policies.preflight import missing_packages
from crane_x7_vla_rl.training import arm_statistics, settings
from crane_x7_vla_rl.training.config.run_config import RunConfig
from crane_x7_vla_rl.training.errors import (
    ConfigError,
    ExitCode,
    GpuSimulationError,
    OutputError,
    PackageError,
    PreflightError,
    exit_code,
)

MODEL: Final = ("torch", "accelerate", "safetensors", "tokenizers", "huggingface_hub")
SIMULATION: Final = ("mani_skill", "sapien", "gymnasium")
LEAST_BYTES: Final = 50_000_000
"""Disk space that the smallest run needs."""


def raise_all(*checks: Iterator[Exception]) -> None:
    """Raise what the checks find: a single problem itself, several as a PreflightError.

    Checks that contact the Hub come last: they run only if nothing else is wrong.
    """
    found: list[Exception] = []
    for check in checks:
        with hub.hurried() if found else nullcontext():
            found += _found(check)
    if len(found) == 1:
        raise found[0]
    if found:
        raise PreflightError(list(map(str, found)), exit_code(found[0]) or ExitCode.UNEXPECTED)


def _found(check: Iterator[Exception]) -> Iterator[Exception]:
    try:
        yield from check
    except ModuleNotFoundError:
        return  # `packages` lists it
    except Exception as error:
        if exit_code(error) is None:
            raise
        yield error


def packages(names: tuple[str, ...]) -> Iterator[Exception]:
    """Find packages that are not installed."""
    if missing := missing_packages(names):
        yield PackageError(
            f"missing packages: {', '.join(missing)}; pip install 'crane-x7-remote[train,sim]'"
        )


def run(config: RunConfig) -> Iterator[Exception]:
    """Find problems in the settings that both trainers share."""
    logs = config.logging
    extra = ("wandb",) * logs.use_wandb + ("tensorboard",) * logs.tensorboard
    yield from packages((*MODEL, *("peft",) * config.lora.enabled, *extra))
    if config.training.device == "cuda":
        for error in cuda_devices.problems("cuda", "--device"):
            yield ConfigError(str(error))
    yield from output(config.output_dir)
    if logs.use_wandb and (problem := settings.wandb_login_problem()):
        yield ConfigError(problem)


def output(folder: Path) -> Iterator[Exception]:
    """Find why `folder` cannot be created or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        where = str(folder) if there == folder else f"{folder}: {there}"
        yield OutputError(f"{where} is a file; choose another output folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield OutputError(
            f"{folder}: no permission to write in {there}; mount a volume there, or choose another"
            " --output-dir"
        )
    elif (free := shutil.disk_usage(there).free) < LEAST_BYTES:
        yield OutputError(
            f"{folder}: its disk has {free / 1e6:.0f} MB free, expected at least"
            f" {LEAST_BYTES / 1e6:.0f} MB; free some space, or choose another --output-dir"
        )


def model(path: str, flag: str) -> Iterator[Exception]:
    """Find why the start model cannot be loaded; its weights are not fetched."""
    try:
        seen = layouts.peek(path)
    except PolicyLoadError as error:
        yield type(error)(f"{flag}: {error}")
        return
    if (other := layouts.other_architecture(seen)) is not None:
        yield type(other)(f"{flag}: {other}")
    elif seen.first(layouts.TOKENIZER) is None:
        yield layouts.no_tokenizer(seen)


def statistics(path: str, key: str, file: str | None) -> Iterator[Exception]:
    """Find why a run from the model at `path` has no statistics to scale its actions."""
    if file is not None:
        arm_statistics.read(Path(file).expanduser(), key)
    elif key != DEFAULT_UNNORM_KEY and (seen := _peeked(path)) is not None:
        arm_statistics.complete(path, layouts.raw_statistics(seen), key)
    yield from ()


def _peeked(path: str) -> Layout | None:
    try:
        return layouts.peek(path)
    except PolicyLoadError:
        return None  # `model` says so


def gpu_backend() -> Iterator[Exception]:
    """Find what simulation on a GPU lacks; SAPIEN is imported only if there is a GPU."""
    if cuda_devices.count() == 0:
        machine = gpu_simulation.without_gpu()
    else:
        from crane_x7_vla_rl.sim.vector.maniskill_gpu import this_machine

        machine = this_machine()
    for problem in machine.problems():
        yield GpuSimulationError(problem)


def gpu_render() -> Iterator[Exception]:
    """Find whether there is no GPU to draw on; whether SAPIEN can use it, SAPIEN says later."""
    if cuda_devices.count() == 0:
        yield GpuSimulationError(
            "--render gpu: this machine has no CUDA GPU to draw on; use --render auto"
        )


def data(root: str, flag: str) -> Iterator[Exception]:
    """Find whether a data set's folder is missing, or holds no data set."""
    try:
        source.find_reader(root)
    except DataError as error:
        yield DataError(f"{flag}: {error}")
