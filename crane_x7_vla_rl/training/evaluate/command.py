"""`evaluate`: how often a checkpoint succeeds in simulation, how far its actions are from others.

Flags → `results.json`, videos and, with `--data-root`, `offline.parquet`, in a folder of their own.
Seeds begin where those of demonstrations end, so that no scene is known from training. Every
episode that was begun counts, whenever it ends: the first N to finish would be the short ones. With
`--swapped` the policy is told the colour of another cube than the one whose success is counted: one
that reads its instruction then fails.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import fields, scenes
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.scenes import WorldConfig
from crane_x7_vla_rl.training.evaluate.config import RESULTS, EvaluateConfig

OUTPUTS: Final = Path("outputs/evaluate")
NOT_MODEL: Final = ("path", "token", "center_crop", "chunk_steps")
"""Options of a model that the checkpoint or the environment says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    parser.add_argument("--checkpoint", required=True, help="folder or Hub id")
    parser.add_argument("--output", type=Path, help=f"folder ({OUTPUTS}/…, named after the rest)")
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document"
    )
    fields.add_flags(parser, ModelOptions, NOT_MODEL, typed=True)
    fields.add_flags(parser, EvaluateConfig, ("model", "output", "world"), typed=True)
    scenes.add_arguments(parser, without=("control_hz",))


def read(args: argparse.Namespace) -> EvaluateConfig:
    """Return the configuration in parsed flags; raises ConfigError."""
    return fields.from_flags(
        EvaluateConfig,
        args,
        model=fields.from_flags(ModelOptions, args, path=args.checkpoint),
        output=args.output or OUTPUTS / _name(args),
        world=fields.from_flags(WorldConfig, args),
    )


def _name(args: argparse.Namespace) -> str:
    parts = Path(args.checkpoint).parts[-2:]
    how = f"t{args.temperature:g}" if args.temperature else "greedy"
    words = [*parts, args.task, how, *(["swapped"] if args.swapped else [])]
    return "-".join(word.replace("/", "-") for word in words)


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns 0. Raises PolicyLoadError, DataError and SimError."""
    config = read(args)
    results = evaluate(config)
    from crane_x7_vla_rl.training.evaluate.report import show

    if args.json:
        print(json.dumps(results | {"output": str(config.output)}))
        return 0
    show(results)
    print(f"written to {config.output}")
    return 0


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Return what `results.json` then holds; raises PolicyLoadError, DataError, SimError.

    A model whose answers are no numbers is no rate of 0: NotFiniteError is a PolicyLoadError.
    """
    from crane_x7_vla_rl.data.files import write_json
    from crane_x7_vla_rl.policies.load import load_policy
    from crane_x7_vla_rl.policies.openvla.policy import OpenVLAPolicy
    from crane_x7_vla_rl.training.evaluate.report import summary

    policy = load_policy("openvla", config.model)
    assert isinstance(policy, OpenVLAPolicy)
    config.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"checkpoint": config.model.path}
    if config.num_episodes:
        from crane_x7_vla_rl.training.evaluate.rollout import roll_out

        results |= summary(config, roll_out(policy, config))
    if config.data_root is not None:
        from crane_x7_vla_rl.training.evaluate.offline import compare

        results["offline"] = compare(policy, config)
    write_json(config.output / RESULTS, results)
    return results
