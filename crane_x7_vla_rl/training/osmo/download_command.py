"""`download`: bags from Azure Blob Storage. Variables and flags (but for the token) → a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError

FLAGS: Final = {
    "account": "AZURE_STORAGE_ACCOUNT",
    "container": "AZURE_BLOB_CONTAINER, else datasets",
    "prefix": "AZURE_BLOB_PREFIX, else the whole container",
    "endpoint": "AZURE_BLOB_ENDPOINT, else the account's address in Azure",
}
"""Flag → its default."""
FOLDER: Final = "/data/rosbags"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; the token comes from AZURE_STORAGE_SAS_TOKEN alone."""
    for name, default in FLAGS.items():
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"default: {default}")
    parser.add_argument(
        "--folder", metavar="FOLDER", help=f"where to; default: BLOB_DEST_DIR, else {FOLDER}"
    )


def run(args: argparse.Namespace) -> int:
    """Download; returns 0. Raises TrainingError and DataError."""
    given = {name: getattr(args, name) for name in (*FLAGS, "folder")}
    known = settings.blob() | {name: text for name, text in given.items() if text is not None}
    for name, variable in (("account", FLAGS["account"]), ("sas", "AZURE_STORAGE_SAS_TOKEN")):
        if name not in known and not (name == "account" and "endpoint" in known):
            raise ConfigError(f"{variable} is not set; see docs/osmo.md for the credentials")
    from crane_x7_vla_rl.training.osmo.blob import Source, download

    folder = Path(known.pop("folder", FOLDER)).expanduser()
    download(Source(account=known.pop("account", ""), **known), folder)
    return 0
