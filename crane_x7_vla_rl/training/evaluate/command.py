"""`evaluate`: a policy's success rate in simulation, its errors against recordings.

The policy is a checkpoint of OpenVLA or LeRobot, `color-servo`, or a policy server (`--policy
remote --server ws://…`).

Flags → `results.json`, videos and, with `--data-root`, `offline.parquet`, in a separate folder.
Seeds begin where those of demonstrations end, so that no scene is known from training. Every
started episode counts, whenever it ends: the first N to finish would be the short ones. With
`--swapped` the instruction names the colour of another cube than the one whose success is counted:
a policy that reads its instruction then fails. With `--sweep` it measures conditions, see sweep.py,
with `--wordings` other words for the same tasks, see wordings.py.

Task, scene, camera size, temperature and control rate come from the checkpoint's files (see
policies/about.py); a flag that contradicts them overrides them, with a warning.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import fields, scenes
from crane_x7_vla_rl.data import reading
from crane_x7_vla_rl.policies import about, cuda_devices
from crane_x7_vla_rl.policies.about import Chosen
from crane_x7_vla_rl.policies.base import AUTO, ModelOptions
from crane_x7_vla_rl.policies.kind import OPENVLA
from crane_x7_vla_rl.policies.load import POLICY_NAMES
from crane_x7_vla_rl.policies.preflight import model_problems
from crane_x7_vla_rl.reserved import SWEEPS
from crane_x7_vla_rl.scenes import Variation, WorldConfig
from crane_x7_vla_rl.timing import Timing
from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.evaluate import policies
from crane_x7_vla_rl.training.evaluate import ranks as processes
from crane_x7_vla_rl.training.evaluate.config import RESULTS, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import NAMES
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.types import WRIST

FOLDER: Final = "evaluate"
"""Folder of evaluations, below the output root."""
NOT_MODEL: Final = (
    "path", "token", "center_crop", "chunk_steps", "device", "speculation", "api_key",
    "jpeg_quality", "answer_timeout_s", "more_cameras",
)  # fmt: skip
"""Options of a model that the checkpoint or the environment sets, or that serve one robot only."""
NOT_FLAGS: Final = (
    "model", "output", "policy", "world", "sources", "offline_episodes", "reading", "sweep",
    "timing",
)  # fmt: skip
ANSWER_S: Final = 30.0
"""The simulation waits for a slow policy; a robot does not."""
ASKED: Final = (*about.SCENE, "temperature", "device")
"""What the checkpoint or the machine decides where no flag does."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `evaluate`."""
    parser.add_argument("--checkpoint", help="folder or Hub id")
    parser.add_argument(
        "--policy", choices=POLICY_NAMES, help="default: openvla or lerobot, as the checkpoint says"
    )
    parser.add_argument(
        "--offline-episodes", type=int, nargs="+", default=(), metavar="N",
        help="recorded episodes of which every frame is compared, in a parquet file per episode",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path,
        help=f"folder (<OUTPUT_ROOT>/{FOLDER}/…, named after checkpoint, task and temperature)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: CUDA if available)")
    fields.add_flags(parser, ModelOptions, NOT_MODEL, typed=True, asked=ASKED)
    fields.add_flags(parser, EvaluateConfig, NOT_FLAGS, typed=True)
    parser.add_argument(
        "--sweep", nargs="*", choices=[each.name for each in SWEEPS], metavar="CONDITION",
        help=f"measure success under changed conditions, too: all of them, or some of"
        f" {', '.join(each.name for each in SWEEPS)}; what is already in the folder is kept",
    )  # fmt: skip
    fields.add_flags(parser.add_argument_group("timing"), Timing, typed=True)
    reading.add_arguments(parser)
    scenes.add_arguments(parser, without=("control_hz",), asked=ASKED)
    scenes.add_variation_arguments(parser)


def read(args: argparse.Namespace) -> EvaluateConfig:
    """Return the configuration in parsed flags and the checkpoint's files.

    Logs a warning for flags that contradict the checkpoint. Raises ConfigError, PolicyLoadError.
    """
    chosen = _choose(args)
    policy = policies.name_of(args.checkpoint, args.policy)
    words = argparse.Namespace(**vars(args) | dict(chosen.values))
    return fields.from_flags(
        EvaluateConfig,
        words,
        model=fields.from_flags(
            ModelOptions,
            words,
            path=args.checkpoint,
            api_key=settings.policy_api_key(),
            more_cameras=(WRIST,),  # the simulation has a hand camera; a data set is looked at
        ),
        output=args.output or settings.output_root() / FOLDER / _name(words, policy),
        policy=policy,
        reading=reading.from_args(args),
        world=fields.from_flags(WorldConfig, words, variation=fields.from_flags(Variation, args)),
        timing=fields.from_flags(Timing, args),
        sweep=_sweep(args.sweep),
        sources=dict(chosen.sources),
    )


def _sweep(given: list[str] | None) -> tuple[str, ...]:
    """Return the names after --sweep: all of them if there are none."""
    return () if given is None else tuple(given or (each.name for each in SWEEPS))


def _choose(args: argparse.Namespace) -> Chosen:
    """Return the values that the checkpoint sets unless a flag does."""
    defaults = {
        each.name: each.default
        for each in (*fields_of(WorldConfig), *fields_of(ModelOptions))
        if each.name in ASKED
    } | {"device": AUTO}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if name in ASKED and value is not None
    }
    flags = {name: "--" + name.replace("_", "-") for name in ASKED}
    said = about.said_by(args.checkpoint) if args.checkpoint else {}
    chosen = about.choose(given, said, defaults, flags)
    if chosen.contradictions:
        logger.warning("%s", "; ".join(chosen.contradictions))
    return chosen


def _name(args: argparse.Namespace, policy: str) -> str:
    parts = Path(args.checkpoint).parts[-2:] if args.checkpoint else (policy,)
    how = f"t{args.temperature:g}" if args.temperature else "greedy"
    words = [*parts, args.task, how, *(["swapped"] if args.swapped else [])]
    words += ["sweep"] if args.sweep is not None else []
    words += ["wordings"] if args.wordings else []
    return "-".join(word.replace("/", "-") for word in words)


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns 0. Raises PolicyLoadError, DataError and SimError.

    Every process that torchrun started runs it; the first one writes and prints.
    """
    config = read(args)
    _check(config)
    ranks, device = processes.join(config.model.device)
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("%s", _summary(config))
    results = evaluate(config, ranks, device)
    if not ranks.is_first:
        return 0
    from crane_x7_vla_rl.training.evaluate.report import show

    if args.json:
        print(json.dumps(results | {"output": str(config.output)}))
        return 0
    if config.sweep:
        from crane_x7_vla_rl.training.evaluate import sweep_report

        sweep_report.show([sweep_report.Row(**row) for row in results["sweep"]])
    elif config.wordings:
        from crane_x7_vla_rl.training.evaluate import wordings_report

        wordings_report.show(results)
    else:
        show(results)
    print(f"written to {config.output}")
    return 0


def _summary(config: EvaluateConfig) -> str:
    """Log what is measured, and where each value comes from."""
    values = {**vars(config.world), **vars(config.model)}
    words = [
        f"{name} {about.shown(values[name])} ({source})" for name, source in config.sources.items()
        if name in ("task", "colours", "spawn_range_m", "image_size", "temperature", "device")
    ]  # fmt: skip
    return f"{config.model.path or config.policy}: {', '.join(words)}"


def _check(config: EvaluateConfig) -> None:
    """Raise all problems that are cheap to find, before anything is loaded."""
    from crane_x7_vla_rl.training import preflight

    checks = [
        preflight.packages(
            preflight.MODEL * (config.policy == OPENVLA)
            + preflight.SIMULATION * bool(config.num_episodes)
        ),
        iter(cuda_devices.problems(config.model.device, NAMES.device)),
        preflight.output(config.output),
    ]
    if config.num_episodes and config.world.render == "gpu":
        checks.append(preflight.gpu_render())
    if config.data_root is not None:
        checks.append(preflight.data(config.data_root, "--data-root"))
    preflight.raise_all(*checks, _check_model(config))


def _check_model(config: EvaluateConfig) -> Iterator[Exception]:
    """Find problems of the policy; the Hub is contacted only when this is read."""
    if config.policy == OPENVLA and config.model.path is not None:
        yield from model_problems(config.model, NAMES)
    else:
        yield from policies.problems(config)


def evaluate(
    config: EvaluateConfig, ranks: Ranks = ALONE, device: str | None = None
) -> dict[str, Any]:
    """Return what `results.json` then holds; raises PolicyLoadError, DataError, SimError.

    With `config.sweep` it is the rows of sweep.json, under `sweep`.

    `device`: where this process of `ranks` computes, by default the configured one.

    A model that outputs NaN is an error, not a rate of 0: NotFiniteError is a PolicyLoadError.
    """
    from crane_x7_vla_rl.data.files import write_json

    model = replace(
        config.model, device=device or config.model.device, seed=config.model.seed + ranks.rank,
        answer_timeout_s=ANSWER_S,
    )  # fmt: skip
    candidate = policies.open_policy(config, model)
    config.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"checkpoint": config.model.path, "policy": config.policy}
    if config.sweep:
        from crane_x7_vla_rl.training.evaluate import sweep

        return results | {"sweep": [asdict(row) for row in sweep.run(candidate, config, ranks)]}
    if config.wordings:
        from crane_x7_vla_rl.training.evaluate import wordings, wordings_report

        results = wordings.measure(candidate, config, ranks)
        if ranks.is_first:
            wordings_report.write(config.output, results)
    elif config.num_episodes:
        from crane_x7_vla_rl.training.evaluate.simulate import simulate

        results = simulate(candidate, config, ranks)
    if config.data_root is not None:
        from crane_x7_vla_rl.training.evaluate.offline import compare

        results["offline"] = compare(candidate.policy, config, ranks)
    if ranks.is_first:
        write_json(config.output / RESULTS, results)
    return results
