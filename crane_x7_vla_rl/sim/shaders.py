"""SAPIEN's shaders without a table that these scenes do not need.

Its shaders reflect an environment map by the table of Karis, "Real Shading in Unreal Engine 4"
(SIGGRAPH 2013), which each process computes before its first image: about 6 s of a core if Vulkan
runs in software. These scenes have no environment map, so the values that the table scales are
black. The same shaders without it render the same images, bit for bit, after a tenth of a second.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import sapien
from mani_skill.render import PREBUILT_SHADER_CONFIGS, ShaderConfig

from crane_x7_vla_rl.sim import generated

FOLDERS: Final = ("minimal", "common")
"""The shader pack of ManiSkill's cameras, and the files next to it that it includes."""
FORMATS: Final = {
    "Color": "r8g8b8a8unorm",
    "ColorRaw": "r8g8b8a8unorm",
    "PositionSegmentation": "r16g16b16a16sint",
}
"""ManiSkill's settings for a pack that is named "minimal"."""
DECLARED: Final = re.compile(r"^layout\([^)]*\) uniform sampler2D samplerBRDFLUT;$", re.MULTILINE)
READ: Final = re.compile(r"texture\(samplerBRDFLUT, [^;]*\)\.xy;")


def without_table() -> ShaderConfig:
    """Return ManiSkill's "minimal" without the table, or with it if SAPIEN's shaders changed."""
    usual = PREBUILT_SHADER_CONFIGS["minimal"]
    pack = _pack()
    if pack is None:
        return usual
    for texture, kind in FORMATS.items():
        sapien.render.set_picture_format(texture, kind)
    return replace(usual, shader_pack=str(pack))


@cache
def _pack() -> Path | None:
    """Write the shaders and return their folder; None if one would still use the table."""
    theirs = Path(sapien.__file__).parent / "vulkan_shader"
    texts = {
        path.relative_to(theirs): READ.sub("vec2(0);", DECLARED.sub("", path.read_text()))
        for folder in FOLDERS
        for path in sorted((theirs / folder).iterdir())
    }
    if not texts or any("samplerBRDFLUT" in text for text in texts.values()):
        return None
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:12]
    home = Path(f"shaders-{digest}")
    written = [generated.write(str(home / name), text) for name, text in texts.items()]
    return written[0].parent
