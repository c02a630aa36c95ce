"""Group `disk`: where results and caches go, whether they can be written, and the room there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote.boot import output_volume
from crane_x7_remote.doctor.finding import Check, Context, Finding, failure, ok, skipped, warning
from crane_x7_remote.doctor.places import hub_cache, in_container, nearest
from crane_x7_vla_rl.file_errors import why

PROBE_BYTES: Final = 1 << 20
LEAST_BYTES: Final = 50_000_000
"""Disk space that the smallest run needs, as in training/preflight.py."""
FEW_BYTES: Final = 2_000_000_000
"""A few checkpoints of a small model fit into this."""


def writable(folder: Path, name: str) -> Finding:
    """Write a file where `folder` is, or would be created; `name` is its variable."""
    place = nearest(folder)
    label = f"{name}={folder}"
    if not place.is_dir():
        return failure(f"{label}: {place} is a file", f"mv {place} {place}.old")
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".crane-x7-doctor-") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        user = f"{os.geteuid()}:{os.getegid()}"
        fix = (
            f"sudo chown {user} {place}" if isinstance(error, PermissionError) else f"df -h {place}"
        )
        return failure(f"{label}: {place} cannot be written: {why(error)}", fix)
    free = shutil.disk_usage(place).free
    said = f"{label}: writable, {free / 1e9:.1f} GB free"
    if free < LEAST_BYTES:
        return failure(f"{label}: {free / 1e6:.0f} MB free, too few for any run", f"df -h {place}")
    if free < FEW_BYTES:
        return warning(f"{said}: room for few checkpoints", f"df -h {place}")
    return ok(said + ("" if place == folder.absolute() else "; it will be created"))


def outputs(context: Context) -> Finding:
    """Whether results can be written to OUTPUT_ROOT."""
    return writable(Path(context.settings.output_root or settings_module.output_root()),
                    "OUTPUT_ROOT")  # fmt: skip


def volume(context: Context) -> Finding:
    """Whether results outlive the container."""
    if not in_container() or context.settings.output_root is None:
        return skipped("no container with OUTPUT_ROOT; results stay where they are written")
    folder = Path(context.settings.output_root).resolve()
    try:
        text = output_volume.warning(folder, output_volume.MOUNTS.read_text())
    except OSError as error:
        return skipped(f"the mounts are unknown: {why(error)}")
    if text is None:
        return ok(f"{folder} is on a volume")
    return warning(text, f"docker run -v crane-x7-outputs:{folder} crane-x7-remote")


def cache(context: Context) -> Finding:
    """Whether models can be fetched into the Hub's cache."""
    return writable(hub_cache(context.settings.hf_home), "HF_HOME")


def wandb(context: Context) -> Finding:
    """Whether W&B can write its files."""
    if context.settings.wandb_dir is None:
        return skipped("WANDB_DIR is not set: W&B writes to the folder of the run")
    return writable(Path(context.settings.wandb_dir), "WANDB_DIR")


CHECKS = (
    Check("disk", "outputs", outputs),
    Check("disk", "volume", volume),
    Check("disk", "cache", cache),
    Check("disk", "wandb", wandb),
)
