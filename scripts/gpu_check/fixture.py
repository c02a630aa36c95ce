"""A small checkpoint and what the original code computes on it. A folder → models and tensors.

Legend: B samples, D action tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.weights import loading
from gpu_check.parts import FIXTURE

KEY: Final = "crane_x7"


@dataclass(frozen=True)
class Fixture:
    """The folder with `checkpoint/`, `images/` and `expected.safetensors`."""

    folder: Path = FIXTURE

    def load(self, device: torch.device, dtype: torch.dtype) -> OpenVLA:
        """Return the checkpoint's model; raises CheckpointError."""
        return loading.load(self.folder / "checkpoint", device=device, dtype=dtype).model

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """The original's tensors by name."""
        return load_file(self.folder / "expected.safetensors")

    @property
    def pixels(self) -> Tensor:
        """(B, 6, 224, 224) float32."""
        return self.expected["pixel_values"]

    @property
    def count(self) -> int:
        """B."""
        return len(self.pixels)

    @property
    def prompts(self) -> list[Tensor]:
        """Ids of B prompts of unequal length."""
        return [self.expected[f"input_ids.{row}"] for row in range(self.count)]

    @property
    def tokens(self) -> Tensor:
        """(B, D): the original's greedy tokens."""
        return torch.stack([self.expected[f"tokens.{KEY}.{row}"] for row in range(self.count)])

    @property
    def logits(self) -> Tensor:
        """(B, D, 256): the original's logits of the action rows."""
        rows = [self.expected[f"step_logits_action_bins.{row}"] for row in range(self.count)]
        return torch.stack(rows)

    def images(self) -> list[Image.Image]:
        """Return the images behind `pixels`."""
        return [Image.open(self.folder / "images" / f"{row}.png") for row in range(self.count)]


def exact(model: OpenVLA) -> OpenVLA:
    """Return a copy in float64 on the CPU: the same weights, with hardly any rounding."""
    return copy.deepcopy(model).to(device="cpu", dtype=torch.float64)
