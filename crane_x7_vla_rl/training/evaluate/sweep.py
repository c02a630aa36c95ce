"""`evaluate --sweep`: success under one changed condition at a time, on the same scenes.

A loaded policy, `EvaluateConfig` → `Row`s, and sweep.json, sweep.md and sweep.png in the output
folder. The baseline and each condition have a folder below `conditions`, with results.json and
failures.html. A condition whose results are there, with the same settings and weights, is not
measured again, so a killed sweep continues with what is missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.files import read_json, write_json
from crane_x7_vla_rl.reserved import SWEEPS, Sweep
from crane_x7_vla_rl.timing import FINE_HZ
from crane_x7_vla_rl.training.evaluate import sweep_report
from crane_x7_vla_rl.training.evaluate.config import RESULTS, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.simulate import simulate
from crane_x7_vla_rl.training.evaluate.sweep_report import Row

CONDITIONS: Final = "conditions"
IDENTITY: Final = "measured"
"""Key in a condition's results.json: what it was measured with."""
OF_THE_MACHINE: Final = ("token", "api_key", "proxy", "device", "lerobot_venv")
"""Options of a model that say nothing about what is measured."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Condition:
    """One thing to measure."""

    config: EvaluateConfig
    sweep: Sweep | None = None
    """None for the baseline."""
    value: float | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "baseline" if self.sweep is None else f"{self.sweep.name}-{self.value:g}"


def conditions(config: EvaluateConfig) -> list[Condition]:
    """Return the baseline, then every value of the sweeps in `config.sweep`.

    All of them are simulated in steps of at most 50 ms, so that they differ in nothing else.
    """
    timing = replace(config.timing, step_hz=max(config.timing.step_hz, FINE_HZ))
    base = replace(config, timing=timing, videos=0)
    found = [Condition(base)]
    found += [
        Condition(_applied(base, sweep, value), sweep, value)
        for sweep in SWEEPS
        if sweep.name in config.sweep
        for value in sweep.values
    ]
    folder = config.output / CONDITIONS
    return [replace(each, config=replace(each.config, output=folder / each.name)) for each in found]


def _applied(config: EvaluateConfig, sweep: Sweep, value: float) -> EvaluateConfig:
    section, _, name = sweep.option.partition(".")
    change: dict[str, Any] = {name: value}
    if section == "timing":
        return replace(config, timing=replace(config.timing, **change))
    variation = replace(config.world.variation, **change)
    return replace(config, world=replace(config.world, variation=variation))


def run(candidate: Candidate, config: EvaluateConfig, ranks: Ranks = ALONE) -> tuple[Row, ...]:
    """Measure what is missing, write the sheet, and return its rows; raises SimError."""
    rows: list[Row] = []
    todo = conditions(config)
    weights = _weights(config)
    for number, condition in enumerate(todo, start=1):
        results = _finished(condition, weights)
        word = "measured earlier" if results is not None else "measuring"
        logger.info("%s, %d of %d: %s", condition.name, number, len(todo), word)
        if results is None:
            results = simulate(candidate, condition.config, ranks)
            if ranks.is_first:
                results |= {IDENTITY: _identity(condition.config, weights)}
                write_json(condition.config.output / RESULTS, results)
        rows.append(_row(condition, results["success"], rows[0] if rows else None))
        if ranks.is_first:
            sweep_report.write(config.output, rows, _lead(config, results, len(todo)))
    if ranks.is_first:
        sweep_report.plot(config.output, rows)
    return tuple(rows)


def _row(condition: Condition, success: Mapping[str, Any], baseline: Row | None) -> Row:
    base_rate = success["rate"] if baseline is None else baseline.rate
    ratio = success["rate"] / base_rate if base_rate else None
    sweep, value = condition.sweep, condition.value
    target = None if sweep is None else dict(sweep.targets).get(value or 0.0)
    return Row(
        name="baseline" if sweep is None else sweep.name,
        about="nothing changed" if sweep is None else sweep.about,
        value=value,
        unit="" if sweep is None else sweep.unit,
        baseline=base_rate,
        ratio=ratio,
        target=target,
        met=None if target is None else ratio is not None and ratio >= target,
        **success,
    )


def _lead(config: EvaluateConfig, results: Mapping[str, Any], count: int) -> str:
    """Return the sentence above the sheet."""
    how = f"temperature {config.model.temperature:g}" if config.model.temperature else "greedy"
    source = Path(config.model.path).name if config.model.path else config.policy
    return (
        f"`{source}`, {config.world.task}, {how}: {config.num_episodes} unseen scenes per row, the"
        f" same ones in each (seeds from {config.first_seed}); {count - 1} conditions, one changed"
        f" at a time; {results['world']['control_hz']} steps of the simulation per second."
    )


def _identity(config: EvaluateConfig, weights: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return what decides the outcome, for JSON."""
    model = {key: value for key, value in vars(config.model).items() if key not in OF_THE_MACHINE}
    identity = {
        "policy": config.policy,
        "model": model,
        "weights": weights,
        "world": config.world.as_dict(),
        "timing": asdict(config.timing),
        "episodes": config.num_episodes,
        "first_seed": config.first_seed,
        "swapped": config.swapped,
        "execute_steps": config.execute_steps,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def _weights(config: EvaluateConfig) -> dict[str, list[int]]:
    """Return size and time of change of each file in the checkpoint's folder."""
    folder = Path(config.model.path or "")
    if not config.model.path or not folder.is_dir():
        return {}
    return dict(_stamps(folder))


def _stamps(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            found = path.stat()
            yield path.name, [found.st_size, found.st_mtime_ns]


def _finished(condition: Condition, weights: Mapping[str, list[int]]) -> dict[str, Any] | None:
    """Return the results of an earlier run with the same settings; None without them."""
    path = condition.config.output / RESULTS
    if not path.exists():
        return None
    try:
        results = read_json(path)
    except DataError as error:
        logger.warning("%s; measured again", error)
        return None
    if results.get(IDENTITY) != _identity(condition.config, weights):
        logger.info("%s: measured with other settings or weights; measured again", path)
        return None
    return results
