"""NaN and infinities in weights and outputs: found, marked and named.

Tensors by name, modules, logits → nothing if all are finite, else the names of the weights, or
NotFiniteError. `marked` runs on the model's device, never waits and may be captured: the tokens
carry its result to the host, where `check_tokens` reads it. Weights are checked when they are
loaded, and when an output is not finite.

This package writes −inf only into attention masks (`sequence.mask`). Logits are those of the 256
action rows, which are never masked: each must be finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.actions import NO_TOKEN
from crane_x7_vla_rl.policies.openvla.errors import NotFiniteError

NAMED: Final = 3
"""Most tensors that an error names."""


@dataclass(frozen=True)
class NonFinite:
    """A tensor with values that are NaN or infinite."""

    name: str
    nan: int
    """Number of values that are NaN."""
    infinite: int
    total: int


def find_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[NonFinite]:
    """Return the tensors that hold NaN or infinities; for sharded ones, this process's part.

    A sum is not finite if one of its terms is not: each tensor is read once, without a copy. The
    device is synchronised once.
    """
    known = [(name, _local(x)) for name, x in tensors if x.is_floating_point() and x.numel()]
    if not known:
        return []
    device = known[0][1].device
    sums = torch.stack([tensor.sum().to(device, torch.float64) for _, tensor in known])
    suspects = (~torch.isfinite(sums)).nonzero().flatten().tolist()
    found = (_counted(*known[index]) for index in suspects)
    return [one for one in found if one.nan or one.infinite]  # a sum may overflow


def describe(found: Sequence[NonFinite]) -> str:
    """Return "weights hold NaN: lm_head.weight (12 of 4096 values)" for some, "" for none."""
    if not found:
        return ""
    kinds = {"NaN": any(one.nan for one in found), "Inf": any(one.infinite for one in found)}
    listed = ", ".join(
        f"{one.name} ({one.nan + one.infinite} of {one.total} values)" for one in found[:NAMED]
    )
    more = f" and {len(found) - NAMED} more tensors" if len(found) > NAMED else ""
    return f"weights hold {' and '.join(kind for kind in kinds if kinds[kind])}: {listed}{more}"


def broken(module: nn.Module) -> str:
    """Describe the module's weights that are not finite, "" if all are."""
    return describe(find_non_finite(module.named_parameters()))


def check(tensors: Iterable[tuple[str, Tensor]], source: object) -> None:
    """Raise NotFiniteError if a tensor from `source` holds NaN or infinities."""
    if found := find_non_finite(tensors):
        raise not_finite(found, source)


def not_finite(found: Sequence[NonFinite], source: object) -> NotFiniteError:
    """Return the error for weights that came from `source`."""
    return NotFiniteError(
        f"{source}: {describe(found)}; the training that wrote them has diverged: use an earlier"
        " checkpoint"
    )


def marked(tokens: Tensor, logits: Tensor) -> Tensor:
    """Return tokens (B, D), NO_TOKEN in rows whose logits (B, D, V) are not all finite.

    0 times NaN or infinity is NaN, and so is a sum with it: half of the operations of `isfinite`.
    """
    wrong = (logits * 0).sum((1, 2)) != 0  # (B,)
    return tokens.masked_fill(wrong[:, None], NO_TOKEN)


def check_tokens(tokens: Tensor, module: nn.Module) -> None:
    """Raise NotFiniteError if tokens (B, D) on the CPU, chosen by `module`, are marked."""
    if int(tokens.min()) != NO_TOKEN:
        return
    rows = (tokens == NO_TOKEN).any(1).nonzero().flatten().tolist()
    raise unanswered(rows, len(tokens), module)


def unanswered(rows: Sequence[int], batch: int, module: nn.Module) -> NotFiniteError:
    """Return the error for samples `rows` of a batch, where `module` computed NaN or infinities."""
    what = broken(module) or "all weights are finite, but too large, or a product overflowed"
    which = ", ".join(str(row) for row in rows[:NAMED]) + (", …" if len(rows) > NAMED else "")
    return NotFiniteError(
        f"{what}; the output for sample {which} of {batch} (from 0) is NaN or infinite"
    )


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: the sum of a sharded one would need all processes."""
    part: Any = tensor.detach()
    return part.to_local() if hasattr(part, "to_local") else part  # type: ignore[no-any-return]


def _counted(name: str, tensor: Tensor) -> NonFinite:
    nan = int(tensor.isnan().sum())
    return NonFinite(name, nan, int(tensor.isinf().sum()), tensor.numel())
