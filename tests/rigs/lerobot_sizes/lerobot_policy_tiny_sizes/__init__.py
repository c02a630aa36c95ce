"""A LeRobot plugin for tests: with it on PYTHONPATH, pi0 and pi05 have tiny sizes.

LeRobot builds these two models in their published sizes only (3.5 billion parameters). Its commands
and our server import this package as any policy plugin; it then hands LeRobot's own code small
sizes. Everything else of these policies stays as it is.
"""

from __future__ import annotations

from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05

VOCABULARY = 384
HEADS = 8
"""LeRobot's attention has this number written into it."""


def _language(sizes_of):
    def sizes(variant):
        made = sizes_of(variant)
        made.width = 64 if variant == "gemma_2b" else 32
        made.depth, made.mlp_dim, made.head_dim = 2, 64, 8
        made.num_heads, made.num_kv_heads = HEADS, 1
        return made

    return sizes


def _vision(model_class):
    def model(config):
        config.vision_config.hidden_size = 32
        config.vision_config.num_hidden_layers = 1
        config.vision_config.num_attention_heads = 2
        config.vision_config.intermediate_size = 64
        config.vision_config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = VOCABULARY
        return model_class(config)

    return model


def _expert(model_class):
    def model(config):
        config.vocab_size = VOCABULARY
        return model_class(config)

    return model


for _module in (modeling_pi0, modeling_pi05):
    _module.get_gemma_config = _language(_module.get_gemma_config)
    _module.PaliGemmaForConditionalGenerationWithPiGemma = _vision(
        _module.PaliGemmaForConditionalGenerationWithPiGemma
    )
    _module.PiGemmaForCausalLM = _expert(_module.PiGemmaForCausalLM)
