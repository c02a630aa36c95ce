"""Upload a data set. Folder → a data set repository on the Hub, private if it is created here.

Everything is one commit, so the repository never shows half a data set. An upload that is repeated
sends only files that the Hub does not have. LeRobot finds a data set's format by a tag of its
version, which is set with each upload.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot import layout
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

REPO_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
AGAIN: Final = "crane-x7-remote record {folder} --upload-only --push {repo_id}"
"""The command that tries it again, without a robot."""
CARD: Final = """---
tags:
- LeRobot
- crane_x7
task_categories:
- robotics
configs:
- config_name: default
  data_files: data/*/*.parquet
---

Episodes of a CRANE-X7, a LeRobotDataset {version}. Joints are in rad.
"""


def check(repo_id: str) -> None:
    """Raise DataError unless `repo_id` can be a repository and there is a token."""
    from huggingface_hub import get_token

    if REPO_ID.fullmatch(repo_id) is None:
        raise DataError(f"{repo_id!r} is no repository, expected owner/name")
    token = get_token()
    secret_text.remember(token)
    if token is None:
        raise DataError(f"{repo_id}: no token; set HF_TOKEN to one with write access")


def push(folder: Path, repo_id: str) -> str:
    """Upload the data set, and say where it is; raises DataError, and the folder stays whole."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not (folder / layout.INFO).exists():
        raise DataError(f"{folder}: holds no data set")
    card = folder / "README.md"
    if not card.exists():
        card.write_text(CARD.format(version=layout.VERSION), encoding="utf-8")
    api = HfApi()
    kind = "dataset"
    try:
        api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        is_private = api.repo_info(repo_id, repo_type=kind).private
        if not is_private:
            logger.warning("%s is public: everyone will see the episodes' images", repo_id)
        done = api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=folder,
            ignore_patterns=[f"{layout.STAGING}/*", "*.partial"],
            delete_patterns=["data/*", "videos/*", "meta/*"],
            commit_message="episodes",
        )
        try:
            api.delete_tag(repo_id, tag=layout.VERSION, repo_type=kind)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
        api.create_tag(repo_id, tag=layout.VERSION, revision=done.oid, repo_type=kind)
    except HfHubHTTPError as error:
        raise DataError(
            f"{repo_id}: the Hub answered {error.response.status_code} ({shown(error)}); check the"
            " name, and that HF_TOKEN has write access, then"
            f" {AGAIN.format(folder=folder, repo_id=repo_id)}"
        ) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{repo_id}: upload failed: {type(error).__name__}: {shown(error)}; the data set is in"
            f" the folder: {AGAIN.format(folder=folder, repo_id=repo_id)}"
        ) from error
    return f"{folder} is on the Hub: {repo_id}, {'private' if is_private else 'public'}"
