"""A stand-in for Verda's API, as facts about the real one say: see `crane_x7_remote.cloud.verda`.

- The token comes from /oauth2/token; a list without it is 401.
- The answer to an order is the machine's id as plain text, sometimes quoted.
- A deletion with `volume_ids: []` keeps the disks, without the key the OS disk goes to the trash,
  which is billed, too; while provisioning it is refused.
- An evicted machine is `discontinued` or vanishes; its disk stays.
"""

from __future__ import annotations

from typing import Any

from cloud.server import HTML, PATIENCE, Answer, FakeServer, Reply
from cloud.world import FakeMachine, FakeVolume, World

from crane_x7_remote.cloud.verda import Verda

TYPES = {
    "1H100.80S.30V": ("H100", 1, 2.0, 0.8),
    "4H100.80S.120V": ("H100", 4, 8.0, 3.2),
    "1L40S.20V": ("L40S", 1, 1.0, 0.4),
    "1L40.20V": ("L40", 1, 0.9, 0.5),
}
"""Instance type → GPU, count, USD per hour, and as spot."""
PLACES = {"FIN-01": [*TYPES], "ICE-01": ["1H100.80S.30V", "1L40S.20V"]}
STATUS = {
    "starting": "provisioning",
    "running": "running",
    "evicted": "discontinued",
    "stopped": "offline",
    "failed": "no_capacity",
    "ending": "deleting",
}
DISK_PRICE = 0.05
BALANCE = "insufficient_funds"


class _Verda(Answer):
    def is_list(self, method: str, path: str, body: Any) -> bool:
        del body
        return method == "GET" and path in ("/v1/instances", "/v1/volumes", "/v1/volumes/trash")

    def respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Reply:
        del query
        path = path.removeprefix("/v1")
        if path == "/oauth2/token":
            return self._login(body)
        if self.headers.get("authorization") != f"Bearer token-of-{self.key}" or self.faults(
            "token_expired"
        ):
            return Reply(401, {"code": "unauthorized_request", "message": "invalid token"})
        match method, path:
            case "GET", "/instance-types":
                return Reply(200, [_type_row(*each) for each in TYPES.items()])
            case "GET", "/instance-availability":
                empty = self.faults("no_offer")
                rows = [
                    {"location_code": place, "availabilities": [] if empty else kinds}
                    for place, kinds in PLACES.items()
                ]
                return Reply(200, rows)
            case "GET", "/sshkeys":
                keys = self.world.ssh_keys.items()
                return Reply(200, [{"id": i, "name": n, "key": k} for i, (n, k) in keys])
            case "POST", "/sshkeys":
                identity = self.world.new_id()
                self.world.ssh_keys[identity] = (body["name"], body["key"])
                return Reply(201, text=identity)
            case "DELETE", "/sshkeys":
                for identity in body["keys"]:
                    self.world.ssh_keys.pop(identity, None)
                return Reply(200, text="")
            case "GET", "/instances":
                return Reply(200, [_machine_row(each) for each in self.world.listed()])
            case "POST", "/instances":
                return self._order(body)
            case "PUT", "/instances":
                return self._end(body)
            case "GET", "/volumes" | "/volumes/trash":
                trash = path.endswith("trash")
                with self.world.lock:
                    self.world.tick()
                    rows = self.world.volumes.values()
                    return Reply(200, [_volume_row(each) for each in rows if each.trashed == trash])
            case "DELETE", _ if path.startswith("/volumes/"):
                return self._end_volume(path.rpartition("/")[2], body)
        return Reply(404, {"code": "not_found", "message": f"{method} {path}"})

    def _login(self, body: Any) -> Reply:
        if (body["client_id"], body["client_secret"]) != ("client", self.key):
            return Reply(400, {"code": "invalid_request", "message": "Invalid client id or secret"})
        return Reply(200, {"access_token": f"token-of-{self.key}", "expires_in": 3600})

    def _order(self, body: Any) -> Reply:
        way = self.order_fails()
        if way == "refused":
            return Reply(403, {"code": BALANCE, "message": "The account has insufficient funds"})
        if way == "unmade":
            return Reply(502, text=HTML)
        if not body["is_spot"] and "on_spot_discontinue" in body.get("os_volume", {}):
            return Reply(400, {"code": "invalid_request", "message": "on_spot_discontinue"})
        gpu, gpus, price, spot_price = TYPES[body["instance_type"]]
        boot = body["image"] if body["image"] in self.world.volumes else None
        machine = FakeMachine(
            "",
            body["hostname"],
            spot_price if body["is_spot"] else price,
            body["is_spot"],
            body["location_code"],
            gpu,
            gpus,
            body,
        )
        machine = self.world.create(machine, boot, body.get("os_volume", {}).get("size", 0))
        if way == "made":
            return Reply(502, text=HTML)
        if way == "lost":
            raise ConnectionResetError
        quoted = self.faults("create_quoted")
        text = f'"{machine.machine_id}"\n' if quoted else machine.machine_id
        return Reply(202, text=text)

    def _end(self, body: Any) -> Reply:
        (machine_id,) = body["id"]
        with self.world.lock:
            self.world.tick()
            machine = self.world.machines.get(machine_id)
            if machine is None:
                return Reply(400, {"code": "invalid_request", "message": "Invalid instance id"})
            if machine.state in ("evicted", "ending"):
                words = "Can't discontinue a discontinued instance"
                return Reply(400, {"code": "invalid_request", "message": words})
            if machine.state == "starting":
                words = "Can't discontinue a provisioning instance"
                return Reply(400, {"code": "invalid_request", "message": words})
            if self.faults("delete_refused"):
                return Reply(503, {"code": "service_unavailable", "message": "try later"})
            if self.faults("delete_207"):
                return Reply(207, [{"id": machine_id, "status": 500, "error": "internal"}])
            self._trash(machine, body)
            self.world.end(machine_id)
        if self.faults("delete_lost"):
            return Reply(502, text=HTML)
        return Reply(202, text="")

    def _trash(self, machine: FakeMachine, body: Any) -> None:
        listed = body.get("volume_ids")
        ending = [machine.volume_id] if listed is None else listed
        for volume_id in ending:
            if listed is not None and body.get("delete_permanently"):
                self.world.volumes.pop(volume_id, None)
            elif volume_id in self.world.volumes:
                self.world.volumes[volume_id].trashed = True

    def _end_volume(self, volume_id: str, body: Any) -> Reply:
        with self.world.lock:
            self.world.tick()
            volume = self.world.volumes.get(volume_id)
            if volume is None:
                return Reply(404, {"code": "not_found", "message": "no such volume"})
            if volume.machine_id is not None:
                return Reply(400, {"code": "invalid_request", "message": "volume is attached"})
            if self.faults("volume_refused"):
                return Reply(500, {"code": "server_error", "message": "try later"})
            if (body or {}).get("is_permanent"):
                del self.world.volumes[volume_id]
            else:
                volume.trashed = True
        return Reply(202, text="")


def _type_row(kind: str, figures: tuple[str, int, float, float]) -> dict[str, Any]:
    model, gpus, price, spot_price = figures
    return {
        "instance_type": kind,
        "model": model,
        "name": f"{model} 80GB",
        "gpu": {"description": f"{gpus}x {model}", "number_of_gpus": gpus},
        "price_per_hour": f"{price:.4f}",
        "spot_price": f"{spot_price:.4f}",
    }


def _machine_row(machine: FakeMachine) -> dict[str, Any]:
    is_there = machine.state == "running" and machine.host is not None
    port = "" if machine.port == 22 else f":{machine.port}"
    return {
        "id": machine.machine_id,
        "hostname": machine.label,
        "description": machine.order.get("description", ""),
        "tags": machine.order.get("tags", []),
        "status": machine.word or STATUS[machine.state],
        "ip": f"{machine.host}{port}" if is_there else None,
        "price_per_hour": machine.price,
        "os_volume_id": machine.volume_id,
        "location": machine.location,
        "is_spot": machine.spot,
        "created_at": "2026-11-01T00:00:00.000Z",
    }


def _volume_row(volume: FakeVolume) -> dict[str, Any]:
    return {
        "id": volume.volume_id,
        "name": volume.name,
        "size": volume.size_gb,
        "status": "attached" if volume.machine_id else "detached",
        "is_os_volume": volume.is_os,
        "instance_id": volume.machine_id,
        "location": volume.location,
        "base_hourly_cost": DISK_PRICE,
    }


def fake_verda(world: World | None = None, key: str = "verda-secret-1") -> FakeServer:
    """Return a stand-in."""
    return FakeServer(
        _Verda, world or World(), key, lambda key, url: Verda("client", key, url, PATIENCE), "/v1"
    )
