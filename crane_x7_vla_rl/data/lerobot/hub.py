"""Download a LeRobotDataset. `owner/name[@revision]` and patterns → a folder in the Hub's cache.

Only matching files are downloaded. Deadlines, retries and the cache come from `policies.hub`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies import hub

META: Final = ("meta/*",)
BRANCH: Final = "main"
"""The default revision."""
DOWNLOADS: Final = 4
"""Files that are downloaded in parallel."""


def fetch_dataset(repo_id: str, patterns: Sequence[str]) -> Path:
    """Return the folder with the repository's files that match one of `patterns`.

    Raises DataError if the data set does not exist, access is refused, or the Hub does not answer
    and the cache does not hold it.
    """
    from huggingface_hub import get_token, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    secret_text.remember(get_token())
    name, _, revision = repo_id.partition("@")
    source = hub.Source(name, revision or BRANCH, kind="dataset")
    try:
        found = hub.look_up(source)
    except hub.Unreachable as error:
        return _cached(source, repo_id, str(error))
    except hub.HubError as error:
        raise DataError(
            f"{name}: the Hub answered {error.status}; check the name and the revision, and set"
            " HF_TOKEN if the data set is private"
        ) from error
    files = sorted(file.rfilename for file in found.siblings or ())
    wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]
    if not wanted:
        raise DataError(
            f"{repo_id}: holds no {' or '.join(patterns)}; is it a LeRobotDataset v3? It holds"
            f" {', '.join(files[:5]) or 'nothing'}"
        )

    def get(file: str) -> Path:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=found.sha))

    try:
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            paths = list(pool.map(get, wanted))
    except (HfHubHTTPError, OSError) as error:
        raise DataError(
            f"{repo_id}: the download was interrupted ({type(error).__name__}: {shown(error)});"
            " start again: complete files are kept"
        ) from error
    folder = paths[0].parents[len(Path(wanted[0]).parts) - 1]
    hub.note_revision(source, folder)
    return folder


def _cached(source: hub.Source, repo_id: str, why: str) -> Path:
    folder = hub.cached(source, why)
    if folder is None:
        raise DataError(
            f"{repo_id}: {why}, and it is not in the cache; try again later, or download it on a"
            " machine that reaches the Hub and pass the folder"
        )
    return folder
