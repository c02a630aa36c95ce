"""What the Hub says before money is spent, and after an eviction. Ids, a token → answers.

A training fetches its data set from there and may leave its checkpoints there, so a wrong token or
name is said before a machine is rented. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

from crane_x7_remote.errors import CloudError, SettingsError
from crane_x7_vla_rl.log_text import shown

if TYPE_CHECKING:
    from crane_x7_remote.cloud.job import Job

logger = logging.getLogger(__name__)

MARKER: Final = re.compile(r"checkpoints/(\d+)/complete\.json")
"""The last file of a checkpoint's upload; without it the upload is half."""


class HubSilentError(CloudError):
    """The Hub does not answer."""


class HubState:
    """The Hub as one token sees it."""

    def __init__(self, token: str | None, endpoint: str | None = None) -> None:
        self._token, self._endpoint = token, endpoint

    def check(self, job: Job, resume: bool) -> None:
        """Raise SettingsError for what the training could not read or resume from."""
        if job.dataset is not None and "/" in job.dataset:
            self._ask("dataset_info", job.dataset, "dataset.repo_id")
        if job.repo_id is None:
            if resume:
                raise SettingsError(
                    "resume: no repository is named; give --checkpoint-repo-id owner/name"
                )
            return
        newest = self.newest(job.repo_id)
        if resume and newest is None:
            raise SettingsError(
                f"resume: {job.repo_id} holds no complete checkpoint; start with `cloud train`, or"
                " resume from a kept disk with `cloud resume_local`"
            )
        if not resume and newest is not None and job.kind == "lerobot":
            raise SettingsError(
                f"checkpoint.repo_id: {job.repo_id} holds step {newest} of a run; resume with"
                " `cloud resume`, or name another repository"
            )

    def newest(self, repo_id: str) -> int | None:
        """Return the step of the most advanced complete checkpoint; None without one.

        Raises HubSilentError, and SettingsError where the token is refused.
        """
        files = self._ask("list_repo_files", repo_id, "checkpoint.repo_id", may_be_new=True)
        steps = [int(found[1]) for name in files or () if (found := MARKER.fullmatch(str(name)))]
        return max(steps, default=None)

    def _ask(self, what: str, repo_id: str, key: str, may_be_new: bool = False) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
        )

        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            return getattr(api, what)(repo_id)
        except HFValidationError as error:
            raise SettingsError(f"{key} is {repo_id!r}, expected owner/name on the Hub") from error
        except GatedRepoError as error:
            raise SettingsError(
                f"{key}: {repo_id} asks for consent on its page; accept there with the account of"
                " HUGGINGFACE_HUB_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            if may_be_new and self._token:
                return None
            raise SettingsError(
                f"{key}: the Hub has no {repo_id}, or HUGGINGFACE_HUB_TOKEN may not read it"
            ) from error
        except HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status in (401, 403):
                raise SettingsError(
                    f"{key}: the Hub refuses HUGGINGFACE_HUB_TOKEN for {repo_id} ({status})"
                ) from error
            raise HubSilentError(f"the Hub answers {status} for {repo_id}") from error
        except Exception as error:  # its transport's errors differ between its releases
            raise HubSilentError(
                f"the Hub does not answer for {repo_id} ({shown(error, 120)}); nothing can be"
                " trained without it, so nothing was rented; try again later"
            ) from error
