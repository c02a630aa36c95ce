"""How many workers run the tests, and fixtures for tests of the image: workshop and image.

A test marked `container` may take its time to set up on a bare machine (base image, tailscale and
headscale from source); the timeout of pytest counts the test itself alone.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import fake_tailnet
import psutil
import pytest
from containers import MissingToolsError, Network, Workshop
from tailnet_rig import find_tools

from crane_x7_vla_rl import secret_text

CONTAINER_TIMEOUT_S = 180
REAL_TIME = [
    Path(__file__).parent / "remote" / room
    for room in (
        "calibrate",
        "cloud",
        "dashboard",
        "demo",
        "doctor",
        "guard",
        "inference",
        "policy_server",
        "record",
        "rosbridge",
        "sim_robot",
        "trial",
        "watch",
    )
]
"""Rooms whose tests run loops, servers and sessions against the clock."""
WORKER_BYTES = 3e9
"""What a worker and the processes of its tests hold at most."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before numpy and torch are imported: as many threads as cores, in each worker, is too many.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Under nohup, or in a job with `&`. Programs of the tests would inherit it, but must end on Ctrl-C
# and with their session.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among imports, which stay: it took a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker more than cores, since a third of the time tests wait."""
    fit = int(psutil.virtual_memory().available // WORKER_BYTES)
    return max(1, min(len(os.sched_getaffinity(0)) + 1, fit))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-time-only", action="store_true",
        help="fail at once if any test to run is not marked real_time; see scripts/test",
    )  # fmt: skip


def pytest_collection_finish(session: pytest.Session) -> None:
    """Only a test that keeps real time may be excused for a busy machine."""
    if session.config.getoption("--real-time-only"):
        others = [item.nodeid for item in session.items if not item.get_closest_marker("real_time")]
        if others:
            raise pytest.UsageError(f"failed, and do not depend on time: {', '.join(others)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent in REAL_TIME:
            item.add_marker(pytest.mark.real_time)
        if item.get_closest_marker("container") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CONTAINER_TIMEOUT_S, func_only=True))


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test told the registry of secrets is not masked in the next one."""
    monkeypatch.setattr(secret_text, "_forms", set())
    monkeypatch.setattr(secret_text, "_pattern", None)


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    """Podman and buildah with separate storage; the test is skipped if they cannot be set up."""
    try:
        return Workshop.set_up()
    except MissingToolsError as error:
        # No root, or no Debian: podman and buildah cannot be set up. The summary names it.
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image(workshop: Workshop) -> str:
    """The image of this checkout without torch: enough for `infer` with colour servo."""
    return workshop.build(extras="")


@pytest.fixture(scope="session")
def whole_image(workshop: Workshop) -> str:
    """The image with all that `sft` and `evaluate` need, torch first: some GB."""
    return workshop.build(extras="sim,train", timeout_s=3600)


@pytest.fixture(scope="session", params=[pytest.param("real", marks=pytest.mark.container), "fake"])
def tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tailscale, tailscaled and headscale: every test is held by the fake ones too.

    The real ones are skipped, with the reason, where they neither are nor can be built.
    """
    if request.param == "fake":
        return fake_tailnet.install(tmp_path_factory.mktemp("fake-tools"))
    try:
        return find_tools()
    except MissingToolsError as error:
        missing = str(error)
    try:
        workshop: Workshop = request.getfixturevalue("workshop")
        return workshop.tools
    except (MissingToolsError, pytest.skip.Exception) as error:
        # Such as: the Go proxy could not be reached. The same tests run on the fake ones.
        pytest.skip(f"{missing} ({error})")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network
