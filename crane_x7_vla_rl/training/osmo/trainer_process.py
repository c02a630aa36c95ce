"""Start LeRobot's trainer for this room. Runs inside LeRobot's environment.

Beside what training/lerobot/save_whole.py does:

- W&B also gets the figures of a step under their published names: loss, l1_loss, kl_loss, lr.
- Before the first update the ranks of a distributed training compare the step that each of them
  resumes. Nodes do not share a disk, so one may have an older checkpoint, or none; LeRobot would
  then train different steps side by side.

Nothing of this project is imported by name: the environment holds LeRobot.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

WHOLE = Path(__file__).resolve().parents[1] / "lerobot" / "save_whole.py"
PUBLISHED = {"loss": "loss", "l1_loss": "l1_loss", "kld_loss": "kl_loss", "lr": "lr"}
"""LeRobot's name of a figure → the published one."""


def main() -> None:
    """Patch the trainer's names and run it."""
    spec = importlib.util.spec_from_file_location("save_whole", WHOLE)
    assert spec is not None
    assert spec.loader is not None
    whole = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(whole)
    from lerobot.scripts import lerobot_train as trainer

    trainer.WandBLogger.log_dict = published(trainer.WandBLogger.log_dict)
    steps = Steps()
    trainer.load_training_state = steps.noting(trainer.load_training_state)
    trainer.update_policy = steps.compared_before(trainer.update_policy)
    whole.main()


def published(log_dict: Any) -> Any:
    """Return `log_dict` that also logs the figures of training under their published names."""

    def logged(self: Any, values: dict[str, Any], step: int | None = None, mode: str = "train",
               **options: Any) -> None:  # fmt: skip
        log_dict(self, values, step, mode, **options)
        named = {PUBLISHED[name]: value for name, value in values.items() if name in PUBLISHED}
        if mode == "train" and named:
            self._wandb.log(named, step=step)

    return logged


class Steps:
    """The step that this rank resumes."""

    def __init__(self) -> None:
        self._step, self._compared = 0, False

    def noting(self, load_state: Any) -> Any:
        """Return `load_state` that notes the step."""

        def loaded(*args: Any, **options: Any) -> Any:
            result = load_state(*args, **options)
            self._step = int(result[0])
            return result

        return loaded

    def compared_before(self, update: Any) -> Any:
        """Return `update` whose first call compares the ranks."""

        def updated(*args: Any, **options: Any) -> Any:
            if not self._compared:
                self._compared = True
                self._compare()
            return update(*args, **options)

        return updated

    def _compare(self) -> None:
        import torch.distributed as ranks

        if not ranks.is_initialized():
            return
        steps: list[Any] = [None] * ranks.get_world_size()
        ranks.all_gather_object(steps, self._step)
        if len({*steps}) > 1:
            each = ", ".join(f"rank {rank} {step}" for rank, step in enumerate(steps))
            sys.exit(f"the ranks resume different steps ({each}): give every node the same"
                     " checkpoints, or none")  # fmt: skip


if __name__ == "__main__":
    main()
