"""Fixtures for tests of the image: the workshop and the image, made once per run of pytest.

A test marked `container` may take its time to set up on a bare machine (base image, tailscale and
headscale from source); the timeout of pytest counts the test itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from containers import MissingToolsError, Network, Workshop

CONTAINER_TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("container") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CONTAINER_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    """Podman and buildah with a storage of their own; the test is skipped where there cannot be."""
    try:
        return Workshop.set_up()
    except MissingToolsError as error:
        pytest.skip(str(error))  # no root, no Debian: said in the summary


@pytest.fixture(scope="session")
def image(workshop: Workshop) -> str:
    """The image of this checkout without torch: enough for `infer` with colour servo."""
    return workshop.build(extras="")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network
