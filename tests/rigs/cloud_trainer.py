"""A stand-in for `crane-x7-vla-rl lerobot` on a rented machine: its lines, files and signals.

Variables of the machine: TRAINER_STEPS, TRAINER_SAVE (steps between checkpoints), TRAINER_STEP_S,
TRAINER_NOISE (bytes on standard error), TRAINER_EXIT (code at the end), TRAINER_SAYS (printed
before the end), TRAINER_OUT (the run's folder), TRAINER_HUB (a folder that stands for the Hub:
complete checkpoints are copied to it).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Act as the trainer."""
    if "--version" in sys.argv:
        print("crane-x7-vla-rl 0.1.0")
        return
    import lerobot_saves

    get = os.environ.get
    run = Path(get("TRAINER_OUT", "outputs/train/act_example"))
    steps, each = int(get("TRAINER_STEPS", "6")), int(get("TRAINER_SAVE", "2"))
    hub = Path(get("TRAINER_HUB", "")) if get("TRAINER_HUB") else None
    run.mkdir(parents=True, exist_ok=True)
    (run / "environ.json").write_text(json.dumps(dict(os.environ)))
    (run / "words.json").write_text(json.dumps(sys.argv[1:]))
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    begun = _newest(run, hub) if {"--resume", "resume_hub", "resume_local"} & set(sys.argv) else 0
    print(f"begun at {begun}", flush=True)
    for step in range(begun + 1, steps + 1):
        time.sleep(float(get("TRAINER_STEP_S", "0.05")))
        text = f"step {step} of {steps}, loss {1 / step:.4g}, 0.1 s per step"
        print(f"12:00:00 INFO    train: {text}", flush=True)
        if step % each == 0 or step == steps or stop:
            folder = run / "checkpoints" / f"{step:06d}"
            if not folder.exists():
                lerobot_saves.save(run, step)
                if hub is not None:
                    shutil.copytree(folder, hub / folder.name, dirs_exist_ok=True)
                    (hub / folder.name / "complete.json").write_text("{}")
        if stop:
            print("stopped", flush=True)
            return
    for _ in range(int(get("TRAINER_NOISE", "0")) // 100):
        sys.stderr.write("noise " * 16 + "abc\n")
    print(get("TRAINER_SAYS", "End of training"), flush=True)
    sys.exit(int(get("TRAINER_EXIT", "0")))


def _newest(run: Path, hub: Path | None) -> int:
    """Return the step to resume from, with its checkpoint in the run's folder."""
    here = [int(path.name) for path in run.glob("checkpoints/0*")]
    there = [] if hub is None else [int(p.parent.name) for p in hub.glob("*/complete.json")]
    best = max([*here, *there], default=0)
    if best and best not in here and hub is not None:
        shutil.copytree(hub / f"{best:06d}", run / "checkpoints" / f"{best:06d}")
    return best


if __name__ == "__main__":
    main()
