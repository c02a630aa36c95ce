"""Whose checkpoint it is. Folder or Hub id → "openvla" or "lerobot".

Only config.json is read, or fetched from the Hub. Loading the checkpoint reports every problem, so
whatever cannot be read here counts as the project's own kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from crane_x7_vla_rl.policies import hub, lerobot_folder
from crane_x7_vla_rl.policies.base import PolicyLoadError

Kind = Literal["openvla", "lerobot"]
OPENVLA: Final[Kind] = "openvla"
LEROBOT: Final[Kind] = "lerobot"


def kind_of(path: str | Path, token: str | None = None) -> Kind:
    """Return the kind of the checkpoint in a folder or under a Hub id.

    Raises PolicyLoadError for a LeRobot training without any complete checkpoint.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return OPENVLA if lerobot_folder.find(folder) is None else LEROBOT
    try:
        peeked = hub.peek(path, token=token, names=[lerobot_folder.CONFIG])
    except (PolicyLoadError, ModuleNotFoundError):
        return OPENVLA
    return (
        LEROBOT if lerobot_folder.is_lerobot(lerobot_folder.read_config(peeked.folder)) else OPENVLA
    )
