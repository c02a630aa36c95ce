"""Separate critics, beside the policy's value head: what they see → an observation's value.

`ppo.value.critic` chooses. `shared`: `value_head.ValueHead` on the policy's hidden state, whose
loss also moves the policy. `own`: `OwnCritic` on what the policy's vision made of the image, its
hidden state and the joints, none of which it moves. `state`: `StateCritic` on the simulator's true
state, which the policy never sees: asymmetric actor and critic, https://arxiv.org/abs/1710.06542. A
critic only shapes the advantages, so the policy that learned with it needs none of this to act.

What `own` and `state` see is fixed when the rollout is collected and kept in `Buffer.seen`, so an
update values it without another pass through the policy, as often as it likes.

Legend: B samples, N patches of an image, H the policy's hidden size, G side of the grid
that patches are pooled to, C numbers that a critic sees.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.sim.vector.true_state import TRUE_STATE
from crane_x7_vla_rl.training.rl.ppo_config import ValueConfig
from crane_x7_vla_rl.training.rl.value_head import ValueHead, layers

GRID: Final = 4
"""G: coarse enough to be small, fine enough to tell where a cube is."""
PATCH_CHANNELS: Final = 32
"""Channels that are left of H in each cell of the grid."""
Critic = nn.Module
"""(B, C) or, of the value head, (B, H) → (B,) float32."""


class StateCritic(nn.Module):
    """Hidden layers on the true state, one number; it begins at exactly 0, as a `ValueHead`."""

    def __init__(self, config: ValueConfig, width: int = TRUE_STATE) -> None:
        super().__init__()
        self.layers = layers(width, config)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, C) → (B,) float32."""
        with torch.autocast(seen.device.type, enabled=False):
            value: Tensor = self.layers(seen.float())
        return value.squeeze(-1)


class OwnCritic(nn.Module):
    """Few channels of each cell of the grid, with hidden state and joints, to hidden layers."""

    def __init__(self, hidden: int, config: ValueConfig) -> None:
        """`hidden` is H."""
        super().__init__()
        self.hidden = hidden
        self.norm = nn.LayerNorm(hidden)
        self.reduce = nn.Linear(hidden, PATCH_CHANNELS)
        self.prompt_norm = nn.LayerNorm(hidden)
        self.layers = layers(GRID * GRID * PATCH_CHANNELS + hidden + DOF, config)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, C) of `own_view` → (B,) float32."""
        with torch.autocast(seen.device.type, enabled=False):
            sizes = [self.hidden * GRID**2, self.hidden, DOF]
            patches, prompt, joints = torch.split(seen.float(), sizes, 1)
            cells = self.norm(patches.reshape(len(seen), -1, self.hidden))  # (B, G·G, H)
            few = functional.gelu(self.reduce(cells)).flatten(1)
            value: Tensor = self.layers(torch.cat([few, self.prompt_norm(prompt), joints], 1))
        return value.squeeze(-1)


def make(config: ValueConfig, hidden: int) -> Critic:
    """Return a new critic of the configured kind; `hidden` is H."""
    if config.critic == "state":
        return StateCritic(config)
    if config.critic == "own":
        return OwnCritic(hidden, config)
    return ValueHead(hidden, config)


@torch.no_grad()
def own_view(patches: Tensor, hidden: Tensor, joints: Tensor) -> Tensor:
    """Return (B, C): patches (B, N, H) pooled to G × G, hidden (B, H) and joints (B, 8), rad."""
    side = round(patches.shape[1] ** 0.5)
    square = (len(patches), -1, side, side)
    grid = patches.float().transpose(1, 2).reshape(square)  # (B, H, side, side)
    cells = functional.adaptive_avg_pool2d(grid, GRID).flatten(2).transpose(1, 2)  # (B, G·G, H)
    parts = [cells.flatten(1), hidden.float(), joints.to(hidden.device, torch.float32)]
    return torch.cat(parts, 1).to(patches.dtype)
