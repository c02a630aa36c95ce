"""A repository on the Hub and what can be wrong with it: the Hub's answer → words, or an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.base import PolicyLoadError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


class HubError(PolicyLoadError):
    """The model is neither available from the Hub nor in the cache."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`status` is the HTTP status of the Hub's refusal, if any."""
        super().__init__(message)
        self.status = status


class Absent(HubError):
    """Neither a folder nor an id, or neither on the Hub nor in the cache now."""


class Unreachable(Exception):
    """The Hub is silent, overloaded, broken or switched off: the cache may have a copy."""


@dataclass(frozen=True)
class Source:
    """One repository on the Hub."""

    name: str
    """owner/name."""
    revision: str
    """Branch, tag or commit."""
    token: str | None = None
    """None: huggingface_hub looks for it: HF_TOKEN or the token that `hf auth login` stored."""
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


def explain(error: HfHubHTTPError, source: Source) -> str:
    """Return the meaning of a temporary status; raises HubError for a permanent one."""
    from huggingface_hub.errors import RevisionNotFoundError

    status = error.response.status_code
    said = f"{source}: the Hub answered {status}"
    if status == 429:
        return f"{said}: too many requests from this machine"
    if status >= 500:
        return f"{said}: a failure of the server"
    if isinstance(error, RevisionNotFoundError):
        said = (
            f"{source.name} on the Hub has no revision {source.revision!r}; give a branch, a tag or"
            " a full commit hash"
        )
    elif status in (401, 403):
        said += (
            ": no access with this token, or no such repository; set HF_TOKEN to a token with read"
            " access, accept the model's licence on its page if it has one, and check the name"
        )
    elif status == 404:
        said += f": this {source.kind} does not exist; check the name"
    else:
        said += f": {shown(error)}"
    raise HubError(said, status) from error
