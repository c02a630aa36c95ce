"""Detect changes of a model's modules and memory. A model → whether its derived state is valid.

Captured graphs and joined weights depend on addresses, cached image prefixes on values; adapters,
casts, loading and training change them. `hold` tells whether addresses are unchanged, `version`
identifies the values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter, is_
from typing import Any, cast

from torch import Tensor, nn

_VERSION: Callable[[Tensor], int] = attrgetter("_version")


class Bindings:
    """A snapshot of a model's modules and parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        held: list[tuple[dict[str, Any], str, Any]] = [
            (table, name, part)
            for module in model.modules()
            for table in (module._modules, module._parameters)
            for name, part in table.items()
        ]
        self._tables, self._names, self._parts = zip(*held, strict=True)
        self._parameters = [part for part in self._parts if isinstance(part, Tensor)]
        self._pointers = list(map(Tensor.data_ptr, self._parameters))
        self._tuners = [
            cast(Any, module) for module in model.modules() if hasattr(module, "active_adapters")
        ]
        self._switches = self._switched()

    def hold(self) -> bool:
        """Whether modules, parameters, their memory and the active adapters are the same."""
        return (
            all(map(is_, map(dict.get, self._tables, self._names), self._parts))
            and list(map(Tensor.data_ptr, self._parameters)) == self._pointers
            and self._switched() == self._switches
        )

    def version(self) -> int:
        """Return a value that differs after any in-place change of a parameter."""
        return sum(map(_VERSION, self._parameters))

    def _switched(self) -> Hashable:
        """Which adapters PEFT's layers apply now."""
        return tuple(
            (tuple(tuner.active_adapters), tuner.disable_adapters, bool(tuner.merged))
            for tuner in self._tuners
        )
