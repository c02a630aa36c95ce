"""What a checkpoint's weights must be. model.safetensors, and the policy made from it → checked.

LeRobot loads a truncated file, or one whose keys do not fit, with a warning at most, and then runs
on random weights. Here that is an error: every value of the file is compared with the policy's
after LeRobot has loaded it. (The file's length is checked before, see policies/lerobot_folder.py.)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.errors import PolicyError

logger = logging.getLogger(__name__)

FILE: Final = "model.safetensors"
NAMED: Final = 3
"""How many keys a message names."""


def check_loaded(policy: Any, path: Path) -> None:
    """Raise PolicyError unless the policy holds exactly the file's weights.

    Where a file has both an embedding and the output layer that shares it, the embedding counts:
    LeRobot lets the other one overwrite it.
    """
    import torch
    from safetensors import safe_open

    state = policy.state_dict()
    with safe_open(path, framework="pt") as file:
        names = {name: name if name in state else f"model.{name}" for name in file.keys()}  # noqa: SIM118
        _check_keys(path, state, names)
        zeros = total = 0
        differing = []
        for name in sorted(names, key=lambda name: "embed_tokens" in name):
            held, tensor = state[names[name]], file.get_tensor(name)
            if not torch.isfinite(tensor.float() if tensor.is_floating_point() else tensor).all():
                raise PolicyError(f"{path}: {name} holds NaN or infinite values")
            zeros += int((tensor == 0).sum())
            total += tensor.numel()
            wanted = tensor.to(held.dtype)
            if held.shape == tensor.shape and torch.equal(held.cpu(), wanted):
                continue
            if held.shape == tensor.shape and name.endswith("embed_tokens.weight"):
                logger.info("%s is taken from the file's own key, not from lm_head", name)
                held.data.copy_(wanted)
                continue
            differing.append((name, tuple(tensor.shape), tuple(held.shape)))
    differing = [one for one in differing if not _is_shared_head(one[0], state, names)]
    if differing:
        name, came, held_shape = differing[0]
        raise PolicyError(
            f"{path}: LeRobot did not load {len(differing)} of {len(names)} weights, such as"
            f" {name} ({came} in the file, {held_shape} in the policy); config.json and the weights"
            " belong to different policies or versions"
        )
    if total and 2 * zeros > total:
        raise PolicyError(
            f"{path}: {zeros} of {total} weights are zero: the file was not written to its end;"
            " copy the checkpoint again"
        )


def _check_keys(path: Path, state: dict[str, Any], names: dict[str, str]) -> None:
    """Raise PolicyError for keys that only one side has; shared weights are stored once."""
    there = {state[key].data_ptr() for key in names.values() if key in state}
    unexpected = sorted(name for name, key in names.items() if key not in state)
    missing = sorted(
        key for key, tensor in state.items()
        if key not in names.values() and tensor.numel() and tensor.data_ptr() not in there
    )  # fmt: skip
    if not (missing or unexpected):
        return
    import lerobot
    import transformers

    found = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    found += [f"{len(unexpected)} unexpected ({_some(unexpected)})"] if unexpected else []
    old = any(name.startswith(("normalize_", "unnormalize_")) for name in unexpected)
    what = (
        "it is older than LeRobot 0.4; convert it with python -m"
        " lerobot.processor.migrate_policy_normalization"
        if old
        else "it was written by another version, which names its weights differently"
    )
    raise PolicyError(
        f"{path} does not fit LeRobot {lerobot.__version__} with transformers"
        f" {transformers.__version__}: keys {' and '.join(found)}; {what}"
    )


def _is_shared_head(name: str, state: dict[str, Any], names: dict[str, str]) -> bool:
    """Whether `name` is an output layer that shares its weights with an embedding in the file."""
    if not name.endswith("lm_head.weight"):
        return False
    pointer = state[names[name]].data_ptr()
    return any(
        other.endswith("embed_tokens.weight") and state[key].data_ptr() == pointer
        for other, key in names.items()
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
