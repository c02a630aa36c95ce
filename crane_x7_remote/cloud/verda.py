"""Verda (formerly DataCrunch): offers, machines and OS volumes by its HTTP API, version 1.

An account's id and secret → a token → lists and orders. Volumes are deleted separately, so that
`delete_machine` always keeps them: an interrupted deletion then costs a disk, not a checkpoint.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
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

BASE_URL: Final = "https://api.verda.com/v1"
TAG: Final = "crane-x7"
"""Key of the tag that holds the label."""
STATES: Final = {
    "new": State.STARTING,
    "ordered": State.STARTING,
    "validating": State.STARTING,
    "provisioning": State.STARTING,
    "pending": State.STARTING,
    "restoring": State.STARTING,
    "running": State.RUNNING,
    "offline": State.STOPPED,
    "starting_hibernation": State.STOPPED,
    "hibernating": State.STOPPED,
    "discontinued": State.EVICTED,
    "no_capacity": State.FAILED,
    "error": State.FAILED,
    "deleting": State.ENDING,
    "notfound": State.GONE,
}
"""Verda's word → state; any other word is UNKNOWN: alive."""
FINAL: Final = ("discontinued",)
GONE_ANSWERS: Final = ("a discontinued instance", "invalid instance id", "not found")
"""What a deletion answers for a machine that is gone."""
MACHINE_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{7,63}")
HOURS_PER_MONTH: Final = 730


class Verda:
    """One account at Verda."""

    name = "verda"
    keeps_volumes = True
    self_end = SelfEnd(
        "nothing: a machine that is switched off may cost as much as a running one until it is"
        " deleted from here, and Verda has no key that could end one machine alone"
    )

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        base_url: str = BASE_URL,
        patience: Patience | None = None,
    ) -> None:
        secret_text.remember(client_secret)
        self._login = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        self._token: tuple[str, float] | None = None
        """The access token, and until when it is used, monotonic s."""
        self._api = Api(self.name, base_url, self._headers, patience)

    def check_key(self) -> None:
        """Raise CloudKeyError if Verda refuses the key."""
        self._token = None
        try:
            self._ask("GET", "/instance-types", params={"currency": "usd"})
        except StatusError as error:
            if error.status != 403:
                raise
            raise CloudKeyError(f"verda refuses the key: {error}; see docs/cloud.md") from error

    def offers(self, wanted: Wanted) -> list[Offer]:
        """Return the instance types that are available now, cheapest first."""
        with listing(self.name, "offers"):
            types = self._rows("/instance-types", {"currency": "usd"})
            spot = str(wanted.spot).lower()
            places = self._rows("/instance-availability", {"isSpot": spot})
            price = "spot_price" if wanted.spot else "price_per_hour"
            fitting = {
                row["instance_type"]: (_gpu_name(row), float(row[price]))
                for row in types
                if _fits(row, wanted)
            }
            found = [
                Offer(self.name, kind, name, wanted.gpus, cost, wanted.spot, place["location_code"])
                for place in places
                if wanted.location in (None, place["location_code"])
                for kind in place["availabilities"]
                if kind in fitting
                for name, cost in (fitting[kind],)
            ]
        return sorted(found, key=lambda each: (each.price_per_hour, each.location))

    def create(self, order: Order) -> str:
        """Order the machine once."""
        offer = order.offer
        body: dict[str, Any] = {
            "instance_type": offer.offer_id,
            "image": order.boot_volume_id or order.image,
            "hostname": order.label,
            "description": order.label,
            "ssh_key_ids": [self._key_id(order)],
            "location_code": offer.location,
            "is_spot": offer.spot,
            "contract": "SPOT" if offer.spot else "PAY_AS_YOU_GO",
            "tags": [{"key": TAG, "value": order.label}],
        }
        if order.boot_volume_id is None:
            body["os_volume"] = {"name": order.label, "size": order.disk_gb}
            if offer.spot:  # without spot the API refuses it
                body["os_volume"]["on_spot_discontinue"] = "keep_detached"
        return _machine_id(self._api.order("POST", "/instances", body))

    def machines(self) -> list[Machine]:
        """Return every machine of the account."""
        with listing(self.name, "machines"):
            return [_machine(row) for row in self._rows("/instances")]

    def volumes(self) -> list[Volume]:
        """Return every volume, the trash included."""
        with listing(self.name, "volumes"):
            rows = [(row, False) for row in self._rows("/volumes")]
            rows += [(row, True) for row in self._rows("/volumes/trash")]
            return [_volume(row, trashed) for row, trashed in rows if not _is_erased(row)]

    def delete_machine(self, machine_id: str) -> bool:
        """Delete a machine; `volume_ids: []` keeps all its volumes."""
        body = {"id": [machine_id], "action": "delete", "volume_ids": []}
        try:
            answer = self._ask("PUT", "/instances", body)
        except StatusError as error:
            if _says_gone(error.status, error.body):
                return True
            raise DeleteRefusedError(str(error)) from error
        except NoAnswerError as error:
            raise DeleteRefusedError(str(error)) from error
        for part in answer if isinstance(answer, list) else []:
            _check_part(part)
        return False

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume for good."""
        try:
            self._ask("DELETE", f"/volumes/{volume_id}", {"is_permanent": True})
        except StatusError as error:
            if error.status != 404:
                raise DeleteRefusedError(str(error)) from error

    def forget(self, label: str) -> None:
        """Remove the login key that was stored for the order."""
        keys = [row["id"] for row in self._rows("/sshkeys") if row["name"] == label]
        if keys:
            self._ask("DELETE", "/sshkeys", {"keys": keys})

    def close(self) -> None:
        """Close its connections."""
        self._api.close()

    def _key_id(self, order: Order) -> str:
        """Return the id of the order's login key, storing it under the label if it is new."""
        wanted = order.ssh_public_key.split()[:2]
        try:
            for row in self._rows("/sshkeys"):
                if str(row["key"]).split()[:2] == wanted:
                    return str(row["id"])
            body = {"name": order.label, "key": order.ssh_public_key}
            answer = self._api.order("POST", "/sshkeys", body)
            return _machine_id(answer)
        except ProviderError as error:  # of the key, which costs nothing: not of a machine
            raise CreateRefusedError(
                f"verda did not store the login key, nothing was ordered: {error}"
            ) from error

    def _rows(self, path: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        rows = self._ask("GET", path, params=params)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise NoAnswerError(f"verda: {path}: expected a list, got {log_text.shown(rows, 80)}")
        return rows

    def _ask(
        self, method: str, path: str, body: Any = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """Send a read or deletion; a token that is refused is replaced once."""
        had_token = self._token is not None
        try:
            return self._api.repeat(method, path, body, params)
        except CloudKeyError:
            if not had_token:
                raise
            self._token = None
            return self._api.repeat(method, path, body, params)

    def _headers(self) -> dict[str, str]:
        if self._token is None or time.monotonic() > self._token[1]:
            try:
                answer = self._api.repeat("POST", "/oauth2/token", self._login, headers={})
            except StatusError as error:
                if error.status in (400, 403):
                    raise CloudKeyError(
                        f"verda refuses DATACRUNCH_CLIENT_ID and DATACRUNCH_CLIENT_SECRET: {error}"
                    ) from error
                raise
            try:
                token, seconds = str(answer["access_token"]), float(answer["expires_in"])
            except (KeyError, TypeError, ValueError) as error:
                raise NoAnswerError("verda: the login has another form than expected") from error
            secret_text.remember(token)
            self._token = (token, time.monotonic() + max(seconds - 120, seconds / 2))
        return {"Authorization": f"Bearer {self._token[0]}"}


def _fits(row: Mapping[str, Any], wanted: Wanted) -> bool:
    gpus = row["gpu"]["number_of_gpus"]
    price = float(row["spot_price" if wanted.spot else "price_per_hour"])
    cap = wanted.max_price_per_hour
    return (
        gpus == wanted.gpus
        and any(is_model(str(row.get(key)), wanted.gpu_model) for key in ("model", "name"))
        and price > 0
        and (cap is None or price <= cap)
    )


def _gpu_name(row: Mapping[str, Any]) -> str:
    return str(row.get("model") or row["name"])


def _machine_id(text: str) -> str:
    """Return the id of an answer: plain text, quoted text, or JSON with an id."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, dict):
        value = value.get("id")
    word = str(value).strip().strip('"')
    if not MACHINE_ID.fullmatch(word):
        raise CreateUnclearError(
            f"verda accepted the order and named no machine: {log_text.shown(text, 80)!r}"
        )
    return word


def _machine(row: Mapping[str, Any]) -> Machine:
    status = str(row["status"])
    tags = row.get("tags") or []
    names = [tag.get("value") for tag in tags if tag.get("key") == TAG]
    names += [row.get("hostname"), row.get("description")]
    volumes = [row.get("os_volume_id"), *(row.get("volume_ids") or [])]
    return Machine(
        machine_id=str(row["id"]),
        label=next((name for name in names if own_label(name)), None),
        state=STATES.get(status, State.UNKNOWN),
        status=status,
        address=_address(row.get("ip")),
        price_per_hour=float(row["price_per_hour"]) if row.get("price_per_hour") else None,
        volume_ids=tuple(dict.fromkeys(str(each) for each in volumes if each)),
        location=row.get("location") or row.get("location_code"),
        created_s=_seconds(row.get("created_at")),
        final=status in FINAL,
    )


def _address(ip: object) -> SshAddress | None:
    """Return the address; a stand-in for Verda adds a port to the host."""
    if not isinstance(ip, str) or not ip:
        return None
    host, _, port = ip.partition(":") if ip.count(":") == 1 else (ip, "", "")
    return SshAddress(host, int(port or 22))


def _volume(row: Mapping[str, Any], trashed: bool) -> Volume:
    tags = row.get("tags") or []
    names = [tag.get("value") for tag in tags if tag.get("key") == TAG] + [row.get("name")]
    price = row.get("base_hourly_cost")
    if price is None and row.get("monthly_price") is not None:
        price = float(row["monthly_price"]) / HOURS_PER_MONTH
    return Volume(
        volume_id=str(row["id"]),
        label=next((name for name in names if own_label(name)), None),
        is_os=bool(row.get("is_os_volume")),
        location=str(row.get("location")),
        size_gb=int(row.get("size") or 0),
        machine_id=row.get("instance_id"),
        price_per_hour=None if price is None else float(price),
        trashed=trashed,
        name=str(row.get("name") or ""),
    )


def _is_erased(row: Mapping[str, Any]) -> bool:
    return row.get("status") == "deleted" or row.get("is_permanently_deleted") is True


def _says_gone(status: int, body: str) -> bool:
    return status == 404 or any(words in body.lower() for words in GONE_ANSWERS)


def _check_part(part: object) -> None:
    """Raise DeleteRefusedError if one machine's part of a 207 answer is an error."""
    if not isinstance(part, dict):
        return
    status, text = part.get("status") or part.get("statusCode"), json.dumps(part)
    is_error = "error" in part or (isinstance(status, int) and status >= 400)
    if is_error and not _says_gone(status if isinstance(status, int) else 0, text):
        raise DeleteRefusedError(f"verda refused the deletion: {log_text.shown(text, 200)}")


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
