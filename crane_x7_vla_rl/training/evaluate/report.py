"""Results of episodes → success rates with their confidence, as numbers for files and as text.

After 200 episodes a rate is uncertain by about 7 points in either direction; a rate without its
interval means little.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from crane_x7_vla_rl import tables
from crane_x7_vla_rl.training.evaluate import failures

if TYPE_CHECKING:
    from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
    from crane_x7_vla_rl.training.evaluate.rollout import Result, Rollouts

Z_95: Final = 1.959964
"""Standard deviations of the normal distribution that contain 95 %."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson 1927, without continuity correction).

    Unlike the usual ± it stays inside 0…1 and is accurate near both ends.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials are not a rate")
    rate, weight = successes / trials, Z_95**2 / trials
    centre = (rate + weight / 2) / (1 + weight)
    spread = Z_95 * ((rate * (1 - rate) + weight / 4) / trials) ** 0.5 / (1 + weight)
    return (
        centre - spread if successes else 0.0,
        centre + spread if successes < trials else 1.0,
    )


def rate(results: Sequence[Result]) -> dict[str, Any]:
    """Return the success rate with its interval, for JSON."""
    successes = sum(result.success for result in results)
    low, high = wilson(successes, len(results))
    return {
        "rate": successes / len(results),
        "low": low,
        "high": high,
        "successes": successes,
        "episodes": len(results),
    }


def summary(config: EvaluateConfig, rollouts: Rollouts) -> dict[str, Any]:
    """Return what results.json holds about the simulation."""
    results = rollouts.results
    told = sorted({result.instruction for result in results})
    steps = [result.steps for result in results if result.success]
    total = sum(result.steps for result in results)
    return {
        "task": config.world.task,
        "world": config.world.as_dict() | {"control_hz": rollouts.control_hz},
        "temperature": config.model.temperature,
        "device": config.model.device,
        "render": config.world.render,
        "sources": dict(config.sources),
        "seed": config.model.seed,
        "swapped": config.swapped,
        "execute_steps": config.execute_steps,
        "timing": asdict(config.timing),
        "first_seed": config.first_seed,
        "success": rate(results),
        "instructions": {
            text: rate([result for result in results if result.instruction == text])
            for text in told
        },
        "seconds_to_success": float(np.mean(steps)) / rollouts.control_hz if steps else None,
        "wall_s": rollouts.wall_s,
        "policy_s": rollouts.policy_s,
        "control_steps_per_s": total / rollouts.wall_s,
        "failed_at": dict(Counter(each.phase for each in results if not each.success)),
        "episodes": [_episode(result) for result in results],
    }


def _episode(result: Result) -> dict[str, Any]:
    """Return an episode for JSON, without its pictures."""
    values = asdict(replace(result, pictures=())) | {"lifted": list(result.lifted)}
    del values["pictures"]
    return values


def describe(results: Mapping[str, Any]) -> str:
    """Return the results as lines of text."""
    lines = []
    if "success" in results:
        how = f"temperature {results['temperature']:g}" if results["temperature"] else "greedy"
        swapped = ", instructions swapped" if results["swapped"] else ""
        lines.append(f"{results['task']} ({how}{swapped}): {_percent(results['success'])}")
        for text, one in results["instructions"].items():
            lines.append(f"  {text}: {_percent(one)}")
        lines += _failed(results)
    if "offline" in results:
        offline = results["offline"]
        errors = ", ".join(f"{value:.3f}" for value in offline["mean_error_rad"].values())
        lines.append(f"{offline['frames']} recorded frames: mean error per joint {errors} rad")
        lines.append(
            f"  one prediction takes {offline['latency_ms']['p50']:.1f} ms,"
            f" {offline['latency_ms']['p95']:.1f} ms at the 95th percentile"
        )
    return "\n".join(lines)


def _failed(results: Mapping[str, Any]) -> list[str]:
    """Return a line that says where episodes failed, if any did."""
    found = [f"{count} at {phase}" for phase, count in results["failed_at"].items()]
    return [f"  failed: {', '.join(found)}; see {failures.FILE}"] if found else []


def show(results: Mapping[str, Any]) -> None:
    """Print the rates: a table where a person looks, else the lines of `describe`."""
    if not sys.stdout.isatty() or "success" not in results:
        print(describe(results))
        return
    columns = ("instruction", "success", "95 % interval", "episodes")
    rates = {"all": results["success"]} | results["instructions"]
    rows = [
        (text, f"{one['rate']:.1%}", f"{one['low']:.1%} to {one['high']:.1%}",
         f"{one['successes']} of {one['episodes']}")
        for text, one in rates.items()
    ]  # fmt: skip
    others = describe({name: value for name, value in results.items() if name != "success"})
    tables.show(results["task"], columns, rows, right=columns[1:])
    for line in _failed(results):
        print(line)
    print(others, end="\n" if others else "")


def _percent(one: Mapping[str, Any]) -> str:
    return (
        f"{one['rate']:.1%} ({one['low']:.1%} to {one['high']:.1%}),"
        f" {one['successes']} of {one['episodes']} episodes"
    )
