"""The sizes of an OpenVLA model. A checkpoint's parsed `config.json` → frozen dataclasses.

This module reads no file. Fields that a released checkpoint omits have the values of the released
224-pixel model, see `TowerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.file_errors import kind_in_words
from crane_x7_vla_rl.policies.openvla.errors import ModelConfigError
from crane_x7_vla_rl.policies.openvla.image import IMAGE_SIZE

PATCH_SIZE: Final = 14
PATCHES: Final = (IMAGE_SIZE // PATCH_SIZE) ** 2
"""Image tokens per image of the released model."""


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    registers: int = 0
    """Register tokens in addition to the class token; only DINOv2 has them."""
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False
    """Whether the checkpoint has SigLIP's pooling head, which never affects the output."""
    image_size: int = IMAGE_SIZE
    """Pixels of each side."""
    patch_size: int = PATCH_SIZE
    """Pixels of each side."""

    @property
    def patches(self) -> int:
        """N, image tokens per image."""
        return (self.image_size // self.patch_size) ** 2


DINOV2_LARGE: Final = TowerConfig(1024, 24, 16, 4096, 4, class_token=True, layer_scale=True)
"""ViT-L/14 with 4 registers, as timm's `vit_large_patch14_reg4_dinov2`."""
SIGLIP_SO400M: Final = TowerConfig(1152, 27, 16, 4304, attention_pool=True)
"""SO400M/14, as timm's `vit_so400m_patch14_siglip_224`."""


@dataclass(frozen=True)
class LlamaConfig:
    """The language model; defaults are Llama-2-7B with OpenVLA's vocabulary."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    """The head is the embeddings' matrix, and a checkpoint need not store it."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class OpenVLAConfig:
    """The sizes that determine the shapes of an OpenVLA model."""

    dinov2: TowerConfig = DINOV2_LARGE
    siglip: TowerConfig = SIGLIP_SO400M
    text: LlamaConfig = field(default_factory=LlamaConfig)
    context: int = 2048
    """Most tokens of image, prompt and action together (`llm_max_length`)."""

    @property
    def image_size(self) -> int:
        """Pixels of each side of the image for both towers."""
        return self.dinov2.image_size

    @property
    def patches(self) -> int:
        """N, image tokens per image."""
        return self.dinov2.patches

    @property
    def vision_dim(self) -> int:
        """Channels of the two towers' patches, concatenated."""
        return self.dinov2.embed_dim + self.siglip.embed_dim

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> OpenVLAConfig:
        """Return the configuration in parsed JSON `raw`; `source` names it in errors.

        Raises ModelConfigError for another architecture, towers, resolution or action vocabulary. A
        resolution other than the released model's needs `vision_towers`, whose `patch_size` fits
        `image_sizes`: released checkpoints do not have this key.
        """
        _expect(raw, "model_type", "openvla", source)
        _expect(raw, "use_fused_vision_backbone", True, source)
        _expect(raw, "image_resize_strategy", "resize-naive", source)
        _expect(raw, "n_action_bins", 256, source)
        towers = _section(raw, "vision_towers", source)
        image, patch = _resolution(raw, towers, source)
        dinov2 = _tower(DINOV2_LARGE, _section(towers, "dinov2", source), source)
        siglip = _tower(SIGLIP_SO400M, _section(towers, "siglip", source), source)
        return cls(
            dinov2=replace(dinov2, image_size=image, patch_size=patch),
            siglip=replace(siglip, image_size=image, patch_size=patch),
            text=_text(_section(raw, "text_config", source), source),
            context=_positive(raw.get("llm_max_length", 2048), "llm_max_length", source),
        )


def _expect(raw: Mapping[str, Any], name: str, wanted: object, source: str) -> None:
    found = raw.get(name, wanted)
    if found != wanted:
        raise ModelConfigError(
            f"{source}: {name} is {quoted(found)}, expected {quoted(wanted)}; only the 224-pixel"
            " DINOv2+SigLIP OpenVLA is implemented"
        )


def _resolution(raw: Mapping[str, Any], towers: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Return pixels of an image's side and of a patch's."""
    if not towers:
        _expect(raw, "image_sizes", [IMAGE_SIZE, IMAGE_SIZE], source)
        return IMAGE_SIZE, PATCH_SIZE
    sides = raw.get("image_sizes", [IMAGE_SIZE, IMAGE_SIZE])
    if not isinstance(sides, list) or len(sides) != 2 or sides[0] != sides[1]:
        raise ModelConfigError(
            f"{source}: image_sizes is {quoted(sides)}, expected two equal numbers"
        )
    image = _positive(sides[0], "image_sizes", source)
    patch = _positive(towers.get("patch_size", PATCH_SIZE), "vision_towers.patch_size", source)
    if image % patch:
        raise ModelConfigError(
            f"{source}: patches of {patch} pixels do not fill images of {image}; choose image_sizes"
            " that are a multiple of vision_towers.patch_size"
        )
    return image, patch


def _section(raw: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, Mapping):
        raise ModelConfigError(f"{source}: {name} is {kind_in_words(found)}, expected an object")
    return found


def _positive(value: object, name: str, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelConfigError(
            f"{source}: {name} is {quoted(value)}, expected a whole number above 0"
        )
    return value


def _tower(released: TowerConfig, raw: Mapping[str, Any], source: str) -> TowerConfig:
    """Return `released` with the sizes in `raw`; the MLP has the released ratio, rounded down."""
    width = _positive(raw.get("embed_dim", released.embed_dim), "embed_dim", source)
    heads = _positive(raw.get("num_heads", released.num_heads), "num_heads", source)
    if width % heads:
        raise ModelConfigError(f"{source}: a tower of {width} channels cannot have {heads} heads")
    return TowerConfig(
        embed_dim=width,
        depth=_positive(raw.get("depth", released.depth), "depth", source),
        num_heads=heads,
        mlp_dim=released.mlp_dim * width // released.embed_dim,
        registers=released.registers,
        class_token=released.class_token,
        layer_scale=released.layer_scale,
        attention_pool=released.attention_pool,
    )


def _text(raw: Mapping[str, Any], source: str) -> LlamaConfig:
    """Return the language model's sizes; those that `raw` omits are Llama-2-7B's."""
    released = LlamaConfig()

    def size(name: str) -> int:
        return _positive(raw.get(name, getattr(released, name)), f"text_config.{name}", source)

    heads = size("num_attention_heads")
    text = LlamaConfig(
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_positive(
            raw.get("num_key_value_heads", heads), "text_config.num_key_value_heads", source
        ),
        vocab_size=size("vocab_size"),
        rms_norm_eps=float(raw.get("rms_norm_eps", released.rms_norm_eps)),
        rope_theta=float(raw.get("rope_theta", released.rope_theta)),
        tie_word_embeddings=raw.get("tie_word_embeddings") is True,
    )
    if text.hidden_size % heads or heads % text.num_key_value_heads:
        raise ModelConfigError(
            f"{source}: text_config has {text.hidden_size} channels, {heads} heads and"
            f" {text.num_key_value_heads} key heads; each must divide the one before"
        )
    if text.vocab_size < 32000:
        raise ModelConfigError(
            f"{source}: text_config.vocab_size is {text.vocab_size}, expected 32000 or more:"
            " the actions are ids 31744 to 31999"
        )
    return text
