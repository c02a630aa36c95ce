"""Isaac Sim, for `--simulator isaacsim`: an error that says what to install, or what is missing.

Isaac Sim needs an RTX GPU, a driver and an installation of about 20 GB. None was available during
development, so there are no scenes for it. They belong in this module, as a class with the methods
of batched.BatchedScenes; BatchedVectorEnv adds chunks, ends, rewards, seeds and resets.
"""

from __future__ import annotations

import importlib.util
from typing import Final, NoReturn

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.vector_config import VectorConfig

INSTALL: Final = (
    "Isaac Sim 5 needs Python 3.11, glibc 2.35 or newer and an RTX GPU with NVIDIA's driver 570 or"
    " newer: pip install 'isaacsim[all,extscache]' isaaclab --extra-index-url"
    " https://pypi.nvidia.com, and accept its licence with OMNI_KIT_ACCEPT_EULA=YES"
)
PACKAGES: Final = ("isaacsim", "isaaclab")


def make(config: VectorConfig) -> NoReturn:
    """Raise SimError: what is missing on this machine, or that the task has no scenes for it."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SimError(
            f"--simulator isaacsim: {' and '.join(missing)} cannot be imported. {INSTALL}; or use"
            " --simulator maniskill"
        )
    raise SimError(
        f"--simulator isaacsim: {config.world.task} has no scenes for Isaac Sim; use --simulator"
        " maniskill, or write them (see crane_x7_vla_rl/sim/vector/isaac.py)"
    )
