"""OpenVLA-OFT's two small networks. Hidden states → actions; the robot's state → one token.

Names of parameters equal those of the released `action_head--…` and `proprio_projector--…` files
(https://arxiv.org/abs/2502.19645).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Norm, linear and ReLU around a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, dim)."""
        summed: Tensor = x + self.ffn(x)
        return summed


class ResidualMlp(nn.Module):
    """The head's network for each step of a chunk."""

    BLOCKS = 2

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(self.BLOCKS))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        x = functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        actions: Tensor = self.fc2(self.layer_norm2(x))
        return actions


class ActionHead(nn.Module):
    """Normalised actions from the hidden states of their placeholders, trained with L1."""

    def __init__(self, hidden_size: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMlp(hidden_size * action_dim, hidden_size, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T·D, H) → (B, T, D), −1 to 1 in training but not clipped."""
        batch, placeholders, width = hidden.shape
        steps = placeholders // self.action_dim  # T
        actions: Tensor = self.model(hidden.reshape(batch, steps, self.action_dim * width))
        return actions


class ProprioProjector(nn.Module):
    """One token of the language model from the robot's state."""

    def __init__(self, proprio_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, state: Tensor) -> Tensor:
        """Normalised state (B, P) → (B, H)."""
        token: Tensor = self.fc2(functional.gelu(self.fc1(state)))
        return token
