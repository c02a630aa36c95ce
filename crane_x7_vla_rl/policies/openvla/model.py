"""OpenVLA as one module: pixels and a prompt come in, action tokens or their probabilities leave.

Names of parameters equal the checkpoint's: `vision_backbone.featurizer` (DINOv2),
`vision_backbone.fused_featurizer` (SigLIP), `projector`, `language_model`.

Legend: B batch, I images per sample, N 256 patches, H hidden size, D action dimensions.
"""

from __future__ import annotations

from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.config import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.language import Llama
from crane_x7_vla_rl.policies.openvla.projector import Projector
from crane_x7_vla_rl.policies.openvla.vision import VisionBackbone


class OpenVLA(nn.Module):
    """The model; its `state_dict` has exactly the keys of a checkpoint."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config.dinov2, config.siglip)
        self.projector = Projector(config.vision_dim, config.text.hidden_size)
        self.language_model = Llama(config.text)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return (B, I·N, H), projected patches, for pixels (B, 6·I, 224, 224)."""
        projected: Tensor = self.projector(self.vision_backbone(pixel_values))
        return projected
