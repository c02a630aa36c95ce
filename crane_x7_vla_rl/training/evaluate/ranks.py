"""The processes of one evaluation, as torchrun starts them. Each takes its share of the episodes.

A list → this process's share; shares → the whole list in every process. The first process writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those of an evaluation."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, whole: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part: every `count`-th item."""
        return whole[self.rank :: self.count]

    def gather(self, mine: list[Item]) -> list[Item]:
        """Return the items of all processes; every one of them must call it."""
        if self.count == 1:
            return mine
        from accelerate.utils import gather_object

        return list(gather_object(mine))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


ALONE: Final = Ranks()


def join(device: str) -> tuple[Ranks, str]:
    """Join the processes that torchrun started, if it did; return this one and its device.

    `device` is cuda, cpu or auto. Raises ConfigError where it names one of several GPUs.
    """
    count = settings.process_count()
    if count == 1:
        return ALONE, device
    kind, colon, _ = device.partition(":")
    if colon:
        raise ConfigError(
            f"--device {device} names one device, but torchrun started {count} processes; use"
            f" --device {kind}: each process then takes the GPU of its number"
        )
    from crane_x7_vla_rl.training.learner import start_processes

    accelerator = start_processes(kind)
    return Ranks(accelerator.process_index, accelerator.num_processes), str(accelerator.device)
