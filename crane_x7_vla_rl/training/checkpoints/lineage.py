"""Lineage: the source of a checkpoint → a file next to its weights, and W&B's lineage.

The trainer writes `lineage.json` into each checkpoint; uploads read it. A checkpoint that is
uploaded to W&B contains the name of its artifact, so a run that starts from its folder, a copy of
it or the downloaded artifact knows its origin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.data.files import write_json
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.openvla.weights import layout as layouts
from crane_x7_vla_rl.policies.openvla.weights.files import read_json

LINEAGE: Final = "lineage.json"


@dataclass(frozen=True)
class Lineage:
    """Where a checkpoint comes from."""

    start: str
    """Folder or Hub id of the weights that training started from."""
    made_from: str | None
    """Their artifact at W&B, entity/project/name:alias, where they have one."""
    artifact: str | None
    """The checkpoint's own one, where it is uploaded."""
    update: int
    about: dict[str, Any] = field(default_factory=dict)
    """Further figures to choose among checkpoints by, such as the success rate."""

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        write_json(folder / LINEAGE, asdict(self))


def read(folder: Path) -> dict[str, Any]:
    """Return the lineage in a checkpoint's folder, empty if it has none.

    Raises CheckpointError for a file that is not a JSON object.
    """
    path = folder / LINEAGE
    return read_json(path) if path.is_file() else {}


def made_from(model: str, resumed: Path | None) -> str | None:
    """Return the artifact at W&B that a run started from: what a resumed checkpoint has noted.

    `model` is a folder or Hub id. None for one that was not uploaded there.
    """
    if resumed is not None:
        return read(resumed).get("made_from")
    try:
        path = layouts.find(model).first(LINEAGE)
    except PolicyLoadError:
        return None  # loading it reports the problem
    return None if path is None else read(path.parent).get("artifact")
