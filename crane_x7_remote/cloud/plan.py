"""A run as it was ordered: everything that its machines have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crane_x7_remote.cloud.hub_state import HubState
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.session import REMOTE_DIR
from crane_x7_remote.cloud.ssh_key import SshKey
from crane_x7_remote.cloud.types import Budget, Timing, Wanted

OUTPUTS: Final = "outputs"
LOG: Final = "log.txt"
KNOWN_HOSTS: Final = "known_hosts"
SSH_FOLDER: Final = "ssh"


@dataclass(frozen=True)
class Pace:
    """Waits of the run itself, seconds; tests shorten them."""

    follow_s: float = 2.0
    """Between two looks at the log."""
    tell_s: float = 30.0
    """Between two lines of progress."""
    hub_s: float = 60.0
    """Between two questions to the Hub about a new checkpoint."""
    save_s: float = 900.0
    """How long a training that is told to end may save and upload."""
    reach_s: float = 180.0
    """How long a machine that is told to end may be silent: it costs money meanwhile."""
    home_s: float = 1800.0
    """How long outputs are tried again, by a lost connection or a full disk here."""


@dataclass(frozen=True)
class Plan:
    """One run of `cloud train`, `resume` or `resume_local`."""

    run_id: str
    job: Job
    mode: str
    """train, resume_hub, resume_local or auto; see setup_env.sh."""
    wanted: Wanted
    image: str
    key: SshKey
    folder: Path
    """runs/<run id>."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the machine's .env holds."""
    hub: HubState = field(default_factory=lambda: HubState(None))
    budget: Budget = field(default_factory=Budget)
    timing: Timing = field(default_factory=Timing)
    pace: Pace = field(default_factory=Pace)
    remote_dir: str = REMOTE_DIR
    ssh_user: str | None = None
    """Who logs in; None: as the provider says."""
    auto_resume: int = 0
    """How many further machines are rented after evictions."""
    os_volume_id: str | None = None
    """Start from this kept disk."""
    command: tuple[str, ...] = ()
    """Words after the image."""

    @property
    def outputs(self) -> Path:
        """Where results come home to."""
        return self.folder / OUTPUTS

    @property
    def there(self) -> str:
        """The folder of the run on the machine."""
        return place(self.remote_dir, self.job.outputs)


def place(remote_dir: str, outputs: str) -> str:
    """Return the absolute path of a run's outputs on the machine."""
    return outputs if outputs.startswith("/") else f"{remote_dir.rstrip('/')}/{outputs}"
