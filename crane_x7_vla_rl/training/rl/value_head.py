"""The value head: the value of an observation, from the hidden state before the first action token.

Hidden state (`Rollout.hidden` while collecting, `Evaluation.hidden` while learning: the same thing)
→ a number. Policy and value share all that is below, which saves half of the memory of a second
network (https://arxiv.org/abs/2505.19789). A checkpoint holds it as `value_head.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla import finite
from crane_x7_vla_rl.training.errors import ResumeError
from crane_x7_vla_rl.training.rl.ppo_config import ValueConfig

FILE: Final = "value_head.safetensors"


class ValueHead(nn.Module):
    """Norm, hidden layers, one number; in float32 whatever the policy computes in.

    It begins at exactly 0 for every observation, as policies' usual return is near 0; hidden layers
    begin orthogonal (https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/,
    detail 2).
    """

    def __init__(self, width: int, config: ValueConfig) -> None:
        """`width` is H, the policy's hidden size."""
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), *layers(width, config))

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…) float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            value: Tensor = self.layers(hidden.float())
        return value.squeeze(-1)


def layers(width: int, config: ValueConfig) -> nn.Sequential:
    """Return hidden layers that begin orthogonal, and a last one that begins at 0."""
    found: list[nn.Module] = []
    for _ in range(config.layers):
        linear = nn.Linear(width, config.hidden)
        nn.init.orthogonal_(linear.weight, 2**0.5)
        nn.init.zeros_(linear.bias)
        found += [linear, nn.GELU()]
        width = config.hidden
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*found, last)


def read(folder: Path, head: nn.Module) -> None:
    """Give the head, or another critic, the weights of a checkpoint.

    Raises ResumeError where they do not fit, NotFiniteError where they are NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        head.load_state_dict(load_file(folder / FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ResumeError(
            f"{folder / FILE}: does not fit the value head (ppo.value.critic, ppo.value.hidden,"
            f" ppo.value.layers): {error}"
        ) from error
    finite.check(head.named_parameters(), folder / FILE)
