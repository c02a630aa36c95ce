"""Errors that end training early, one exit code per cause."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Exit codes of `training.cli`; 2, 3, 5, 7 and 8 mean what those of `crane-x7-remote` do."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    CONFIG = 3
    DATA = 4
    POLICY_LOAD = 5
    NOT_FINITE = 6
    SIMULATION = 7
    OUTPUT = 8
    LATER = 9
    NOT_LEARNING = 11
    MEMORY = 12
    UNFINISHED = 13


OF_LOWER_FLOORS: Final = {
    "crane_x7_vla_rl.data.episode.DataError": ExitCode.DATA,
    "crane_x7_vla_rl.policies.base.PolicyLoadError": ExitCode.POLICY_LOAD,
    "crane_x7_vla_rl.sim.errors.SimError": ExitCode.SIMULATION,
}
"""Exit codes of errors of other rooms, by full name: importing the simulation takes a second."""


def exit_code(error: BaseException) -> ExitCode | None:
    """Return the code of an expected failure, None for a bug in this program."""
    if isinstance(error, TrainingError):
        return error.exit_code
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((OF_LOWER_FLOORS[name] for name in names if name in OF_LOWER_FLOORS), None)


class TrainingError(Exception):
    """Base of all expected failures: the message says where, what came, and what to do next."""

    exit_code = ExitCode.UNEXPECTED


class ConfigError(TrainingError):
    """A configuration file, flag or override has an unknown key or an invalid value."""

    exit_code = ExitCode.CONFIG


class OutputError(TrainingError):
    """The output folder cannot be used: it exists, is full, or may not be written."""

    exit_code = ExitCode.OUTPUT


class ResumeError(TrainingError):
    """A checkpoint cannot be resumed: it is incomplete, or belongs to another model."""

    exit_code = ExitCode.CONFIG


class NotFiniteError(TrainingError):
    """Loss or gradient is NaN or infinite; names step, episodes and the last checkpoint."""

    exit_code = ExitCode.NOT_FINITE


class SpoiltError(NotFiniteError):
    """The policy outputs NaN or infinity: its weights are not saved."""


class PpoError(TrainingError):
    """Reinforcement learning cannot work as configured: no gradient, or an inconsistent buffer."""

    exit_code = ExitCode.NOT_LEARNING


class OutOfMemoryError(TrainingError):
    """Out of memory; names the step, the memory it needed and the flag to lower."""

    exit_code = ExitCode.MEMORY


class UnfinishedError(TrainingError):
    """A training ended early, and nothing is wrong with it: started again, it resumes."""

    exit_code = ExitCode.UNFINISHED


class PackageError(TrainingError):
    """Packages of an extra are not installed."""

    exit_code = ExitCode.USAGE


class GpuSimulationError(TrainingError):
    """This machine cannot run a simulation on its GPU; names what is missing."""

    exit_code = ExitCode.SIMULATION


class PreflightError(TrainingError):
    """Several problems; nothing was loaded."""

    def __init__(self, problems: Sequence[str], code: ExitCode) -> None:
        """`code` is the exit code, usually of the first problem."""
        lines = "".join(f"\n  - {text}" for text in problems)
        super().__init__(f"{len(problems)} problems; nothing was loaded:{lines}")
        self.exit_code = code


class LaterError(TrainingError):
    """A feature that is not implemented yet; see the CHANGELOG."""

    exit_code = ExitCode.LATER
