"""Group `accounts`: logins at the Hub and at W&B, each tried at its server."""

from __future__ import annotations

import base64
import json
import netrc
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.training import settings as training_settings

TIMEOUT_S: Final = 10.0
REFUSED: Final = (401, 403)
VIEWER: Final = json.dumps({"query": "query { viewer { username entity } }"}).encode()
"""W&B's GraphQL query for whose key it is, as wandb's own login sends it."""


def _get(url: str, authorization: str, content: bytes | None = None) -> Any:
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=content, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.loads(answer.read(1_000_000))


def hub(context: Context) -> Finding:
    """Whether the Hub accepts the token, if there is one."""
    del context
    if find_spec("huggingface_hub") is None:
        return skipped("huggingface_hub is not installed")
    from huggingface_hub import constants, get_token

    token = get_token()
    secret_text.remember(token)
    if constants.is_offline_mode():
        return skipped("HF_HUB_OFFLINE is set")
    if token is None:
        return skipped("no token (HF_TOKEN): public models need none")
    try:
        name = _get(f"{constants.ENDPOINT}/api/whoami-v2", f"Bearer {token}").get("name")
    except urllib.error.HTTPError as error:
        with error:
            if error.code in REFUSED:
                return failure(f"the Hub refuses the token (HTTP {error.code})", "hf auth login")
            return warning(f"the Hub answered HTTP {error.code}", "hf auth whoami")
    except (OSError, ValueError, AttributeError) as error:
        return warning(f"the Hub does not answer: {_reason(error)}", "hf auth whoami")
    return ok(f"logged in at the Hub as {name}")


def wandb(context: Context) -> Finding:
    """Whether W&B accepts the key, if there is one."""
    mode = training_settings.wandb_options().get("wandb.mode", "online")
    if mode != "online":
        return skipped(f"WANDB_MODE is {mode}")
    url = training_settings.wandb_url().rstrip("/")
    key = _wandb_key(context, url)
    if key is None:
        return skipped("no key (WANDB_API_KEY): only --use-wandb needs one")
    secret_text.remember(key)
    authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    cure = "wandb login --relogin"
    try:
        viewer = _get(f"{url}/graphql", authorization, VIEWER)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        with error:
            if error.code in REFUSED:
                return failure(f"W&B refuses the key (HTTP {error.code})", cure)
            return warning(f"W&B answered HTTP {error.code}", cure)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return warning(f"W&B does not answer at {url}: {_reason(error)}", cure)
    if not isinstance(viewer, dict):
        return failure(f"W&B at {url} does not know the key", cure)
    return ok(f"logged in at W&B as {viewer.get('entity') or viewer.get('username')}")


def _wandb_key(context: Context, url: str) -> str | None:
    """Return the key of the environment, else that of ~/.netrc."""
    if context.settings.wandb_api_key is not None:
        return context.settings.wandb_api_key.get_secret_value()
    host = urlsplit(url).hostname or ""
    for path in (Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found is not None:
            return found[2]
    return None


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, OSError) and cause.strerror:
        return why(cause)
    return f"{type(error).__name__}: {cause}"


CHECKS = (Check("accounts", "hub", hub), Check("accounts", "wandb", wandb))
