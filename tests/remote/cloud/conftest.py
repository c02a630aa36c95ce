"""Every provider's stand-in with a client of it, and a ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud.clients import FAKES, order_of
from cloud.server import FakeServer
from containers import MissingToolsError
from sshd_rig import find_sshd

from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.types import Order


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncing takes most of the time of these tests; test_ledger watches that it happens."""
    if request.module.__name__.rpartition(".")[2] != "test_ledger":
        monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def sshd() -> None:
    """A rented machine is an sshd here."""
    try:
        find_sshd()
    except MissingToolsError as error:
        # Only where scripts/setup-containers has not run; .ci/run does it first.
        pytest.skip(str(error))


@pytest.fixture(params=FAKES)
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FAKES[request.param]() as server:
        yield server


@pytest.fixture
def provider(server: FakeServer) -> Iterator[Provider]:
    provider = server.client()
    yield provider
    provider.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def order(provider: Provider) -> Order:
    return order_of(provider)
