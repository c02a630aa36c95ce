"""Environment variables of training: secrets, and values that files and flags override.

A training may start without `boot`, in a shell or a provider's start script, so this module reads
its variables, and no other module of this package does. `boot` checks the same ones earlier;
crane_x7_remote/settings.py documents them.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from crane_x7_vla_rl import old_names, secret_text, variables

if TYPE_CHECKING:
    from crane_x7_vla_rl.training.config.loader import Layer

WANDB_URL: Final = "https://api.wandb.ai"
VARIABLES: Final[Mapping[str, str]] = {
    "LIFT_SIMULATOR": "env.simulator",
    "LIFT_BACKEND": "env.backend",
    "LIFT_RENDER": "env.render",
    "VLA_MODEL_PATH": "start.pretrained",
    "OUTPUT_ROOT": "output.dir",
}
"""Variable → key of `RlConfig`."""
SFT_VARIABLES: Final[Mapping[str, str]] = {"OUTPUT_ROOT": "output.root"}
"""Variable → key of `SftConfig`."""

LEROBOT_VARIABLES: Final[Mapping[str, str]] = {
    "LEROBOT_CHECKPOINT_REPO_ID": "checkpoint.repo_id",
    "LEROBOT_WANDB_ENABLE": "wandb.enable",
    "LEROBOT_USE_ACCELERATE": "accelerate.use",
    "LEROBOT_ACCELERATE_NUM_PROCESSES": "accelerate.num_processes",
    "LEROBOT_ACCELERATE_MIXED_PRECISION": "accelerate.mixed_precision",
    "LEROBOT_ACCELERATE_CONFIG_FILE": "accelerate.config_file",
}
"""Variable → key of `train.remote.yaml`; it overrides the file."""
LEROBOT_CONFIG: Final = "LEROBOT_TRAIN_CONFIG"
"""Variable with the file's name, if no flag names it."""
LEROBOT_VENV: Final = "LEROBOT_VENV"
WANDB_OPTIONS: Final[Mapping[str, str]] = {
    "WANDB_PROJECT": "wandb.project",
    "WANDB_ENTITY": "wandb.entity",
    "WANDB_MODE": "wandb.mode",
}
"""Variable → option of LeRobot, which reads none of them."""

BLOB_VARIABLES: Final[Mapping[str, str]] = {
    "AZURE_STORAGE_ACCOUNT": "account",
    "AZURE_STORAGE_SAS_TOKEN": "sas",
    "AZURE_BLOB_ENDPOINT": "endpoint",
    "AZURE_BLOB_CONTAINER": "container",
    "AZURE_BLOB_PREFIX": "prefix",
    "BLOB_DEST_DIR": "folder",
}
"""Variable → what it says of a download from Azure."""


def output_root() -> Path:
    """Return the folder below which commands write by default."""
    return Path(variables.output_root(os.environ)).expanduser()


def is_first_process(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether this is the first, or the only, process of a run; torchrun sets RANK."""
    return (os.environ if environ is None else environ).get("RANK", "0") == "0"


def layers(
    environ: Mapping[str, str] | None = None, keys: Mapping[str, str] = VARIABLES
) -> list[Layer]:
    """Return what is set in `environ` (default: the process's); empty and `null` mean unset.

    `keys`: variable → key of the configuration.
    """
    from crane_x7_vla_rl.training.config.loader import Layer  # needs packages of extra `train`

    environ = os.environ if environ is None else environ
    found = {name: variables.bare(environ[name]) for name in keys if name in environ}
    return [
        Layer(name, {keys[name]: text})
        for name, text in found.items()
        if not variables.means_unset(text)
    ]


def _text(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(name, "")
    return None if variables.means_unset(text) else variables.bare(text)


def lerobot_venv(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the folder of LeRobot's environment, if a variable names it."""
    return _text(LEROBOT_VENV, os.environ if environ is None else environ)


def lerobot_config(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file that LEROBOT_TRAIN_CONFIG names."""
    text = _text(LEROBOT_CONFIG, os.environ if environ is None else environ)
    return None if text is None else Path(text).expanduser()


def wandb_options(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the variables of W&B mean for LeRobot."""
    environ = os.environ if environ is None else environ
    found = {key: _text(name, environ) for name, key in WANDB_OPTIONS.items()}
    return {key: text for key, text in found.items() if text is not None}


def wandb_url(environ: Mapping[str, str] | None = None) -> str:
    """Return W&B's address."""
    return _text("WANDB_BASE_URL", os.environ if environ is None else environ) or WANDB_URL


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `extra`, for a child process."""
    return {**os.environ, **extra}


def policy_api_key(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the key for a policy server; None if it is unset."""
    return _text("POLICY_API_KEY", os.environ if environ is None else environ)


def process_count(environ: Mapping[str, str] | None = None) -> int:
    """Return how many processes torchrun started; 1 without torchrun."""
    environ = os.environ if environ is None else environ
    return int(environ.get("WORLD_SIZE") or 1)


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a trainer below a process that torchrun started.

    The trainer's PyTorch is another release than torchrun's, so it must not use torchrun's store:
    it makes its own, on the next port of the same host.
    """
    found = {k: v for k, v in environment(extra).items() if not k.startswith("TORCHELASTIC_")}
    if port := found.get("MASTER_PORT"):
        found["MASTER_PORT"] = str(int(port) + 1)
    return found


def evaluation(environ: Mapping[str, str] | None = None) -> tuple[str | None, str | None]:
    """Return EVAL_EPISODES and EVAL_DEVICE."""
    environ = os.environ if environ is None else environ
    return _text("EVAL_EPISODES", environ), _text("EVAL_DEVICE", environ)


def blob(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the variables of a download from Azure say: account, sas, container, prefix,
    folder and endpoint."""
    environ = os.environ if environ is None else environ
    found = {key: _text(name, environ) for name, key in BLOB_VARIABLES.items()}
    return {key: text for key, text in found.items() if text is not None}


def local_process_count(environ: Mapping[str, str] | None = None) -> int:
    """Return how many processes torchrun started on this machine; 1 without torchrun."""
    environ = os.environ if environ is None else environ
    return int(environ.get("LOCAL_WORLD_SIZE") or 1)


def process_rank(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of this process among those that torchrun started; 0 without torchrun."""
    environ = os.environ if environ is None else environ
    return int(environ.get("RANK") or 0)


def line_to_complete() -> str | None:
    """Return what a shell wants completed; None where this process is no completion."""
    return variables.line_to_complete(os.environ)


def wandb_login_problem(environ: Mapping[str, str] | None = None) -> str | None:
    """Return why W&B cannot log in; None if a login exists or is not needed.

    A key in the environment or in the netrc file counts, as does WANDB_MODE=offline.
    """
    environ = os.environ if environ is None else environ
    if environ.get("WANDB_MODE", "online").strip() != "online" or environ.get("WANDB_API_KEY"):
        return None
    host = urlsplit(environ.get("WANDB_BASE_URL", WANDB_URL)).hostname or ""
    names = (environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc")
    try:
        known = [netrc.netrc(name).hosts for name in names if name and Path(name).is_file()]
    except (OSError, netrc.NetrcParseError):
        return None  # wandb reports the problem
    if any(host in hosts for hosts in known):
        return None
    return (
        f"--use-wandb: no login for W&B at {host}; set WANDB_API_KEY, run `wandb login` or"
        " set WANDB_MODE=offline to keep the run on this machine"
    )


def older_variables() -> list[str]:
    """Return a line for each variable of older documents that is set, and read no more."""
    return old_names.variable_hints(os.environ)


def tidy_environment() -> list[str]:
    """Strip this process's secrets for the libraries that read them, and mask them from now on.

    Returns a line for each secret that cannot be used.
    """
    secret_text.remember_environment(os.environ)
    texts = (*variables.READ_BY_LIBRARIES, *VARIABLES)
    meant, problems = variables.tidied(os.environ, variables.SECRETS, texts)
    for name in os.environ.keys() - meant.keys():
        del os.environ[name]
    os.environ.update(meant)
    return problems
