"""LoRA adapters that LeRobot trained → the whole policy, with the adapters merged into its weights.

A checkpoint with adapters holds them alone (`adapter_model.safetensors`); `adapter_config.json`
names the weights that they belong to, a folder or a Hub id. PEFT takes adapters whose keys do not
fit with a warning; here every value is compared after loading, as those of whole policies are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot import weights
from crane_x7_vla_rl.policies import hub, lerobot_folder
from crane_x7_vla_rl.policies.base import PolicyLoadError

CONFIG: Final = "adapter_config.json"
BASE: Final = "base_model_name_or_path"
"""Key of `CONFIG`: folder or Hub id of the weights."""


def are_in(folder: Path) -> bool:
    """Whether a checkpoint consists of adapters."""
    return (folder / CONFIG).is_file()


def load(folder: Path, policy_class: Any, config: Any) -> Any:
    """Return the policy with the adapters of `folder` merged; raises PolicyError."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise PolicyError(
            f"{folder} holds adapters, which need the package peft: run scripts/setup-lerobot"
        ) from error
    base = base_of(folder)
    policy = policy_class.from_pretrained(str(base), config=config)
    weights.check_loaded(policy, base / weights.FILE)
    try:
        described = PeftConfig.from_pretrained(str(folder))
        adapted = PeftModel.from_pretrained(policy, str(folder), config=described)
    except Exception as error:
        raise PolicyError(
            f"{folder}: the adapters do not fit the weights in {base}: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]}"
        ) from error
    _check(adapted, folder / lerobot_folder.ADAPTER, base)
    return adapted.merge_and_unload()


def base_of(folder: Path) -> Path:
    """Return the folder with the weights that the adapters belong to; raises PolicyError."""
    path = folder / CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, revision = described.get(BASE), described.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise PolicyError(f"{path} cannot be read: {error}") from error
    what = f"set {BASE} in it to the folder or Hub id of the policy that was fine-tuned"
    if not name:
        raise PolicyError(f"{path} does not name the weights that its adapters belong to; {what}")
    try:
        place = hub.resolve(str(name), revision)
    except PolicyLoadError as error:
        raise PolicyError(f"{path}: the adapters belong to {name}: {error}; {what}") from error
    base = lerobot_folder.find(place) or place
    if not (base / weights.FILE).is_file():
        raise PolicyError(f"{path}: {base} has no {weights.FILE}; {what}")
    if wrong := lerobot_folder.weights_problem(base / weights.FILE):
        raise PolicyError(f"{base}: {wrong}; copy it again")
    return base


def _check(adapted: Any, path: Path, base: Path) -> None:
    """Raise PolicyError unless the model holds exactly the file's adapters."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    held, wanted = get_peft_model_state_dict(adapted), load_file(path)
    if odd := sorted({*held} ^ {*wanted}):
        raise PolicyError(
            f"{path} does not fit the policy in {base}: {len(odd)} keys are missing or unexpected"
            f" ({', '.join(odd[:3])}{', …' if len(odd) > 3 else ''})"
        )
    for name, tensor in wanted.items():
        if not torch.isfinite(tensor.float()).all():
            raise PolicyError(f"{path}: {name} holds NaN or infinite values")
        if not torch.equal(held[name].cpu(), tensor.to(held[name].dtype)):
            raise PolicyError(f"{path}: {name} was not loaded; copy the checkpoint again")
