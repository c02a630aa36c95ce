"""`merge`: an adapter and its base become one whole model that needs neither.

Checkpoint folder or Hub id → a folder with `model.safetensors`, `config.json` and the other files
that a policy reads, whole or not at all.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `merge`."""
    parser.add_argument("checkpoint", help="folder or Hub id of an adapter, or of any model")
    parser.add_argument("output", type=Path, help="new folder for the model; must not exist")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="bf16", help="their data type (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the merged model; raises PolicyLoadError and OutputError."""
    _check(args.checkpoint, args.output)
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    folder = merge(args.checkpoint, args.output, dtype)
    print(f"{folder}: one model; set VLA_MODEL_PATH to it")
    return 0


def _check(checkpoint: str, output: Path) -> None:
    """Refuse before torch is imported and weights are read what is cheap to refuse."""
    from crane_x7_vla_rl.policies.openvla.weights import layout

    _refuse_existing(output.expanduser().absolute())
    layout.peek(checkpoint)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise OutputError(f"{output} exists; merge writes a new folder, choose another name")


def merge(path_or_repo_id: str, output: Path, dtype: object) -> Path:
    """Write the model at `path_or_repo_id`, adapters added to the weights, in the torch `dtype`.

    The other files that a policy reads are copied, OpenVLA-OFT's heads included. Sums are computed
    in float32. Raises OutputError where `output` exists or cannot be written, and PolicyLoadError;
    NotFiniteError is one, for weights that are NaN or infinite in `dtype`.
    """
    import torch

    from crane_x7_vla_rl.policies.about import DEMOS
    from crane_x7_vla_rl.policies.openvla.weights import loading, oft_loading
    from crane_x7_vla_rl.policies.openvla.weights.layout import (
        POLICY,
        PREPROCESSOR,
        STATISTICS,
        TOKENIZER,
        head_files,
    )
    from crane_x7_vla_rl.policies.skills import SKILLS
    from crane_x7_vla_rl.training.checkpoints import policy_files

    assert isinstance(dtype, torch.dtype)
    output = output.expanduser().absolute()
    _refuse_existing(output)
    loaded = loading.load(path_or_repo_id, dtype=dtype)
    oft_loading.load_film(loaded)

    def write(folder: Path) -> None:
        statistics = loaded.model.norm_stats
        tensors, film = oft_loading.without_film(loaded.model.state_dict())
        policy_files.write_weights(folder, tensors, loaded.raw_config, statistics)
        policy_files.write_json(folder / STATISTICS, statistics)
        for name in (TOKENIZER, PREPROCESSOR, POLICY, SKILLS, DEMOS, checkpoint.CONFIG):
            if (source := loaded.layout.first(name)) is not None:
                shutil.copyfile(source, folder / name)
        if (heads := loaded.layout.heads()) is not None:
            for source in head_files(heads):
                if source.name.startswith(oft_loading.FILM):
                    policy_files.write_tensors(folder / source.name, film)
                else:
                    shutil.copyfile(source, folder / source.name)

    return checkpoint.write_whole(output, {"step": 0, "serial": 1}, write)
