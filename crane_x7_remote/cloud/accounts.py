"""The accounts with a key here, and the ledger: flags, `.env` → Settings → providers and Ledger."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote.cloud.http import Patience
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.runpod import Runpod
from crane_x7_remote.cloud.vast import Vast
from crane_x7_remote.cloud.verda import Verda
from crane_x7_remote.errors import CloudKeyError
from crane_x7_remote.settings import Settings

ENV_FILE: Final = Path(".env")
LEDGER: Final = Path(".local/state/crane-x7-remote/cloud")
"""Below the home folder: one ledger for all checkouts."""
KEYS: Final = {
    "verda": "DATACRUNCH_CLIENT_ID and DATACRUNCH_CLIENT_SECRET",
    "vast": "VAST_API_KEY",
    "runpod": "RUNPOD_API_KEY",
}
"""Provider → the variables of its key."""


def add_env_file(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flag that names the file of keys."""
    parser.add_argument(
        "--env-file", type=Path, metavar="FILE",
        help=f"keys of the providers, besides those of the environment ({ENV_FILE}, if it exists)",
    )  # fmt: skip


def configured(args: argparse.Namespace) -> Settings:
    """Return settings from the environment and the file of `--env-file`. Raises SettingsError."""
    from crane_x7_remote.cloud import env_file

    path = args.env_file or (ENV_FILE if ENV_FILE.exists() else None)
    file = {} if path is None else env_file.read(path)
    return settings_module.load(environ=env_file.merged(file, settings_module.inherited()))


@contextlib.contextmanager
def opened(settings: Settings, patience: Patience | None = None) -> Iterator[dict[str, Provider]]:
    """Yield every provider that has a key. Raises CloudKeyError if none has."""
    found = providers(settings, patience)
    if not found:
        keys = "; ".join(f"{name}: {variables}" for name, variables in KEYS.items())
        raise CloudKeyError(
            f"no provider has a key; set one in the environment or in --env-file ({keys}), see"
            " docs/cloud.md"
        )
    try:
        yield found
    finally:
        for each in found.values():
            each.close()


def providers(settings: Settings, patience: Patience | None = None) -> dict[str, Provider]:
    """Return every provider that has a key."""
    found: dict[str, Provider] = {}
    if settings.datacrunch_client_id and settings.datacrunch_client_secret is not None:
        secret = settings.datacrunch_client_secret.get_secret_value()
        found["verda"] = Verda(
            settings.datacrunch_client_id, secret, settings.verda_base_url, patience
        )
    if settings.vast_api_key is not None:
        key = settings.vast_api_key.get_secret_value()
        found["vast"] = Vast(key, settings.vast_base_url, patience)
    if settings.runpod_api_key is not None:
        key = settings.runpod_api_key.get_secret_value()
        found["runpod"] = Runpod(key, settings.runpod_base_url, patience)
    return found


def provider(settings: Settings, name: str) -> Provider:
    """Return one provider. Raises CloudKeyError if its key is not set."""
    try:
        return providers(settings)[name]
    except KeyError:
        raise CloudKeyError(
            f"{name}: no key; set {KEYS[name]} in the environment or in --env-file, see"
            " docs/cloud.md"
        ) from None


def ledger(settings: Settings) -> Ledger:
    """Return the ledger of this user."""
    folder = settings.cloud_ledger
    return Ledger(Path(folder).expanduser() if folder else Path.home() / LEDGER)
