"""The factory of environments: `VectorConfig` → the `VectorEnv` of its simulator."""

from __future__ import annotations

from crane_x7_vla_rl.sim.vector.late import Late
from crane_x7_vla_rl.sim.vector.protocol import VectorEnv
from crane_x7_vla_rl.vector_config import VectorConfig


def make(config: VectorConfig) -> VectorEnv:
    """Return the environments, reset; raises SimError with the remedy for what is missing."""
    env = _make(config)
    try:
        env.reset()
    except BaseException:
        env.close()
        raise
    return Late(env, config) if config.delay else env


def _make(config: VectorConfig) -> VectorEnv:
    if config.simulator == "isaacsim":
        from crane_x7_vla_rl.sim.vector import isaac

        return isaac.make(config)
    if config.simulator == "genesis":
        from crane_x7_vla_rl.sim.vector import genesis

        return genesis.make(config)
    if config.backend == "gpu":
        from crane_x7_vla_rl.sim.vector import maniskill_gpu

        return maniskill_gpu.make(config)
    from crane_x7_vla_rl.sim.vector.cpu import CpuVectorEnv

    return CpuVectorEnv(config)
