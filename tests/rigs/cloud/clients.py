"""What tests of `cloud` share: short waits, orders, and a client for each stand-in."""

from __future__ import annotations

from collections.abc import Callable

from cloud.fake_runpod import fake_runpod
from cloud.fake_vast import fake_vast
from cloud.fake_verda import fake_verda
from cloud.server import FakeServer

from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.types import Offer, Order, Timing, Wanted, new_label

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0sNkqJYW5vdGhlciBrZXkgZm9yIHRlc3Rz test"
QUICK = Timing(
    poll_s=0.01, request_s=2.0, create_settle_s=0.25, start_s=3.0, ssh_s=2.0, delete_s=5.0
)
WANTED = Wanted("H100")

FAKES: dict[str, Callable[[], FakeServer]] = {
    "verda": fake_verda,
    "vast": fake_vast,
    "runpod": fake_runpod,
}
"""Provider → its stand-in."""


def order_of(provider: Provider, run_id: str = "first", wanted: Wanted = WANTED) -> Order:
    """Return an order of the cheapest offer."""
    return order_for(provider.offers(wanted)[0], run_id)


def order_for(offer: Offer, run_id: str = "first") -> Order:
    """Return an order of `offer`."""
    return Order(new_label(run_id), offer, "ubuntu-24.04-cuda-12.8", PUBLIC_KEY)


def billed(server: FakeServer) -> list[str]:
    """Return what costs money at the stand-in."""
    return server.world.billed()
