"""Whether a provider's name of a GPU is the wanted model: two texts → yes or no. Pure.

L40 is not L40S, A100 is not A1000, and RTX 6000 is not RTX 6000 Ada; but H100 is "NVIDIA H100 80GB
HBM3", "H100 SXM" and "H100_PCIE".
"""

from __future__ import annotations

import re
from typing import Final

MAKERS: Final = frozenset({"NVIDIA", "GEFORCE", "TESLA", "RTX"})
"""Words that may be missing on either side."""
FORM: Final = re.compile(r"SXM\d?|PCIE|NVL|\d+GB|HBM\d[A-Z]?|SERVER|GPU")
"""Words that a name may have in addition: shape and memory of the same model."""


def is_model(name: str, wanted: str) -> bool:
    """Whether `name` means the model `wanted`; words in `wanted` narrow it, such as H100 SXM."""
    has, wants = _words(name), _words(wanted)
    return bool(wants) and wants <= has and all(map(FORM.fullmatch, has - wants))


def _words(text: str) -> set[str]:
    return set(re.split(r"[\s_\-]+", text.upper().strip())) - MAKERS - {""}
