"""Folders of boot: one for this start (run), one that survives it (state). Settings → `Files`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from crane_x7_remote.errors import StateError
from crane_x7_remote.settings import Settings

ROOT_RUN_DIR = Path("/run/crane-x7")
UNKEPT_SSH_DIR = Path("/var/lib/crane-x7/ssh")
TAILSCALE_SOCKET = Path("/var/run/tailscale/tailscaled.sock")
"""The `tailscale` command's default."""
PROBE_BYTES = 64 * 1024
"""More than a host key and the state of tailscaled together."""


@dataclass(frozen=True)
class Files:
    """Existing folders, and names in them."""

    run: Path
    state: Path | None
    """None: no state is kept, and the node leaves the tailnet at the end."""
    ssh_state: Path
    tailscale_socket: Path

    @property
    def for_role(self) -> Path:
        """The only folder that belongs to the role's user."""
        return self.run / "role"

    @property
    def metrics(self) -> Path:
        """Metrics of a loop that boot started."""
        return self.for_role / "metrics.json"


def run_dirs(wanted: str | None) -> list[Path]:
    """Return the possible run folders, the best first."""
    if wanted is not None:
        return [Path(wanted)]
    own = Path(f"/tmp/crane-x7-{os.geteuid()}")
    return [ROOT_RUN_DIR] if os.geteuid() == 0 else [ROOT_RUN_DIR, own]


def status_socket(run: Path) -> Path:
    """Return the socket on which boot answers `status`."""
    return run / "status.sock"


def prepare(settings: Settings) -> Files:
    """Create all folders and return them. Raises StateError for one that is not writable."""
    run = run_dirs(settings.boot_run_dir)[-1]
    _make(run, 0o755, "BOOT_RUN_DIR")
    if run.is_symlink() or run.stat().st_uid != os.geteuid():
        raise StateError(f"{run} belongs to another user; set BOOT_RUN_DIR to your own folder")
    state = kept_state(settings)
    if state is not None:
        _make(state, 0o700, "TS_STATE_DIR")
        _probe(state, "TS_STATE_DIR")
    ssh_state = _ssh_state(settings, state, run)
    if settings.ssh_public_key or settings.public_key:
        _make(ssh_state, 0o700, "SSH_STATE_DIR")
        _probe(ssh_state, "SSH_STATE_DIR")
    tailscale_socket = Path(settings.ts_socket) if settings.ts_socket else _socket(run)
    return Files(run, state, ssh_state, tailscale_socket)


def kept_state(settings: Settings) -> Path | None:
    """Return TS_STATE_DIR if set by the user or mounted at the default; else None."""
    if settings.ts_state_dir is None:
        return None
    folder = Path(settings.ts_state_dir)
    return folder if "ts_state_dir" in settings.model_fields_set or folder.is_dir() else None


def _ssh_state(settings: Settings, state: Path | None, run: Path) -> Path:
    if settings.ssh_state_dir is not None:
        return Path(settings.ssh_state_dir)
    if state is not None:
        return state / "ssh"
    return UNKEPT_SSH_DIR if os.geteuid() == 0 else run / "ssh"


def _socket(run: Path) -> Path:
    return TAILSCALE_SOCKET if os.geteuid() == 0 else run / "tailscaled.sock"


def _make(folder: Path, mode: int, variable: str) -> None:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"{variable}: folder {folder} cannot be created ({error.strerror}); mount a writable"
            f" volume, or set {variable} to another folder"
        ) from error


def _probe(folder: Path, variable: str) -> None:
    """Write as much as the run will need, so that a full volume is found now."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StateError(
            f"{variable}: folder {folder} cannot be written ({error.strerror}); free space on the"
            f" volume, mount it writable, or set {variable} to another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only volume refuses it
            probe.unlink()
