"""A policy whose adapters are added to its weights, in addition to the one that learns.

A model with adapters → one without any, which predicts the same in half of the time, since it has a
third of the products, and joined ones. Its weights are computed again from base and adapters
whenever those have changed, so that no error accumulates. Only in float32: bfloat16 would round
small updates away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.errors import AdapterError
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights.adapters import merged
from crane_x7_vla_rl.policies.openvla.weights.lora_layers import ADAPTER


class Merged:
    """The model without adapters; modules that have none are shared with the one that learns."""

    def __init__(self, learning: OpenVLA) -> None:
        """Raises AdapterError for weights that are not all float32, or sharded."""
        rounded = [name for name, p in learning.named_parameters() if p.dtype != torch.float32]
        if rounded:
            raise AdapterError(f"{rounded[0]} is not float32: added adapters would be rounded")
        self._adapted: dict[str, Any] = {
            name: module for name, module in learning.named_modules() if _has_adapter(module)
        }
        with torch.device("meta"):
            self.model = OpenVLA(learning.config, learning.norm_stats)
        self.model.crop = learning.crop
        for name, module in self.model.named_modules():
            source = learning.get_submodule(name)
            if name in self._adapted:
                source = self._adapted[name].get_base_layer()
            for key, parameter in source.named_parameters(recurse=False):
                own = parameter.detach()
                if name in self._adapted and key == "weight":
                    own = own.clone()
                setattr(module, key, nn.Parameter(own, requires_grad=False))
        self.model.eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> OpenVLA:
        """Add the adapters' current values; return the model."""
        for name, layer in self._adapted.items():
            own: Any = self.model.get_submodule(name)
            own.weight.copy_(_whole(layer))
        return self.model


def _has_adapter(module: nn.Module) -> bool:
    return hasattr(module, "active_adapters")


def _whole(layer: Any) -> Tensor:
    """Return weight + scale · B A of a layer with an adapter."""
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return merged(layer.get_base_layer().weight, a, b, layer.scaling[ADAPTER])
