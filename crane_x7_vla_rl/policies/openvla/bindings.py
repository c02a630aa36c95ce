"""Which modules and which memory a model is made of, to notice when either changes.

Captured graphs and joined weights point at memory, and cached image prefixes at values; adapters,
casts, loading and training change them. `hold` tells whether the former are still right, `version`
names the latter.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

from torch import Tensor, nn


class Bindings:
    """A picture of a model's modules and parameters at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._children = [
            (parent._modules, name, child)
            for parent in model.modules()
            for name, child in parent._modules.items()
        ]
        self._parameters: list[tuple[dict[str, Any], str, Tensor, int]] = [
            (module._parameters, name, parameter, parameter.data_ptr())
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._tuners = [
            cast(Any, module) for module in model.modules() if hasattr(module, "active_adapters")
        ]
        self._switches = self._switched()

    def hold(self) -> bool:
        """Whether every module, parameter and its memory is the same, and no adapter switched."""
        return (
            all(children.get(name) is child for children, name, child in self._children)
            and all(
                parameters.get(name) is parameter and parameter.data_ptr() == pointer
                for parameters, name, parameter, pointer in self._parameters
            )
            and self._switched() == self._switches
        )

    def version(self) -> Hashable:
        """Return what differs after any in-place change of a parameter."""
        return sum(parameter._version for _, _, parameter, _ in self._parameters)

    def _switched(self) -> Hashable:
        """Which adapters PEFT's layers apply now."""
        return tuple(
            (tuple(tuner.active_adapters), tuner.disable_adapters, bool(tuner.merged))
            for tuner in self._tuners
        )
