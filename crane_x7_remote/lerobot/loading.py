"""A LeRobot checkpoint → LeRobot's policy and its own processors, on a device.

Nothing is fetched: weights that training starts from are not loaded again, and a tokenizer or a
vision-language model's configuration that lies in the checkpoint's folder is taken from there.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot import adapters, statistics, weights
from crane_x7_vla_rl.policies import lerobot_folder

logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
BEFORE: Final = "policy_preprocessor.json"
VLM: Final = "vlm"
"""Folder in a checkpoint with the configuration of its vision-language model."""


@dataclass(frozen=True)
class Loaded:
    """A policy that is ready to predict."""

    policy: Any
    before: Any
    after: Any
    device: Any

    @property
    def config(self) -> Any:
        """LeRobot's configuration of the policy."""
        return self.policy.config


def load(folder: Path, device: str) -> Loaded:
    """Load the `pretrained_model` folder of a checkpoint; raises PolicyError with what is wrong."""
    if wrong := lerobot_folder.missing(folder):
        raise PolicyError(f"{folder}: {'; '.join(wrong)}; copy the checkpoint again")

    import torch
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = _config(folder, device)
    adapted = adapters.are_in(folder)
    try:
        kind = get_policy_class(config.type)
        if adapted:
            policy = adapters.load(folder, kind, config)
        else:
            policy = kind.from_pretrained(str(folder), config=config)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(
            f"{folder}: LeRobot cannot load this {config.type}: {type(error).__name__}: {error}"
        ) from error
    if not adapted:  # those were checked before they were merged
        weights.check_loaded(policy, folder / weights.FILE)
    policy.to(device).eval()
    before, after = _processors(folder, config, device)
    statistics.check(before, after)
    return Loaded(policy, before, after, torch.device(device))


def _config(folder: Path, device: str) -> Any:
    import lerobot
    import lerobot.policies
    from lerobot.configs import PreTrainedConfig

    try:
        config = PreTrainedConfig.from_pretrained(str(folder))
    except Exception as error:
        raise PolicyError(
            f"{folder / CONFIG} does not fit LeRobot {lerobot.__version__}: {error}; it was"
            " written by another version"
        ) from error
    config.device = device
    config.pretrained_path = folder
    for name in ("pretrained_backbone_weights", "load_vlm_weights"):
        if getattr(config, name, None):
            setattr(config, name, None if name.startswith("pretrained") else False)
    name = getattr(config, "vlm_model_name", None)
    if name is not None and (folder / VLM / CONFIG).is_file():
        config.vlm_model_name = str(folder / VLM)
    return config


def _processors(folder: Path, config: Any, device: str) -> tuple[Any, Any]:
    """Return LeRobot's own pre- and postprocessor, with this device and a local tokenizer."""
    from lerobot.policies.factory import make_pre_post_processors

    overrides: dict[str, dict[str, Any]] = {}
    for step in json.loads((folder / BEFORE).read_text(encoding="utf-8"))["steps"]:
        name = step.get("registry_name")
        if name == "device_processor":
            overrides[name] = {"device": device}
        elif name == "tokenizer_processor" and (own := _tokenizer(folder)) is not None:
            overrides[name] = {"tokenizer_name": str(own)}
    try:
        return make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides=overrides
        )
    except Exception as error:
        hint = ""
        if "tokenizer" in str(error).lower() or "huggingface.co" in str(error):
            hint = "; put the tokenizer's tokenizer.json and tokenizer_config.json in the folder"
        raise PolicyError(
            f"{folder}: LeRobot cannot load its processors: {type(error).__name__}: {error}{hint}"
        ) from error


def _tokenizer(folder: Path) -> Path | None:
    """Return the folder of the checkpoint's own tokenizer, if it has one."""
    places = (folder, folder / VLM)
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)
