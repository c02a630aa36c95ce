"""Episodes of a loaded policy in simulation → the results for JSON, and the page of failures."""

from __future__ import annotations

from typing import Any

from crane_x7_vla_rl.training.evaluate import failures
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.report import summary
from crane_x7_vla_rl.training.evaluate.rollout import roll_out


def simulate(candidate: Candidate, config: EvaluateConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Return the results, in each process of `ranks` alike; raises SimError."""
    rollouts = roll_out(candidate, config, ranks)
    head = {"checkpoint": config.model.path, "policy": config.policy}
    results = head | summary(config, rollouts)
    if ranks.is_first:
        failures.write(config.output, results, rollouts.results)
    return results
