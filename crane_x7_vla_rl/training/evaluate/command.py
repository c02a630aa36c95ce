"""`evaluate`: how often a checkpoint succeeds in simulation, how far its actions are from others.

Flags → `results.json`, videos and, with `--data-root`, `offline.parquet`, in a folder of their own.
Seeds begin where those of demonstrations end, so that no scene is known from training. Every
episode that was begun counts, whenever it ends: the first N to finish would be the short ones. With
`--swapped` the policy is told the colour of another cube than the one whose success is counted: one
that reads its instruction then fails.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import scenes
from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY, ModelOptions
from crane_x7_vla_rl.scenes import EVALUATION_SEED
from crane_x7_vla_rl.training.evaluate.config import RESULTS, EvaluateConfig

OUTPUTS: Final = Path("outputs/evaluate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder or Hub id")
    add("--num-episodes", type=int, default=200, metavar="N", help="in simulation (%(default)s)")
    add("--temperature", type=scenes.amount, default=0.0, help="0 is greedy (%(default)s)")
    add("--swapped", action="store_true", help="name another cube than the one that counts")
    add("--first-seed", type=int, default=EVALUATION_SEED, help="of the scenes (%(default)s)")
    add("--seed", type=int, default=0, help="of sampled tokens (%(default)s)")
    add("--execute-steps", type=scenes.count, help="of each chunk, before the next look (all)")
    add("--processes", type=scenes.count, help="simulations beside the policy (one per core)")
    add("--slots", type=scenes.count, default=8, help="scenes per process (%(default)s)")
    add("--videos", type=int, default=4, metavar="N", help="of the first episodes (%(default)s)")
    add("--data-root", metavar="PATH", help="compare with these recorded episodes, too")
    add("--offline-frames", type=scenes.count, default=200, help="of them (%(default)s)")
    add("--output", type=Path, help=f"folder ({OUTPUTS}/…, named after the rest)")
    add("--device", default="cpu", help="torch device of the policy (%(default)s)")
    add("--unnorm-key", default=DEFAULT_UNNORM_KEY, help="of the statistics (%(default)s)")
    scenes.add_arguments(parser, without=("control_hz",))


def read(args: argparse.Namespace) -> EvaluateConfig:
    """Return the configuration in parsed flags; raises ConfigError."""
    model = ModelOptions(
        path=args.checkpoint,
        device=args.device,
        unnorm_key=args.unnorm_key,
        temperature=args.temperature,
        seed=args.seed,
    )
    return EvaluateConfig(
        model=model,
        output=args.output or OUTPUTS / _name(args),
        world=scenes.from_arguments(args),
        num_episodes=args.num_episodes,
        first_seed=args.first_seed,
        swapped=args.swapped,
        execute_steps=args.execute_steps,
        processes=args.processes or 0,
        slots=args.slots,
        videos=args.videos,
        data_root=args.data_root,
        offline_frames=args.offline_frames,
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
    from crane_x7_vla_rl.training.evaluate.report import describe

    print(describe(results))
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
