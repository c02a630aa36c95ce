"""A policy whose outputs are NaN or infinite: its weights are named, and never saved.

A module, or the tensors of a checkpoint about to be written → a SpoiltError that names weights and
says how to resume. Its exit code is 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import SpoiltError


def answer(where: str, module: nn.Module, error: Exception | None = None) -> SpoiltError:
    """Return the error for outputs of `module`, policy and value head, that are NaN or infinite.

    `error` tells more where all weights are finite.
    """
    what = finite.broken(module) or str(error or "all weights are finite, but too large")
    return SpoiltError(
        f"{where}: {what}. The previous update made the policy output NaN, so it is not saved;"
        " resume from the last checkpoint with a lower ppo.learning_rate"
    )


def check_saved(tensors: Mapping[str, Tensor], target: Path, rate: str) -> None:
    """Raise SpoiltError where the tensors to save as `target` hold NaN or infinity.

    `rate` is the setting to lower.
    """
    if found := finite.find_non_finite(tensors.items()):
        last = checkpoint.newest(target.parent)
        raise SpoiltError(
            f"{target} is not saved: {finite.describe(found)}; the last good checkpoint is"
            f" {last or 'none'}: resume from it with a lower {rate}"
        )
