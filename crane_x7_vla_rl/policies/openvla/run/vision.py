"""The vision towers without gradients. Pixels → patches for the language model.

The same function as `OpenVLA.encode` with the modules alone, which training uses, in fewer
operations: with the kernel of `vision_kernels` on CUDA, with torch's operations elsewhere.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.model.vision import AddNorm, add_norm
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for, launching_on
from crane_x7_vla_rl.policies.openvla.trials import kernels_in

KERNELS: Final = "crane_x7_vla_rl.policies.openvla.run.vision_kernels"


def see(model: OpenVLA, pixels: Tensor, told: Tensor | None = None) -> Tensor:
    """Return (B, I·N, H), projected patches, for pixels (B, 6·I, S, S).

    `told` (B, H) is the instruction's embedding, for towers with FiLM.
    """
    with launching_on(pixels):
        return model.encode(pixels, _add_norm_for(pixels), told)


def _add_norm_for(pixels: Tensor) -> AddNorm:
    kernels = None if kernels_for(pixels) is None else kernels_in(KERNELS)
    if kernels is None:
        return add_norm
    made: AddNorm = kernels.add_norm
    return made
