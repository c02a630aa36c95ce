"""The folders of demonstrations. Episodes by seed → successes, failures and `demos.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from crane_x7_vla_rl.data.demos.config import (
    CONFIG,
    FAILURES,
    PATIENCE,
    DemosConfig,
    DemosReport,
)
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import read_json, write_json
from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.scenes import EVALUATION_SEED


class DemoFiles:
    """Stores episodes by rising seed; after a kill it knows which seeds remain."""

    def __init__(self, config: DemosConfig, *, resume: bool) -> None:
        """Raises DataError for an existing data set, unless `resume` is set and it fits."""
        config = replace(config, output=config.output.expanduser().absolute())
        self._config = config
        self._resume = resume
        _check_seed(config.first_seed)
        if resume:
            _check_content(config)
        self._good = self._writer(config.output)
        self._bad: LeRobotWriter | None = None
        if self._failures_folder.exists():
            self._bad = self._writer(self._failures_folder)
        write_json(config.output / CONFIG, config.content())

    @property
    def _failures_folder(self) -> Path:
        return self._config.output.with_name(self._config.output.name + FAILURES)

    def _writer(self, folder: Path) -> LeRobotWriter:
        world = self._config.world
        return LeRobotWriter(folder, world.control_hz, world.image_size, resume=self._resume)

    @property
    def successes(self) -> int:
        """Episodes in the data set."""
        return len(self._good)

    @property
    def report(self) -> DemosReport:
        """The episodes so far."""
        return DemosReport(len(self._good), 0 if self._bad is None else len(self._bad))

    def next_seed(self) -> int:
        """The first seed without an attempt; a chain that a kill cut short stays short."""
        seeds = self._good.seeds | (frozenset() if self._bad is None else self._bad.seeds)
        return max(seeds, default=self._config.first_seed - 1) + 1

    def add(self, seed: int, episode: Episode) -> None:
        """Write the episode to its data set; raises DataError if most fail."""
        _check_seed(seed)
        if episode.success:
            self._good.add(episode)
            return
        if self._bad is None:
            self._bad = self._writer(self._failures_folder)
        self._bad.add(episode)
        report = self.report
        if report.failures > report.successes + PATIENCE:
            self._bad.close()  # readable, to look for the cause
            raise DataError(
                f"{self._config.output}: the expert failed in {report.failures} of"
                f" {report.failures + report.successes} scenes, most recently seed {seed}; use less"
                f" noise. The failures are in {self._failures_folder}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in (self._good, self._bad):
            if writer is not None:
                writer.__exit__(kind, error, trace)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < EVALUATION_SEED:
        raise DataError(
            f"seed {seed} is not allowed for demonstrations: expected 0 to {EVALUATION_SEED - 1};"
            " seeds above are reserved for evaluation"
        )


def _check_content(config: DemosConfig) -> None:
    """Raise DataError unless the data set to resume was recorded with this configuration."""
    path = config.output / CONFIG
    if not path.exists():
        return
    # Older data sets have no values of later options.
    before, now = DemosConfig(config.output).content() | read_json(path), config.content()
    changed = [
        f"{key} was {quoted(before.get(key))}, now {quoted(now[key])}"
        for key in now
        if before.get(key) != now[key]
    ]
    if changed:
        raise DataError(
            f"{path}: the data set was recorded with other options: {'; '.join(changed)}. Resume it"
            " with the old options, or use another folder"
        )
