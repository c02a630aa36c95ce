"""`.env`: the file's variables, and the part of them that a rented machine gets.

Read as python-dotenv reads it: quotes, `export`, comments, CRLF; `$` is not expanded. What goes up
is written so that a shell and Python's shlex read the same values.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl import secret_text, variables
from crane_x7_vla_rl.file_errors import why

HUB_TOKENS: Final = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Names of the Hub's token; the machine gets HF_TOKEN."""
GOES_UP: Final = re.compile(
    r"(?:WANDB|LEROBOT)_\w+|HF_TOKEN|HF_ENDPOINT|HF_HUB_\w+|LIFT_\w+|VLA_MODEL_PATH"
)
"""What a training reads. Everything else stays at home, first of all the providers' keys."""
STAYS: Final = frozenset(
    {"LEROBOT_TRAIN_CONFIG", "LEROBOT_VENV", "WANDB_DIR", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}
)
"""Files and states of this computer."""
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read(path: Path) -> dict[str, str]:
    """Return the variables of a file, and mask its secrets from now on. Raises SettingsError."""
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"--env-file {path} cannot be read: {why(error)}; copy .env.example to it, and fill in"
            " its values"
        ) from error
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        name = binding.key
        if binding.error or (name is not None and not NAME.fullmatch(name)):
            raise SettingsError(
                f"{path}, line {binding.original.line}: expected NAME=value; a value with blanks"
                " or # needs quotes"
            )
        if name is not None and binding.value is not None:
            values[name] = binding.value
    secret_text.remember_environment(values)
    return values


def merged(file: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the file's variables with those of the environment for what the file leaves empty."""
    given = {name: value for name, value in file.items() if not variables.means_unset(value)}
    return {**environ, **given}


def hub_token(values: Mapping[str, str]) -> str | None:
    """Return the Hub's token. Raises SettingsError for one that no token can be."""
    for name in HUB_TOKENS:
        try:
            token = variables.secret(values.get(name, ""))
        except ValueError as error:
            raise SettingsError(f"{name}=***: {error}") from error
        if token is not None:
            secret_text.remember(token)
            return token
    return None


def for_machine(values: Mapping[str, str]) -> dict[str, str]:
    """Return what goes up: only what a training reads. Raises SettingsError."""
    up = {
        name: variables.bare(value)
        for name, value in values.items()
        if GOES_UP.fullmatch(name) and name not in STAYS and not variables.means_unset(value)
    }
    if (token := hub_token(values)) is not None:
        up["HF_TOKEN"] = token
    return dict(sorted(up.items()))


def text(values: Mapping[str, str]) -> str:
    """Return the content of the machine's file, `NAME='value'` as a shell reads it."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
