"""The files of OpenVLA-OFT's heads in a checkpoint.

Tensors of a module that holds a model, `head` and `proprio` → the model's own, and those of each
file. Fine-tuning and reinforcement learning both write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from crane_x7_vla_rl.policies.openvla.weights import oft_loading

PARTS: Final = {oft_loading.ACTION_HEAD: "head.", oft_loading.PROPRIO: "proprio."}
"""Kind of a head's file → prefix of its parameters in the module."""


def split(
    tensors: Mapping[str, Tensor], prefix: str, step: int
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return a model's own tensors, and those of each head by the name of its file.

    `prefix` begins the names of the model's; the files are named after `step` updates.
    """
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    own, film = oft_loading.without_film(own)
    heads: dict[str, dict[str, Tensor]] = {}
    if film:
        heads[oft_loading.file_name(oft_loading.FILM, step)] = film
    for kind, part in PARTS.items():
        found = {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
        if found:
            heads[oft_loading.file_name(kind, step)] = found
    return own, heads
