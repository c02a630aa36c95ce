"""Checkpoints in LeRobot's layout, with tiny files, and a stand-in for its trainer.

    python lerobot_saves.py --output_dir=RUN --steps=6 --save_freq=2 [--fail=TEXT] [--hang=true]

The stand-in prints LeRobot 0.6.1's lines and writes its files; it learns nothing. `test_lerobot.py`
holds the layout to the real one.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

TENSOR = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
BAR = "Training:  17%|█▋        | 1/6 [00:00<00:01,  3.53step/s]"
STAMP = "INFO 2026-11-28 01:33:30 ot_train.py:641"


def safetensors(value: float = 0.0) -> bytes:
    """Return a file with one number."""
    header = json.dumps(TENSOR).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value)


def save(run: Path, step: int, config: dict[str, Any] | None = None) -> Path:
    """Write a complete checkpoint of a step, and set `last`."""
    folder = run / "checkpoints" / f"{step:06d}"
    model, state = folder / "pretrained_model", folder / "training_state"
    model.mkdir(parents=True)
    state.mkdir()
    policy = {"type": "act", "input_features": {}, "chunk_size": 4, "optimizer_lr": 5e-5}
    full = {
        "policy": policy, "steps": 6, "save_freq": 2, "log_freq": 1, "batch_size": 2,
        "dataset": {"repo_id": "local/ds", "root": None}, "wandb": {"run_id": None},
        "scheduler": None, "output_dir": str(run), **(config or {}),
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(policy))
    (model / "train_config.json").write_text(json.dumps(full))
    for name in ("policy_preprocessor", "policy_postprocessor"):
        steps = {"steps": [{"state_file": f"{name}_0.safetensors"}]}
        (model / f"{name}.json").write_text(json.dumps(steps))
        (model / f"{name}_0.safetensors").write_bytes(safetensors())
    (model / "model.safetensors").write_bytes(safetensors(step))
    (state / "training_step.json").write_text(json.dumps({"step": step}))
    for name in ("rng_state", "optimizer_state"):
        (state / f"{name}.safetensors").write_bytes(safetensors())
    (state / "optimizer_param_groups.json").write_text("[]")
    last = folder.parent / "last"
    last.unlink(missing_ok=True)
    last.symlink_to(folder.name)
    return folder


def main() -> None:
    """Act as the trainer."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
    run, steps, each = Path(given["output_dir"]), int(given["steps"]), int(given["save_freq"])
    begun = 0
    if given.get("resume") == "true":
        state = Path(given["config_path"]).parent / "training_state/training_step.json"
        begun = json.loads(state.read_text())["step"]
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    print(f"{STAMP} Output dir: {run}", flush=True)
    for step in range(begun + 1, steps + 1):
        loss = "nan" if given.get("nan") == str(step) else f"{1 / step:.3f}"
        print(
            f"{STAMP} step:{step} smpl:2K ep:1 epch:0.1 loss:{loss} grdn:2.5 lr:5.0e-05", flush=True
        )
        if step % each == 0 or step == steps or stop:
            save(run, step)
        if stop:
            return
        time.sleep(float(given.get("step_s", "0")))
    if "fail" in given:
        print(given["fail"], flush=True)
        sys.exit(1)
    print(f"{STAMP} End of training")


if __name__ == "__main__":
    main()
