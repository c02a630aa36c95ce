"""LoRA adapters as LeRobot's trainer saves them, loaded by ours; runs in LeRobot's environment.

    python tests/rigs/lerobot_adapters.py FOLDER

writes FOLDER/answers.json: name of the case → what came of it. One process for all cases, because
LeRobot takes seconds to import.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import lerobot_tiny
import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from safetensors.torch import load_file, save_file

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot.loading import load
from crane_x7_remote.lerobot.predictor import Predictor
from crane_x7_vla_rl.robot import HOME_RAD

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def actions(folder: Path) -> np.ndarray:
    """The chunk that the loaded checkpoint predicts, with the same noise each time; (T, 8)."""
    predictor = Predictor(load(folder, "cpu"))
    torch.manual_seed(0)
    image = np.full((64, 96, 3), 90, np.uint8)
    state = HOME_RAD.astype(np.float32)
    key = f"observation.images.{lerobot_tiny.CAMERA}"
    (answer,) = predictor.answer([{key: image, "observation.state": state, "task": "lift"}])
    return answer["actions"]


def fine_tuned(base: Path, folder: Path) -> Path:
    """A checkpoint with adapters of `base`, as LeRobot's `save_checkpoint` writes it."""
    config = PreTrainedConfig.from_pretrained(str(base))
    config.pretrained_path = base
    policy = get_policy_class(config.type).from_pretrained(str(base), config=config)
    adapted = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    torch.manual_seed(1)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:  # zero before the first step
            weights.data.normal_(std=0.5)
    adapted.save_pretrained(folder)
    adapted.config.save_pretrained(folder)
    for path in base.glob("policy_*"):
        shutil.copy(path, folder)
    return folder


def merged(base: Path, folder: Path, into: Path) -> Path:
    """The same policy as a whole checkpoint: W + (alpha / r) · B · A, from the definition."""
    shutil.copytree(base, into)
    weights = load_file(base / "model.safetensors")
    adapters = load_file(folder / ADAPTER)
    described = json.loads((folder / CONFIG).read_text())
    scale = described["lora_alpha"] / described["r"]
    for name, low in adapters.items():
        if ".lora_A.weight" not in name:
            continue
        high = adapters[name.replace("lora_A", "lora_B")]
        own = name.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[own] += (scale * (high.float() @ low.float())).to(weights[own].dtype)
    save_file(weights, into / "model.safetensors")
    return into


def said(folder: Path) -> str:
    try:
        load(folder, "cpu")
    except PolicyError as error:
        return str(error)
    return "no error"


def change(folder: Path, into: Path, **values: object) -> Path:
    """A copy whose adapter_config.json has other values."""
    shutil.copytree(folder, into)
    path = into / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return into


def main() -> None:
    root = Path(sys.argv[1])
    base = lerobot_tiny.make("smolvla", root / "base")
    folder = fine_tuned(base, root / "adapters")
    shutil.copytree(folder, root / "keys")
    weights = load_file(root / "keys" / ADAPTER)
    weights["base_model.model.model.absent.lora_A.weight"] = weights.pop(sorted(weights)[0])
    save_file(weights, root / "keys" / ADAPTER)
    shutil.copytree(folder, root / "nan")
    weights = load_file(root / "nan" / ADAPTER)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, root / "nan" / ADAPTER)
    adapted, plain = actions(folder), actions(base)
    whole = actions(merged(base, folder, root / "merged"))
    answers = {
        "off_the_definition": float(np.abs(adapted - whole).max()),
        "off_the_base": float(np.abs(adapted - plain).max()),
        "moved": said(change(folder, root / "moved", base_model_name_or_path="/absent/base")),
        "unnamed": said(change(folder, root / "unnamed", base_model_name_or_path=None)),
        "keys": said(root / "keys"),
        "nan": said(root / "nan"),
    }
    (root / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
