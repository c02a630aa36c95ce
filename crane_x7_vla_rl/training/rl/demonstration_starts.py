"""Demonstrations to begin episodes from. A data set of `demos` → `Starts`, checked.

Evaluations never use it: they begin as the task does, on seeds that no demonstration has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from crane_x7_vla_rl.data.demos.config import CONFIG
from crane_x7_vla_rl.data.files import read_json
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.rl.config import EnvConfig

if TYPE_CHECKING:
    from crane_x7_vla_rl.sim.vector.starts import Starts

UNMOVED: Final = ("image_size", "camera_shift_m", "camera_noise", "episode_s", "control_hz")
"""Options of a scene in which no body moves otherwise; the rate is compared separately."""
EXACT: Final[Mapping[str, str]] = {
    "joint_noise_rad": "the arm was moved by other targets than the recorded ones",
    "rearrange": "objects were moved meanwhile",
    "chain": "later episodes begin where the ones before ended",
    "from": "episodes begin where that policy went",
}
"""Options of demonstrations that must not be set: what follows from a scene's seed and the recorded
targets would be something else."""


def problems(env: EnvConfig) -> Iterator[Exception]:
    """Yield what is wrong with `env.start_from` and cheap to find; see `preflight`."""
    if env.start_from is None:
        return
    folder = Path(env.start_from).expanduser()
    path = folder / CONFIG
    if not path.is_file():
        yield ConfigError(
            f"env.start_from: {folder} has no {CONFIG}, expected the folder of a data set that"
            " `crane-x7-vla-rl demos` recorded"
        )
        return
    yield from _mismatches(path, read_json(path), env)


def _mismatches(path: Path, recorded: Mapping[str, Any], env: EnvConfig) -> Iterator[Exception]:
    for name, why in EXACT.items():
        if recorded.get(name):
            yield ConfigError(
                f"env.start_from: {path}: {name} is {recorded[name]}: {why}, so the episodes"
                f" cannot be repeated; record without --{name.replace('_', '-')}"
            )
    before: Mapping[str, Any] = recorded.get("world", {})
    usual, now = WorldConfig().as_dict(), env.world(control_hz=1).as_dict()
    for name in sorted(now.keys() | before.keys()):
        was, wanted = before.get(name, usual.get(name)), now.get(name)
        if name not in UNMOVED and was != wanted:
            yield ConfigError(
                f"env.start_from: {path}: {name} is {quoted(was)}, but this run's scenes have"
                f" {quoted(wanted)}; record demonstrations of these scenes"
            )


def read(env: EnvConfig, control_hz: int) -> Starts | None:
    """Return what episodes begin from; None without `env.start_from`.

    Raises ConfigError and DataError.
    """
    if env.start_from is None:
        return None
    for problem in problems(env):
        raise problem
    from crane_x7_vla_rl.data.lerobot import open_lerobot
    from crane_x7_vla_rl.sim.vector.starts import Demonstration, Starts

    folder = Path(env.start_from).expanduser()
    source = open_lerobot(folder)
    if round(source.fps) != control_hz:
        raise ConfigError(
            f"env.start_from: {folder} has {source.fps:g} steps/s, but the policy makes"
            f" {control_hz}; record with --control-hz {control_hz}"
        )
    found = []
    for index in range(len(source)):
        episode = source[index]
        if episode.seed is None or not 0 <= episode.seed < EVALUATION_SEED:
            raise ConfigError(
                f"env.start_from: {episode.source} has the seed {episode.seed}, expected 0 to"
                f" {EVALUATION_SEED - 1}: only a simulated scene can begin again, and those of"
                " evaluations must stay unseen"
            )
        targets, states = (np.array(x, np.float32) for x in (episode.action, episode.state))
        found.append(Demonstration(episode.seed, targets, states))
    if not found:
        raise ConfigError(f"env.start_from: {folder} holds no episodes")
    return Starts(found, env.start_share)
