"""What the environment says about reinforcement learning, below configuration files and flags.

A training may begin where nothing of ours ran before, in a session or a provider's start script, so
its variables are read where it begins: here and nowhere else in this package. `boot` checks the
same ones earlier, and crane_x7_remote/settings.py says what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from crane_x7_vla_rl.training.config_tree import Layer

VARIABLES: Final[Mapping[str, str]] = {
    "LIFT_SIMULATOR": "env.simulator",
    "LIFT_BACKEND": "env.backend",
    "VLA_MODEL_PATH": "start.pretrained",
}
"""Variable → key of `RlConfig`."""


def layers(environ: Mapping[str, str] | None = None) -> list[Layer]:
    """Return what is set in `environ` (default: the process's); an empty variable is not."""
    environ = os.environ if environ is None else environ
    return [
        Layer(name, {key: environ[name]}) for name, key in VARIABLES.items() if environ.get(name)
    ]
