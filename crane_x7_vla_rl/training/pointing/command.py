"""`point`: a small model with random weights → a policy that looks, and acts as it is told.

Model folder and demonstrations → a checkpoint with FiLM and OpenVLA-OFT's head, which `sft` can
continue. `sft` alone, on the same demonstrations, gave policies that never looked.
The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training import preflight
from crane_x7_vla_rl.training.errors import ConfigError, OutputError
from crane_x7_vla_rl.training.pointing.config import PointConfig, add_arguments, from_arguments

__all__ = ["add_arguments", "point", "run"]

PERIOD_ERROR_S: Final = 1e-3


def run(args: argparse.Namespace) -> int:
    """Teach; returns 0. Raises ConfigError, OutputError, ResumeError, PolicyLoadError, SimError."""
    config = from_arguments(args)
    print(f"{point(config)}: continue it with sft --model")
    return 0


def point(config: PointConfig) -> Path:
    """Write the checkpoint and return its folder; raises what `run` does."""
    output = config.output.expanduser().absolute()
    if output.exists():
        raise OutputError(f"{output} exists; point writes a new folder, choose another name")
    preflight.raise_all(preflight.output(output.parent))
    import torch

    from crane_x7_vla_rl.policies.about import DEMOS
    from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY
    from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
    from crane_x7_vla_rl.policies.openvla.weights import loading, oft_loading
    from crane_x7_vla_rl.robot import DOF
    from crane_x7_vla_rl.scenes import COLOUR_NAMES
    from crane_x7_vla_rl.training import arm_statistics
    from crane_x7_vla_rl.training.checkpoints import policy_files
    from crane_x7_vla_rl.training.checkpoints import save as checkpoint
    from crane_x7_vla_rl.training.pointing import views
    from crane_x7_vla_rl.training.pointing.kept import Kept

    loaded = loading.load(config.model)
    if loaded.layout.adapter is not None:
        raise ConfigError(f"{config.model} is a LoRA adapter: merge it first")
    model, spec = loaded.model, PolicySpec.of(loaded.layout)
    heads = _heads(loaded)
    if heads is None and config.updates == 0:
        raise ConfigError(
            f"--updates 0, but the towers of {config.model} have not learned where things are:"
            " point learns that first"
        )
    if spec.state_tokens:
        raise ConfigError(
            f"{config.model} reads joints as state tokens, but OpenVLA-OFT's head has its own"
            " way: build the model without --state-tokens"
        )
    file = None if config.statistics is None else Path(config.statistics).expanduser()
    model.norm_stats |= arm_statistics.complete(
        config.model, model.norm_stats, DEFAULT_UNNORM_KEY, file
    )
    codec = Codec.of(loaded.layout, model.norm_stats, DEFAULT_UNNORM_KEY, spec)
    torch.manual_seed(config.seed)
    is_new = heads is None
    if heads is None:
        heads = oft_loading.new_heads(model.config.text.hidden_size, DOF, DOF)
    scenes, size = views.scenes(COLOUR_NAMES, config.vary), model.config.image_size
    with _opened(config, codec, model) as demonstrations:
        kept = Kept.of(output, _decisive(config))
        drawn = views.draw(config.pictures, config.seed, scenes, spec.view, size)
        _teach(config, loaded, heads, is_new, codec, drawn, demonstrations, kept)

    def write(folder: Path) -> None:
        tensors, film = oft_loading.without_film(model.state_dict())
        policy_files.write_weights(folder, tensors, loaded.raw_config, model.norm_stats)
        about = None if config.demos is None else Path(config.demos).expanduser() / DEMOS
        around = policy_files.PolicyAssets.of(
            loaded.layout, model.norm_stats, model.crop, spec,
            about if about is not None and about.is_file() else None,
        )  # fmt: skip
        policy_files.write_assets(folder, around)
        parts = {
            oft_loading.ACTION_HEAD: heads[0].state_dict(),
            oft_loading.PROPRIO: heads[1].state_dict(), oft_loading.FILM: film,
        }  # fmt: skip
        for kind, found in parts.items():
            policy_files.write_tensors(folder / oft_loading.file_name(kind, 0), found)

    folder = checkpoint.write_whole(output, {"step": 0, "serial": 1}, write)
    kept.remove()
    return folder


def _decisive(config: PointConfig) -> dict[str, Any]:
    """Return what must be the same when a run continues."""
    free = ("output", "cache_mb")
    return {name: value for name, value in asdict(config).items() if name not in free}


@contextmanager
def _opened(config: PointConfig, codec: Any, model: Any) -> Iterator[Callable[[int], Any] | None]:
    """Yield what returns an update's batch of demonstrations, if there are any."""
    if config.demos is None:
        yield None
        return
    import torch

    from crane_x7_vla_rl.data.loader.batches import Batches, LoaderOptions
    from crane_x7_vla_rl.data.source import open_source
    from crane_x7_vla_rl.policies.openvla.image import cut_and_resize
    from crane_x7_vla_rl.training.pointing import moves

    spec, size, source = codec.inputs, model.config.image_size, open_source(config.demos)
    if abs(1 / source.fps - spec.period_s) > PERIOD_ERROR_S:
        raise ConfigError(
            f"{config.demos} has {source.fps:g} steps per second, but {config.model} predicts one"
            f" each {spec.period_s:g} s: record with --control-hz {1 / spec.period_s:g}"
        )
    options = LoaderOptions(
        chunk_steps=spec.chunk_steps,
        cache_bytes=config.cache_mb << 20,
        prepare=lambda image: cut_and_resize(image, spec.view, size),
    )
    action, state = _scales(model)
    with Batches(source, moves.SHOWN, config.seed, options=options) as batches:

        def of(update: int) -> Any:
            place = update * moves.SHOWN
            if batches.place != place:
                batches.load_state_dict({**batches.state_dict(), "place": place})
            batch = next(batches)
            return moves.Shown(
                batch.images,
                codec.prompts(batch.instructions, batch.state),
                torch.from_numpy(state.normalise(batch.state)).float(),
                torch.from_numpy(action.normalise(batch.actions)).float(),
            )

        yield of


def _scales(model: Any) -> tuple[Any, Any]:
    """Return the statistics of actions and of states."""
    from crane_x7_vla_rl.actions import find_statistics
    from crane_x7_vla_rl.policies.base import DEFAULT_UNNORM_KEY

    stats, key = model.norm_stats, DEFAULT_UNNORM_KEY
    return find_statistics(stats, key), find_statistics(stats, key, "proprio")


def _heads(loaded: Any) -> Any:
    """Return the heads of a checkpoint of `point`, and give the model its FiLM; None if it is new.

    Raises ConfigError for heads that do not belong to this arm, or towers that know no FiLM.
    """
    from crane_x7_vla_rl.policies.openvla.weights import oft_loading
    from crane_x7_vla_rl.robot import DOF

    if loaded.layout.heads() is None:
        return None
    oft_loading.load_film(loaded)
    head, proprio = oft_loading.load_heads(loaded)
    if (
        not loaded.model.vision_backbone.has_film
        or head.action_dim != DOF
        or proprio is None
        or proprio.fc1.in_features != DOF
    ):
        raise ConfigError(
            f"{loaded.layout.folder} has heads, but not those of point, with FiLM and {DOF} joints:"
            " point continues its own checkpoints, or starts from a model without heads"
        )
    return head, proprio


def _teach(
    config: PointConfig, loaded: Any, heads: Any, is_new: bool, codec: Any, drawn: Any,
    demonstrations: Any, kept: Any,
) -> None:  # fmt: skip
    """Teach the towers, then the language model and the heads."""
    import numpy as np

    from crane_x7_vla_rl.robot import DOF
    from crane_x7_vla_rl.scenes import COLOUR_NAMES, LIFT_WORDS, PLACE_WORDS
    from crane_x7_vla_rl.training.pointing import moves, towers
    from crane_x7_vla_rl.training.pointing.descent import Descent

    def prompts(words: str) -> list[Any]:
        texts = [words.format(colour) for colour in COLOUR_NAMES]
        found: list[Any] = codec.prompts(texts, np.zeros((len(texts), DOF)))
        return found

    model, spec = loaded.model, codec.inputs
    tasks = prompts(LIFT_WORDS), prompts(PLACE_WORDS)
    if is_new:
        towers.add_film(model, tasks, bool(loaded.raw_config.get("random_weights")))
    planned = moves.plan(drawn, spec.chunk_steps, spec.period_s, *_scales(model))
    if config.updates:
        stage = Descent("towers", config.updates, config.learning_rate)
        towers.teach(model, tasks, drawn, stage, config.seed, kept)
    words = moves.Words(*tasks)
    stage = Descent("moves", config.move_updates, config.learning_rate)
    moves.teach(
        model, heads, words, drawn, planned, stage, config.seed, demonstrations, is_new, kept
    )
