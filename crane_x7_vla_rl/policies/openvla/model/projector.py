"""Three linear layers. Patches of both towers → the language model's embedding space."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Projector(nn.Module):
    """`vision_dim` → 4 × `vision_dim` → `text_dim` → `text_dim`, with erf GELU between."""

    def __init__(self, vision_dim: int, text_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, text_dim)
        self.fc3 = nn.Linear(text_dim, text_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Return (B, N, text_dim) for patches (B, N, vision_dim)."""
        hidden = functional.gelu(self.fc1(patches))
        hidden = functional.gelu(self.fc2(hidden))
        projected: Tensor = self.fc3(hidden)
        return projected
