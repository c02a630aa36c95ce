"""Results of a trial. Episodes ↔ trial.json, and the rate of success with its interval.

The file is replaced as a whole after each episode, so that a killed trial loses the running one
alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from crane_x7_remote.errors import OutputError, SettingsError
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json, write_json
from crane_x7_vla_rl.file_errors import why

FILE: Final = "trial.json"
FORMAT: Final = 1
Z_95: Final = 1.959964
"""Quantile of the normal distribution for 95 %."""

Result = Literal["success", "failure", "skipped"]
RESULTS: Final[tuple[Result, ...]] = get_args(Result)


@dataclass(frozen=True)
class Intervention:
    """A person drove."""

    kind: Literal["leader", "hand"]
    at_s: float
    """Since the policy first drove in this episode."""
    seconds: float


@dataclass(frozen=True)
class Episode:
    """One judged attempt."""

    number: int
    """From 1."""
    result: Result
    reason: str
    """Who or what decided it: key, judge, timeout."""
    seconds: float
    """While the policy drove, without pauses and interventions."""
    total_s: float
    """From the start of the policy to the judgement."""
    started: str
    """Local time with its zone, ISO 8601."""
    holds: dict[str, int] = field(default_factory=dict)
    """Reason → ticks, while the policy should have driven."""
    interventions: tuple[Intervention, ...] = ()
    retries: int = 0
    """Attempts before this one that were repeated."""
    notes: tuple[str, ...] = ()
    frames: int = 0
    """Images kept of a failure, see page.py."""
    seed: int | None = None
    """Of the simulated scene; None: a person, or nobody, arranged it."""

    @property
    def counts(self) -> bool:
        """Whether it is part of the rate."""
        return self.result != "skipped"

    @property
    def is_success(self) -> bool:
        """Whether the policy succeeded without help."""
        return self.result == "success" and not self.interventions


@dataclass(frozen=True)
class TrialPlan:
    """What is tried; a resumed trial must be the same."""

    task: str
    policy: str
    model: str | None
    timeout_s: float
    judge: str
    episodes: int
    first_seed: int | None = None
    """Of the simulated scenes: episode n has first_seed + n − 1. None: a person arranges them; with
    the simulation as judge, every episode has the same scene."""

    def seed(self, number: int) -> int | None:
        """Return the seed of episode `number`, from 1."""
        return None if self.first_seed is None else self.first_seed + number - 1

    def differences(self, other: TrialPlan) -> list[str]:
        """Return a line for each value that makes results incomparable."""
        ours, theirs = asdict(self), asdict(other)
        return [
            f"{name} is {ours[name]!r}, expected {theirs[name]!r}"
            for name in ours
            if name != "episodes" and ours[name] != theirs[name]
        ]


@dataclass(frozen=True)
class Rate:
    """The rate of success and its 95 % interval after Wilson."""

    successes: int
    counted: int

    @property
    def share(self) -> float | None:
        """Successes per counted episode; None without one."""
        return self.successes / self.counted if self.counted else None

    def interval(self) -> tuple[float, float]:
        """Return the lower and the upper end; Wilson 1927, equation 4. (0, 1) without data."""
        n = self.counted
        if n == 0:
            return 0.0, 1.0
        share, z2 = self.successes / n, Z_95**2
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        lower = 0.0 if self.successes == 0 else max(centre - half, 0.0)
        return lower, 1.0 if self.successes == n else min(centre + half, 1.0)

    def in_words(self) -> str:
        """Return it as a person reads it."""
        if self.share is None:
            return "no episode was judged"
        lower, upper = self.interval()
        return (
            f"{self.successes} of {self.counted} succeeded, {self.share:.0%}"
            f" (95 % interval {lower:.0%} to {upper:.0%})"
        )


def rate(episodes: list[Episode]) -> Rate:
    """Return the rate of success without help."""
    counted = [each for each in episodes if each.counts]
    return Rate(sum(each.is_success for each in counted), len(counted))


def save(folder: Path, plan: TrialPlan, episodes: list[Episode]) -> None:
    """Replace trial.json; raises OutputError."""
    found = rate(episodes)
    lower, upper = found.interval()
    content = {
        "format": FORMAT,
        "plan": asdict(plan),
        "episodes": [asdict(each) for each in episodes],
        "summary": {
            "successes": found.successes,
            "counted": found.counted,
            "rate": found.share,
            "interval_95": [lower, upper],
            "with_help": sum(each.result == "success" for each in episodes) - found.successes,
            "skipped": len(episodes) - found.counted,
            "is_complete": len(episodes) >= plan.episodes,
        },
    }
    try:
        write_json(folder / FILE, content)
    except OSError as error:
        raise OutputError(f"{folder / FILE} cannot be written: {why(error)}") from error


def load(folder: Path) -> tuple[TrialPlan, list[Episode]]:
    """Return plan and episodes of trial.json; raises SettingsError that names what is wrong."""
    path = folder / FILE
    try:
        content = read_json(path)
    except DataError as error:
        raise SettingsError(f"--resume: {error}; expected the folder of a trial") from error
    if content.get("format") != FORMAT:
        raise SettingsError(
            f"--resume {path}: format is {content.get('format')!r}, expected {FORMAT}"
        )
    try:
        plan = TrialPlan(**content["plan"])
        episodes = [_episode(values) for values in content["episodes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"--resume {path}: not a trial: {error}") from error
    if [each.number for each in episodes] != list(range(1, len(episodes) + 1)):
        raise SettingsError(f"--resume {path}: episodes are not numbered 1, 2, …")
    return plan, episodes


def _episode(values: dict[str, Any]) -> Episode:
    if values["result"] not in RESULTS:
        raise ValueError(f"result is {values['result']!r}, expected one of {', '.join(RESULTS)}")
    helps = tuple(Intervention(**each) for each in values["interventions"])
    return Episode(**{**values, "interventions": helps, "notes": tuple(values["notes"])})
