"""A stand-in for Runpod's API, as facts about the real one say: see `crane_x7_remote.cloud.runpod`.

- Everything is `POST /graphql`; errors come with status 200.
- A spot pod that was taken away is EXITED, is listed, and costs its disk until it is terminated.
- `stopAfter` and `terminateAfter` would be accepted, and nothing would happen.
"""

from __future__ import annotations

from typing import Any

from cloud.server import HTML, PATIENCE, Answer, FakeServer, Reply
from cloud.world import FakeMachine, World

from crane_x7_remote.cloud.runpod import Runpod

GPUS = {
    "NVIDIA H100 80GB HBM3": ("H100 SXM", 8, 2.7, 1.6),
    "NVIDIA H100 PCIe": ("H100 PCIe", 8, 2.4, 1.2),
    "NVIDIA L40S": ("L40S", 4, 0.9, 0.5),
    "NVIDIA L40": ("L40", 4, 0.8, 0.4),
}
"""GPU type → name, most per pod, USD per GPU and hour, lowest bid."""
STATUS = {
    "starting": "CREATED",
    "running": "RUNNING",
    "evicted": "EXITED",
    "stopped": "EXITED",
    "failed": "DEAD",
    "ending": "EXITED",
}


class _Runpod(Answer):
    def is_list(self, method: str, path: str, body: Any) -> bool:
        del method, path
        return "pods {" in (body or {}).get("query", "")

    def respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Reply:
        del query
        if (method, path) != ("POST", "/graphql"):
            return Reply(301, text=HTML)
        if self.headers.get("authorization") != f"Bearer {self.key}":
            return Reply(401, text="Unauthorized")
        words, variables = body["query"], body.get("variables") or {}
        if "podTerminate" in words:
            return self._end(variables["input"]["podId"])
        for mutation in ("podRentInterruptable", "podFindAndDeployOnDemand"):
            if mutation in words:
                return self._order(mutation, variables["input"])
        if "gpuTypes" in words:
            rows = [] if self.faults("no_offer") else [_gpu_row(*each) for each in GPUS.items()]
            return _data(gpuTypes=rows)
        if "networkVolumes" in words:
            return _data(myself={"networkVolumes": []})
        if "pods" in words:
            return _data(myself={"pods": [_pod_row(each) for each in self.world.listed()]})
        return _data(myself={"id": "user"})

    def _order(self, mutation: str, order: dict[str, Any]) -> Reply:
        way = self.order_fails()
        if way == "refused":
            return _error("Your account balance is too low")
        if way == "unmade":
            return _error("Something went wrong. Please try again later or contact support.")
        name, _, price, lowest = GPUS[order["gpuTypeId"]]
        is_spot = mutation == "podRentInterruptable"
        if is_spot and order["bidPerGpu"] < lowest:
            return _error("Your bid price is too low")
        total = (order["bidPerGpu"] if is_spot else price) * order["gpuCount"]
        place = order.get("dataCenterId") or "EU-SE-1"
        if place not in ("EU-SE-1", "US-KS-2"):
            return _error("There are no longer any instances available with the specifications")
        machine = FakeMachine(
            "", order["name"], total, is_spot, place, name, order["gpuCount"], order
        )
        machine = self.world.create(machine, None, 0)
        if way == "made":
            return Reply(502, text=HTML)
        if way == "lost":
            raise ConnectionResetError
        return _data(**{mutation: {"id": machine.machine_id, "costPerHr": total}})

    def _end(self, machine_id: str) -> Reply:
        with self.world.lock:
            self.world.tick()
            if machine_id not in self.world.machines:
                return _error("Pod not found")
            if self.faults("delete_refused"):
                return _error("Something went wrong. Please try again later or contact support.")
            if self.faults("delete_207"):
                return Reply(500, text=HTML)
            self.world.end(machine_id)
        if self.faults("delete_lost"):
            return Reply(502, text=HTML)
        return _data(podTerminate=None)


def _data(**values: Any) -> Reply:
    return Reply(200, {"data": values})


def _error(message: str) -> Reply:
    return Reply(200, {"errors": [{"message": message}], "data": None})


def _gpu_row(kind: str, figures: tuple[str, int, float, float]) -> dict[str, Any]:
    name, most, price, lowest = figures
    prices = {"minimumBidPrice": lowest, "uninterruptablePrice": price, "stockStatus": "High"}
    return {"id": kind, "displayName": name, "maxGpuCount": most, "lowestPrice": prices}


def _pod_row(machine: FakeMachine) -> dict[str, Any]:
    is_up = machine.state == "running" and machine.host is not None
    port = {"ip": machine.host, "isIpPublic": True, "privatePort": 22, "publicPort": machine.port}
    inner = {"ip": "10.0.0.2", "isIpPublic": False, "privatePort": 22, "publicPort": 60022}
    return {
        "id": machine.machine_id,
        "name": machine.label,
        "desiredStatus": machine.word or STATUS[machine.state],
        "podType": "INTERRUPTABLE" if machine.spot else "RESERVED",
        "costPerHr": machine.price,
        "runtime": {"ports": [inner, port]} if is_up else None,
        "machine": {"gpuDisplayName": machine.gpu_model, "location": machine.location},
    }


def fake_runpod(world: World | None = None, key: str = "runpod-secret-333") -> FakeServer:
    """Return a stand-in."""
    world = world or World()
    world.has_volumes = False
    return FakeServer(_Runpod, world, key, lambda key, url: Runpod(key, url, PATIENCE))
