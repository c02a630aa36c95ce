"""Vast.ai: offers of hosts, contracts with them; its HTTP API, version 0, lists in version 1.

A machine is a container whose disk goes with it: there are no volumes to keep. Interruptible
machines are bids, and one that is outbid is stopped and costs its disk until it is destroyed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Final

from crane_x7_remote.cloud.gpu_names import is_model
from crane_x7_remote.cloud.http import Api, NoAnswerError, Patience, StatusError, listing
from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    DeleteRefusedError,
    ProviderError,
)
from crane_x7_remote.cloud.self_end import SelfEnd
from crane_x7_remote.cloud.types import (
    Machine,
    Offer,
    Order,
    SshAddress,
    State,
    Volume,
    Wanted,
    own_label,
)
from crane_x7_remote.errors import CloudKeyError
from crane_x7_vla_rl import log_text, secret_text

BASE_URL: Final = "https://console.vast.ai"
PAGE: Final = 25
MOST_PAGES: Final = 400
BID_MARGIN: Final = 1.1
"""Bids above the lowest one that counts, so that the next one does not end the machine at once."""
LAUNCH: Final = "ssh_direc ssh_proxy"
"""Vast's words for: run sshd in the image, reachable directly and through Vast's proxy."""
STATES: Final = {
    "None": State.STARTING,
    "created": State.STARTING,
    "loading": State.STARTING,
    "rebooting": State.STARTING,
    "running": State.RUNNING,
    "stopped": State.STOPPED,
    "exited": State.STOPPED,
    "frozen": State.STOPPED,
    "error": State.FAILED,
}
"""Vast's word of the container → state; any other word, offline and unknown too, is UNKNOWN."""


class Vast:
    """One account at Vast.ai."""

    name = "vast"
    keeps_volumes = False

    def __init__(
        self, api_key: str, base_url: str = BASE_URL, patience: Patience | None = None
    ) -> None:
        secret_text.remember(api_key)
        headers = {"Authorization": f"Bearer {api_key}"}
        self._api = Api(self.name, base_url, lambda: headers, patience)
        self.self_end = SelfEnd(
            "everything, disk included: the machine destroys itself",
            "DELETE",
            base_url.rstrip("/") + "/api/v0/instances/${CONTAINER_ID}/",
            "CONTAINER_API_KEY",
            ("CONTAINER_ID",),
            "{}",
        )

    def check_key(self) -> None:
        """Raise CloudKeyError if Vast.ai refuses the key."""
        try:
            self._api.repeat("GET", "/api/v0/users/current/")
        except StatusError as error:
            if error.status != 403:
                raise
            raise CloudKeyError(f"vast refuses the key: {error}; see docs/cloud.md") from error

    def offers(self, wanted: Wanted) -> list[Offer]:
        """Return the hosts' offers that fit, cheapest first."""
        question = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "rented": {"eq": False},
            "num_gpus": {"eq": wanted.gpus},
            "disk_space": {"gte": wanted.disk_gb},
            "order": [["dph_total", "asc"]],
            "type": "bid" if wanted.spot else "on-demand",
            "allocated_storage": wanted.disk_gb,
            "limit": 1000,
        }
        with listing(self.name, "offers"):
            rows = self._api.repeat("POST", "/api/v0/bundles/", question)["offers"]
            found = [_offer(row, wanted) for row in rows if _fits(row, wanted)]
        cap = wanted.max_price_per_hour
        within = [each for each in found if cap is None or each.price_per_hour <= cap]
        return sorted(within, key=lambda each: (each.price_per_hour, each.offer_id))

    def create(self, order: Order) -> str:
        """Order the machine once. An error that names a contract has made one."""
        offer = order.offer
        body: dict[str, Any] = {
            "client_id": "me",
            "image": order.image,
            "disk": order.disk_gb,
            "label": order.label,
            "price": offer.price_per_hour if offer.spot else None,
            "env": {"-p 22:22": "1"},
        }
        if order.command:  # the image's own sshd reads its key from the environment
            body |= {"runtype": "args", "args": list(order.command)}
            body["env"] |= {"SSH_PUBLIC_KEY": order.ssh_public_key}
        else:
            body |= {"runtype": LAUNCH, "onstart": _authorise(order.ssh_public_key)}
        text = self._api.order("PUT", f"/api/v0/asks/{offer.offer_id}/", body)
        return _contract(text)

    def machines(self) -> list[Machine]:
        """Return every machine of the account, all pages."""
        found: dict[str, Machine] = {}
        token: str | None = None
        seen: set[str] = set()
        with listing(self.name, "machines"):
            for _ in range(MOST_PAGES):
                page = self._page(token)
                found |= {str(row["id"]): _machine(row) for row in page["instances"]}
                token = page.get("next_token")
                if not token:
                    return list(found.values())
                if token in seen:
                    raise ValueError(f"page {token!r} comes twice")
                seen.add(token)
            raise ValueError(f"more than {MOST_PAGES} pages")

    def volumes(self) -> list[Volume]:
        """Return none: a machine's disk goes with it, and this program makes no other."""
        return []

    def delete_machine(self, machine_id: str) -> bool:
        """Destroy a machine with its disk."""
        try:
            answer = self._api.repeat("DELETE", f"/api/v0/instances/{machine_id}/", {})
        except StatusError as error:
            if error.status in (404, 410):
                return True
            raise DeleteRefusedError(str(error)) from error
        except NoAnswerError as error:
            raise DeleteRefusedError(str(error)) from error
        if isinstance(answer, dict) and answer.get("success") is False:
            if "no_such_instance" in json.dumps(answer):
                return True
            raise DeleteRefusedError(
                f"vast refused the deletion: {log_text.shown(answer.get('msg') or answer, 200)}"
            )
        return False

    def delete_volume(self, volume_id: str) -> None:
        """Raise ProviderError: this program has no volumes there."""
        raise ProviderError(f"vast: volume {volume_id} is not this program's; use Vast.ai's page")

    def forget(self, label: str) -> None:
        """Do nothing: the login key was part of the order."""

    def close(self) -> None:
        """Close its connections."""
        self._api.close()

    def _page(self, token: str | None) -> Mapping[str, Any]:
        words = {"limit": str(PAGE), "order_by": '[{"col": "id", "dir": "asc"}]'}
        if token:
            words["after_token"] = token
        page = self._api.repeat("GET", "/api/v1/instances/", params=words)
        if not isinstance(page, dict) or not isinstance(page.get("instances"), list):
            raise NoAnswerError(f"vast: no list of instances in {log_text.shown(page, 80)}")
        return page


def _fits(row: Mapping[str, Any], wanted: Wanted) -> bool:
    place = str(row.get("geolocation") or "")
    parts = {place.casefold(), *(part.strip().casefold() for part in place.split(","))}
    return (
        int(row["num_gpus"]) == wanted.gpus
        and is_model(str(row["gpu_name"]), wanted.gpu_model)
        and (wanted.location is None or wanted.location.casefold() in parts)
    )


def _offer(row: Mapping[str, Any], wanted: Wanted) -> Offer:
    """Return an offer; a bid's price is above the lowest that counts, with the disk's share."""
    total = float(row["dph_total"])
    if wanted.spot:
        disk = max(total - float(row.get("dph_base") or total), 0.0)
        total = round(float(row["min_bid"]) * BID_MARGIN + disk, 4)
    place = str(row.get("geolocation") or "?")
    name = str(row["gpu_name"]).replace("_", " ")
    return Offer("vast", str(row["id"]), name, wanted.gpus, total, wanted.spot, place)


def _authorise(public_key: str) -> str:
    """Return the lines that let the key log in, run once at the container's start."""
    line = shlex.quote(public_key.strip())
    return (
        "mkdir -p ~/.ssh && chmod 700 ~/.ssh && printf '%s\\n' "
        f"{line} >> ~/.ssh/authorized_keys && chmod 600 ~/.ssh/authorized_keys"
    )


def _contract(text: str) -> str:
    """Return the id of the contract that an answer to an order names."""
    try:
        answer = json.loads(text)
        success, contract = answer.get("success"), answer.get("new_contract")
    except (ValueError, AttributeError) as error:
        raise CreateUnclearError(
            f"vast: expected the contract's number, got {log_text.shown(text, 120)!r}"
        ) from error
    if success is True and contract is not None:
        return str(contract)
    why = log_text.shown(answer.get("msg") or answer.get("error") or answer, 200)
    if contract is not None:
        raise CreateUnclearError(f"vast made a contract and reports an error: {why}", str(contract))
    if success is False:
        raise CreateRefusedError(f"vast refused the order: {why}")
    raise CreateUnclearError(f"vast answered the order with {why}")


def _machine(row: Mapping[str, Any]) -> Machine:
    status = str(row.get("actual_status"))
    state = STATES.get(status, State.UNKNOWN)
    if state is State.STOPPED and row.get("is_bid"):
        state = State.EVICTED  # nobody here ever stops one: it was outbid
    price = row.get("dph_total")
    return Machine(
        machine_id=str(row["id"]),
        label=own_label(row.get("label")),
        state=state,
        status=status,
        address=_address(row),
        price_per_hour=None if price is None else float(price),
        location=row.get("geolocation"),
        created_s=row.get("start_date"),
    )


def _address(row: Mapping[str, Any]) -> SshAddress | None:
    """Return the direct address, else the one of Vast's proxy."""
    ports = row.get("ports") or {}
    direct = ports.get("22/tcp") or []
    host = str(row.get("public_ipaddr") or "").strip()
    if host and direct:
        return SshAddress(host, int(direct[0]["HostPort"]))
    if row.get("ssh_host") and row.get("ssh_port"):
        return SshAddress(str(row["ssh_host"]), int(row["ssh_port"]))
    return None
