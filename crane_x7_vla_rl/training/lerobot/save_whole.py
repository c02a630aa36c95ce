"""Start LeRobot's trainer so that each save is whole. Runs inside LeRobot's environment.

    .venv-lerobot/bin/python crane_x7_vla_rl/training/lerobot/save_whole.py --policy.type=act …

LeRobot 0.6.1 writes a checkpoint file by file into its place, so a kill leaves half of one there.
Here the same function writes into `checkpoints/.saving-<step>`; policy_io.yaml and the marker with
every file's size follow, all is synced to the disk, and the folder gets its name last. SIGTERM
saves after the present step and ends the process with code 0; with several processes it ends it at
once, since ranks would wait for each other. The process also ends when its parent dies.

LeRobot restores the random numbers of a checkpoint before it makes the model and the data loader,
which draw some; here they are restored again before the first update, so that a resumed run equals
the uninterrupted one.

Nothing of this project is imported: the environment holds LeRobot.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

MARKER = "complete.json"
SAVING = ".saving-"
POLICY_IO = "CRANE_X7_POLICY_IO"
"""Variable with the text of policy_io.yaml."""
PARENT = "CRANE_X7_PARENT"
"""Variable with the process id of the supervisor."""
REPLACED = (
    "save_checkpoint", "should_save_checkpoint", "update_last_checkpoint", "load_training_state",
    "update_policy", "main",
)  # fmt: skip
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Patch the trainer's names and run it."""
    _end_with_parent()
    from lerobot.scripts import lerobot_train as trainer
    from lerobot.utils.random_utils import load_rng_state

    missing = [name for name in REPLACED if not hasattr(trainer, name)]
    if missing:
        sys.exit(
            f"lerobot.scripts.lerobot_train has no {', '.join(missing)}: another LeRobot than"
            " 0.6.1; run scripts/setup-lerobot --force"
        )
    stop, numbers = Stop(), Numbers(load_rng_state)
    trainer.save_checkpoint = whole(trainer.save_checkpoint)
    trainer.load_training_state = numbers.noting(trainer.load_training_state)
    trainer.update_policy = numbers.restored_before(trainer.update_policy)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        signal.signal(signal.SIGTERM, stop.ask)
        trainer.should_save_checkpoint = stop.or_when(trainer.should_save_checkpoint)
        trainer.update_last_checkpoint = stop.after(trainer.update_last_checkpoint)
    trainer.main()


class Stop:
    """A wish to save and stop."""

    def __init__(self) -> None:
        self.wanted = False

    def ask(self, number: int, frame: Any) -> None:
        """Handle SIGTERM."""
        del number, frame
        self.wanted = True

    def or_when(self, should_save: Any) -> Any:
        """Return `should_save` that also says yes once a stop is wanted."""

        def asked(step: int, save_freq: int, total_steps: int) -> bool:
            return self.wanted or should_save(step, save_freq, total_steps)

        return asked

    def after(self, update_last: Any) -> Any:
        """Return `update_last` that ends the process if a stop is wanted."""

        def updated(checkpoint_dir: Path) -> Any:
            result = update_last(checkpoint_dir)
            if self.wanted:
                print(f"saved {checkpoint_dir} and stopped", flush=True)
                raise SystemExit(0)
            return result

        return updated


class Numbers:
    """The random numbers of the checkpoint that is resumed."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self._folder: Path | None = None

    def noting(self, load_state: Any) -> Any:
        """Return `load_state` that notes the checkpoint."""

        def loaded(checkpoint_dir: Path, *args: Any, **options: Any) -> Any:
            self._folder = Path(checkpoint_dir) / "training_state"
            return load_state(checkpoint_dir, *args, **options)

        return loaded

    def restored_before(self, update: Any) -> Any:
        """Return `update` whose first call restores the numbers."""

        def updated(*args: Any, **options: Any) -> Any:
            if self._folder is not None:
                self._load(self._folder)
                self._folder = None
            return update(*args, **options)

        return updated


def whole(save: Any) -> Any:
    """Return `save` that writes aside and gives the folder its name last."""

    def saved(checkpoint_dir: Path, *args: Any, **options: Any) -> None:
        aside = checkpoint_dir.with_name(SAVING + checkpoint_dir.name)
        if aside.exists():
            shutil.rmtree(aside)
        save(aside, *args, **options)
        if text := os.environ.get(POLICY_IO):
            (aside / "pretrained_model" / "policy_io.yaml").write_text(text, encoding="utf-8")
        finish(aside)
        if checkpoint_dir.exists():
            shutil.rmtree(checkpoint_dir)
        aside.rename(checkpoint_dir)
        _sync(checkpoint_dir.parent)

    return saved


def finish(folder: Path) -> None:
    """Sync every file of a save to the disk, and write the marker."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        _sync(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    marker = folder / MARKER
    marker.write_text(json.dumps({"files": sizes}, indent=1) + "\n", encoding="utf-8")
    _sync(marker)
    for path in {folder, *(file.parent for file in files)}:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _end_with_parent() -> None:
    """Let the system end this process when its parent dies; Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    wanted = os.environ.get(PARENT)
    if wanted and "RANK" not in os.environ and os.getppid() != int(wanted):
        sys.exit("the process that started this training is gone")


if __name__ == "__main__":
    main()
