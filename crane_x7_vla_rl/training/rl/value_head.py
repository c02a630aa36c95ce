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
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        for _ in range(config.layers):
            linear = nn.Linear(width, config.hidden)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
            width = config.hidden
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) → (…) float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            value: Tensor = self.layers(hidden.float())
        return value.squeeze(-1)


def read(folder: Path, head: ValueHead) -> None:
    """Give the head the weights of a checkpoint; raises ResumeError where they do not fit.

    Raises NotFiniteError where they are NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        head.load_state_dict(load_file(folder / FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ResumeError(
            f"{folder / FILE}: does not fit the value head (ppo.value.hidden, ppo.value.layers):"
            f" {error}"
        ) from error
    finite.check(head.named_parameters(), folder / FILE)
