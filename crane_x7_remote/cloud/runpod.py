"""Runpod: pods by its GraphQL API; values travel as variables, so that nothing must be escaped.

A pod's disk goes with it. Interruptible pods are bids for each GPU, and one that was taken away is
EXITED and costs its disk until it is terminated. Network volumes are listed and never made here.
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

BASE_URL: Final = "https://api.runpod.io"
PATH: Final = "/graphql"
BID_MARGIN: Final = 1.1
"""Bids above the lowest one that counts, so that the next one does not end the pod at once."""
GPU_TYPES: Final = """query GpuTypes($gpus: Int!) { gpuTypes { id displayName maxGpuCount
 lowestPrice(input: {gpuCount: $gpus}) { minimumBidPrice uninterruptablePrice stockStatus } } }"""
PODS: Final = """query Pods { myself { pods { id name desiredStatus podType costPerHr
 runtime { ports { ip isIpPublic privatePort publicPort } }
 machine { gpuDisplayName location } } } }"""
VOLUMES: Final = "query Volumes { myself { networkVolumes { id name size dataCenterId } } }"
ME: Final = "query Me { myself { id } }"
TERMINATE: Final = "mutation End($input: PodTerminateInput!) { podTerminate(input: $input) }"
END_SELF: Final = 'mutation { podTerminate(input: {podId: "${RUNPOD_POD_ID}"}) }'
ON_DEMAND: Final = """mutation Rent($input: PodFindAndDeployOnDemandInput!) {
 podFindAndDeployOnDemand(input: $input) { id costPerHr } }"""
SPOT: Final = """mutation Rent($input: PodRentInterruptableInput!) {
 podRentInterruptable(input: $input) { id costPerHr } }"""
STATES: Final = {
    "CREATED": State.STARTING,
    "RESTARTING": State.STARTING,
    "RUNNING": State.RUNNING,
    "EXITED": State.STOPPED,
    "PAUSED": State.STOPPED,
    "DEAD": State.FAILED,
    "TERMINATED": State.GONE,
}
"""Runpod's word → state; any other word is UNKNOWN: alive."""
SPOT_TYPE: Final = "INTERRUPTABLE"
SURE_REFUSALS: Final = (
    "no longer any instances", "no instances", "not enough", "balance", "funds", "spend limit",
    "bid price", "outbid", "quota",
)  # fmt: skip
"""Words of errors that come before anything is made."""
SURE_CODES: Final = ("BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED")
GONE: Final = ("not found", "does not exist", "no such pod")


class Runpod:
    """One account at Runpod."""

    name = "runpod"
    keeps_volumes = False

    def __init__(
        self, api_key: str, base_url: str = BASE_URL, patience: Patience | None = None
    ) -> None:
        secret_text.remember(api_key)
        headers = {"Authorization": f"Bearer {api_key}"}
        self._api = Api(self.name, base_url, lambda: headers, patience)
        self.self_end = SelfEnd(
            "everything, disk included: the pod terminates itself",
            "POST",
            base_url.rstrip("/") + PATH,
            "RUNPOD_API_KEY",
            ("RUNPOD_POD_ID",),
            json.dumps({"query": END_SELF}),
        )

    def check_key(self) -> None:
        """Raise CloudKeyError if Runpod refuses the key."""
        try:
            me = self._ask(ME)["myself"]
        except StatusError as error:
            if error.status != 403:
                raise
            raise CloudKeyError(f"runpod refuses the key: {error}; see docs/cloud.md") from error
        if me is None:
            raise CloudKeyError("runpod refuses the key: it belongs to nobody; see docs/cloud.md")

    def offers(self, wanted: Wanted) -> list[Offer]:
        """Return the GPU types that are in stock, cheapest first; prices are per GPU there."""
        key = "minimumBidPrice" if wanted.spot else "uninterruptablePrice"
        margin = BID_MARGIN if wanted.spot else 1.0
        found = []
        with listing(self.name, "offers"):
            for row in self._ask(GPU_TYPES, gpus=wanted.gpus)["gpuTypes"]:
                price = (row.get("lowestPrice") or {}).get(key)
                names = (row["displayName"], row["id"])
                if not price or not any(is_model(str(name), wanted.gpu_model) for name in names):
                    continue
                if int(row.get("maxGpuCount") or wanted.gpus) < wanted.gpus:
                    continue
                total = round(float(price) * margin * wanted.gpus, 4)
                place = wanted.location or "anywhere"
                found.append(
                    Offer(self.name, row["id"], names[0], wanted.gpus, total, wanted.spot, place)
                )
        cap = wanted.max_price_per_hour
        within = [each for each in found if cap is None or each.price_per_hour <= cap]
        return sorted(within, key=lambda each: (each.price_per_hour, each.offer_id))

    def create(self, order: Order) -> str:
        """Order the pod once."""
        offer = order.offer
        body: dict[str, Any] = {
            "name": order.label,
            "imageName": order.image,
            "gpuTypeId": offer.offer_id,
            "gpuCount": offer.gpus,
            "cloudType": "ALL",
            "containerDiskInGb": order.disk_gb,
            "volumeInGb": 0,
            "ports": "22/tcp",
            "startSsh": True,
            "supportPublicIp": True,
            "dockerArgs": shlex.join(order.command),
            "env": [
                {"key": "PUBLIC_KEY", "value": order.ssh_public_key},
            ],
        }
        if offer.location != "anywhere":
            body["dataCenterId"] = offer.location
        if offer.spot:
            body["bidPerGpu"] = round(offer.price_per_hour / offer.gpus, 4)
        query = {"query": SPOT if offer.spot else ON_DEMAND, "variables": {"input": body}}
        return _pod_id(self._api.order("POST", PATH, query))

    def machines(self) -> list[Machine]:
        """Return every pod of the account."""
        with listing(self.name, "machines"):
            return [_machine(row) for row in self._ask(PODS)["myself"]["pods"]]

    def volumes(self) -> list[Volume]:
        """Return the network volumes, which are always somebody else's."""
        with listing(self.name, "volumes"):
            return [_volume(row) for row in self._ask(VOLUMES)["myself"]["networkVolumes"] or []]

    def delete_machine(self, machine_id: str) -> bool:
        """Terminate a pod with its disk."""
        try:
            self._ask(TERMINATE, input={"podId": machine_id})
        except ProviderError as error:
            if any(words in str(error).lower() for words in GONE):
                return True
            raise DeleteRefusedError(str(error)) from error
        return False

    def delete_volume(self, volume_id: str) -> None:
        """Raise ProviderError: this program has no volumes there."""
        raise ProviderError(f"runpod: volume {volume_id} is not this program's; use Runpod's page")

    def forget(self, label: str) -> None:
        """Do nothing: the login key was part of the order."""

    def close(self) -> None:
        """Close its connections."""
        self._api.close()

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a query, or a termination, repeatedly if need be, and return its data."""
        answer = self._api.repeat("POST", PATH, {"query": query, "variables": variables})
        if not isinstance(answer, dict):
            raise NoAnswerError(f"runpod: expected an object, got {log_text.shown(answer, 80)}")
        if answer.get("errors"):
            raise ProviderError(f"runpod: {_message(answer)}")
        data = answer.get("data")
        if not isinstance(data, dict):
            raise NoAnswerError(f"runpod: no data in {log_text.shown(answer, 80)}")
        return data


def _message(answer: Mapping[str, Any]) -> str:
    first = answer["errors"][0] if isinstance(answer["errors"], list) else answer["errors"]
    return log_text.shown(first.get("message") if isinstance(first, dict) else first, 200)


def _pod_id(text: str) -> str:
    """Return the id of the pod that an answer names; decide what an error means."""
    try:
        answer = json.loads(text)
        data = answer.get("data") or {}
    except (ValueError, AttributeError) as error:
        raise CreateUnclearError(
            f"runpod: expected the pod's id, got {log_text.shown(text, 120)!r}"
        ) from error
    made = next((value["id"] for value in data.values() if value and value.get("id")), None)
    if not answer.get("errors"):
        if made is None:
            raise CreateUnclearError("runpod accepted the order and named no pod")
        return str(made)
    why = _message(answer)
    if made is not None:
        raise CreateUnclearError(f"runpod made a pod and reports an error: {why}", str(made))
    first = answer["errors"][0] if isinstance(answer["errors"], list) else {}
    code = (first.get("extensions") or {}).get("code") if isinstance(first, dict) else None
    if code in SURE_CODES or any(words in why.lower() for words in SURE_REFUSALS):
        raise CreateRefusedError(f"runpod refused the order: {why}")
    raise CreateUnclearError(f"runpod answered the order with: {why}")


def _machine(row: Mapping[str, Any]) -> Machine:
    status = str(row["desiredStatus"])
    state = STATES.get(status, State.UNKNOWN)
    if state is State.RUNNING and not row.get("runtime"):
        state = State.STARTING
    if state is State.STOPPED and row.get("podType") == SPOT_TYPE:
        state = State.EVICTED  # nobody here ever stops one: it was taken away
    price = row.get("costPerHr")
    return Machine(
        machine_id=str(row["id"]),
        label=own_label(row.get("name")),
        state=state,
        status=status,
        address=_address(row),
        price_per_hour=None if price is None else float(price),
        location=(row.get("machine") or {}).get("location"),
    )


def _address(row: Mapping[str, Any]) -> SshAddress | None:
    for port in (row.get("runtime") or {}).get("ports") or []:
        if port.get("privatePort") == 22 and port.get("isIpPublic"):
            return SshAddress(str(port["ip"]), int(port["publicPort"]))
    return None


def _volume(row: Mapping[str, Any]) -> Volume:
    return Volume(
        volume_id=str(row["id"]),
        label=own_label(row.get("name")),
        is_os=False,
        location=str(row.get("dataCenterId")),
        size_gb=int(row.get("size") or 0),
        name=str(row.get("name") or ""),
    )
