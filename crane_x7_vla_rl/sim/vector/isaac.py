"""Isaac Sim, for `--simulator isaacsim`: says what to install, and what is still to be written.

Isaac Sim needs an RTX GPU, a driver and an installation of some 20 GB that could not be had where
this was written, so there are no scenes for it. They belong here, as a class that fulfils
batched.BatchedScenes; chunks, ends, rewards, seeds and resets come with BatchedVectorEnv.
"""

from __future__ import annotations

import importlib.util
from typing import Final, NoReturn

from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.vector_config import VectorConfig

INSTALL: Final = (
    "Isaac Sim 5 wants Python 3.11, glibc 2.35 or newer and an RTX GPU with NVIDIA's driver 570 or"
    " newer: pip install 'isaacsim[all,extscache]' isaaclab --extra-index-url"
    " https://pypi.nvidia.com, and accept its licence with OMNI_KIT_ACCEPT_EULA=YES"
)
PACKAGES: Final = ("isaacsim", "isaaclab")


def make(config: VectorConfig) -> NoReturn:
    """Raise SimError: what is missing here, or that the task has no scenes for Isaac Sim."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SimError(
            f"--simulator isaacsim: {' and '.join(missing)} cannot be imported. {INSTALL}; or use"
            " --simulator maniskill"
        )
    raise SimError(
        f"--simulator isaacsim: {config.world.task} has no scenes for Isaac Sim; write them as"
        " crane_x7_vla_rl/sim/vector/isaac.py says, or use --simulator maniskill"
    )
