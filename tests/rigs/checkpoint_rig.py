"""Saves checkpoints for ever, to be killed: `python checkpoint_rig.py RUN FIRST_STEP`.

Every file of a checkpoint holds its step, so that a mixture of two would show. Every second save
replaces the checkpoint before, and two are kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from crane_x7_vla_rl.training.checkpoints import save as checkpoint

FILES = ("adapter_model.safetensors", "train_config.yaml", "training_state/optimizer.pt")
BLOCK = 40_000


def write(folder: Path, step: int) -> None:
    """Write what `read` reads."""
    for name in FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"{step:08d}".encode() * BLOCK)


def read(folder: Path) -> int:
    """Return the step that every file of a checkpoint holds, in every byte."""
    steps = set()
    for name in FILES:
        content = (folder / name).read_bytes()
        assert len(content) == 8 * BLOCK, f"{folder / name} has {len(content)} bytes"
        steps |= {content[at : at + 8] for at in range(0, len(content), 8)}
    assert len(steps) == 1, f"{folder} mixes {steps}"
    return int(steps.pop())


def save_for_ever(run: Path, step: int) -> None:
    checkpoint.clean(run)
    print("ready", flush=True)
    while True:
        step += 1
        for attempt in range(2):
            marked = step + 1_000_000 * attempt
            checkpoint.save(
                run, checkpoint.named(step), step, lambda folder, n=marked: write(folder, n)
            )
        checkpoint.prune(run, 2)
        print(step, flush=True)


if __name__ == "__main__":
    save_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
