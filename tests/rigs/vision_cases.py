"""The vision towers' kernel against torch's operations: under the interpreter, and on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.model import vision

WIDTHS = (1024, 1152, 64, 36, 1)
"""DINOv2's and SigLIP's, the builder's, two that are no power of two."""


@torch.no_grad()
def norm_case(width: int, device: str, dtype: torch.dtype) -> None:
    """The kernel against torch's operations, with and without a factor per channel."""
    from crane_x7_vla_rl.policies.openvla.run import vision_kernels

    generator = torch.Generator(device).manual_seed(width)

    def made(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    norm = nn.LayerNorm(width, eps=vision.NORM_EPS, device=device, dtype=dtype)
    norm.weight.copy_(made(width))
    norm.bias.copy_(made(width))
    x, delta = made(2, 6, width)[:, ::2], made(3, 2, width).transpose(0, 1)
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 0.03
    for factor in (None, made(width)):
        ours = vision_kernels.add_norm(x, delta, factor, norm)
        for one, wanted in zip(ours, vision.add_norm(x, delta, factor, norm), strict=True):
            assert torch.allclose(one, wanted, atol=tolerance, rtol=tolerance)
