"""Out of memory in fine-tuning. An update that runs out → what to lower, after a checkpoint.

The weights are still those of the last whole update: only the optimizer changes them, after it has
allocated its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crane_x7_vla_rl.training import out_of_memory
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import OutOfMemoryError
from crane_x7_vla_rl.training.sft.config import SftConfig
from crane_x7_vla_rl.training.sft.run import NAMES, SftRun


@contextmanager
def reported(run: SftRun, step: int, save: Callable[[], None]) -> Iterator[None]:
    """Raise OutOfMemoryError where the update after `step` runs out of memory.

    With one process, `save` is called first. The others of several do not know of the error, and a
    checkpoint needs all of them.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory.ran_out(error):
            raise
        run.learner.forget()
        if run.accelerator.num_processes == 1:
            save()
        last = checkpoint.newest(run.folder)
        then = f"resume with {NAMES.resume_flag} {last}" if last else "start again"
        raise OutOfMemoryError(
            f"update {step + 1}: out of memory ({out_of_memory.need(error)}); {remedy(run.config)},"
            f" and {then}"
        ) from error


def remedy(config: SftConfig) -> str:
    """Return the flags that save memory, the cheapest first, with their present values."""
    training, lora = config.training, config.lora
    flags = []
    if training.batch_size > 1:
        flags.append(
            f"lower --batch-size, now {training.batch_size}, and raise --grad-accumulation-steps,"
            f" now {training.grad_accumulation_steps}, by the same factor"
        )
    if not training.gradient_checkpointing:
        flags.append("add --gradient-checkpointing")
    if not lora.enabled:
        flags.append("train adapters (--use-lora)")
    elif lora.rank > 1:
        flags.append(f"lower --lora-rank, now {lora.rank}")
    return ", or ".join(flags) or "use a GPU with more memory"
