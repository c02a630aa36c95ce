"""A stand-in for Vast.ai's API, as facts about the real one say: see `crane_x7_remote.cloud.vast`.

- The list has pages of at most 25, and a `next_token` while there are more.
- A bid below the lowest one returns an error and a contract.
- A machine that was outbid is `exited`, is still listed, and costs its disk until it is destroyed.
- `DELETE` of a machine that is gone is 404.
"""

from __future__ import annotations

import json
from typing import Any

from cloud.server import HTML, PATIENCE, Answer, FakeServer, Reply
from cloud.world import FakeMachine, World

from crane_x7_remote.cloud.vast import Vast

ASKS = {
    "11": ("H100 SXM", 1, 2.2, 0.9, "Sweden, SE"),
    "12": ("H100_PCIE", 1, 2.0, 0.7, "Iceland, IS"),
    "13": ("H100 SXM", 4, 8.8, 3.6, "Sweden, SE"),
    "14": ("L40S", 1, 0.9, 0.4, "Japan, JP"),
    "15": ("L40", 1, 0.8, 0.3, "Japan, JP"),
}
"""Ask → GPU, count, USD per hour, lowest bid, place."""
DISK = 0.02
STATUS = {
    "starting": "loading",
    "running": "running",
    "evicted": "exited",
    "stopped": "stopped",
    "failed": "error",
    "ending": "stopped",
}


class _Vast(Answer):
    def is_list(self, method: str, path: str, body: Any) -> bool:
        del body
        return method == "GET" and path == "/api/v1/instances/"

    def respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Reply:
        if self.headers.get("authorization") != f"Bearer {self.key}":
            return Reply(401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
        match method, path.strip("/").split("/"):
            case "GET", ["api", "v0", "users", "current"]:
                return Reply(200, {"id": 1, "credit": 10.0})
            case "POST", ["api", "v0", "bundles"]:
                empty = self.faults("no_offer")
                rows = [] if empty else [_ask_row(*each, body) for each in ASKS.items()]
                return Reply(200, {"offers": rows})
            case "PUT", ["api", "v0", "asks", ask]:
                return self._order(ask, body)
            case "GET", ["api", "v1", "instances"]:
                return self._page(int(query["limit"]), query.get("after_token"))
            case "GET", ["api", "v0", "instances"]:
                return Reply(200, {"instances": []})  # deprecated: it shows no machine at all
            case "DELETE", ["api", "v0", "instances", machine_id]:
                return self._end(machine_id)
        return Reply(404, {"success": False, "error": "not_found", "msg": f"{method} {path}"})

    def _page(self, limit: int, token: str | None) -> Reply:
        begin, size = int(token or 0), min(limit, 25)
        machines = self.world.listed()
        rows = [_machine_row(each) for each in machines[begin : begin + size]]
        more = begin + size < len(machines)
        return Reply(200, {"instances": rows, "next_token": str(begin + size) if more else None})

    def _order(self, ask: str, body: Any) -> Reply:
        way = self.order_fails()
        if way == "refused":
            return Reply(400, {"success": False, "error": "funds", "msg": "not enough credit"})
        if way == "unmade":
            return Reply(502, text=HTML)
        if ask not in ASKS:
            return Reply(404, {"success": False, "error": "no_such_ask", "msg": "no such ask"})
        gpu, gpus, price, lowest, place = ASKS[ask]
        is_bid = body["price"] is not None
        price = body["price"] if is_bid else price + DISK
        machine = FakeMachine("", body["label"], price, is_bid, place, gpu, gpus, body)
        machine = self.world.create(machine, None, body["disk"])
        number = int(machine.machine_id)
        if way == "made":
            return Reply(502, text=HTML)
        if way == "lost":
            raise ConnectionResetError
        if is_bid and (body["price"] < lowest or self.faults("low_bid")):
            words = {"success": False, "error": "bid", "msg": "insufficient bid"}
            return Reply(200, words | {"new_contract": number})
        return Reply(200, {"success": True, "new_contract": number})

    def _end(self, machine_id: str) -> Reply:
        with self.world.lock:
            self.world.tick()
            if machine_id not in self.world.machines:
                return Reply(404, {"success": False, "error": "no_such_instance", "msg": "gone"})
            if self.faults("delete_refused"):
                return Reply(429, {"success": False, "error": "rate", "msg": "too many requests"})
            if self.faults("delete_207"):
                return Reply(200, {"success": False, "error": "busy", "msg": "try later"})
            self.world.end(machine_id)
        if self.faults("delete_lost"):
            return Reply(502, text=HTML)
        return Reply(200, {"success": True})


def _ask_row(ask: str, figures: tuple[str, int, float, float, str], body: Any) -> dict[str, Any]:
    gpu, gpus, price, lowest, place = figures
    base = lowest if body["type"] == "bid" else price
    return {
        "id": int(ask),
        "gpu_name": gpu,
        "num_gpus": gpus,
        "dph_base": base,
        "dph_total": base + DISK,
        "min_bid": lowest,
        "geolocation": place,
    }


def _machine_row(machine: FakeMachine) -> dict[str, Any]:
    is_up = machine.state == "running" and machine.host is not None
    ports = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(machine.port)}]} if is_up else {}
    return {
        "id": int(machine.machine_id),
        "label": machine.label,
        "actual_status": machine.word or STATUS[machine.state],
        "intended_status": "running",
        "is_bid": machine.spot,
        "dph_total": machine.price,
        "geolocation": machine.location,
        "public_ipaddr": machine.host if is_up else None,
        "ports": ports,
        "start_date": 1_790_000_000.0,
        "extra_env": json.loads("[]"),
    }


def fake_vast(world: World | None = None, key: str = "vast-secret-22") -> FakeServer:
    """Return a stand-in."""
    world = world or World()
    world.has_volumes, world.number_ids = False, True
    return FakeServer(_Vast, world, key, lambda key, url: Vast(key, url, PATIENCE))
