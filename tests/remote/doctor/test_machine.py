"""doctor at a machine: GPU, drawing, disks, boot and sshd, as they are and with faults planted."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import doctor_rig
import pytest

from crane_x7_remote.boot import files, health
from crane_x7_remote.boot.status_board import StatusBoard
from crane_x7_remote.doctor import disk, drawing, gpu, places
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.finding import State
from crane_x7_vla_rl.policies.load import TINY

NVML = """
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
"""
DRIVER = '#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 550.54.14, 81559, {free_mb}"\n'


def _with_driver(folder: Path, smi: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose drivers were counted long ago: a card, and the driver's program."""
    program = folder / "nvidia-smi"
    program.write_text(smi)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu.cuda_devices, "count", lambda: 1)


def _card(folder: Path, smi: str) -> dict[str, str]:
    """The environment of a machine whose driver lists one card that does not exist."""
    if shutil.which("gcc") is None:
        # A library in Python cannot stand for the driver's; the image and CI have the compiler.
        pytest.skip("gcc is needed to build a driver's library")
    (folder / "nvml.c").write_text(NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(library), str(folder / "nvml.c")], check=True
    )
    program = folder / "nvidia-smi"
    program.write_text(smi)
    program.chmod(0o755)
    return {"LD_LIBRARY_PATH": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_card_that_torch_cannot_use_is_found(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    environ = _card(tmp_path, DRIVER.format(free_mb=80000))
    code, found, log = doctor_rig.doctor("--only", "gpu", **environ)
    assert code == 1, log
    assert found["gpu card"]["words"] == "1 NVIDIA GPU"
    words = "driver 550.54.14: NVIDIA H100 80GB HBM3, 78.1 of 79.6 GiB free"
    assert found["gpu driver"]["words"] == words
    assert found["gpu torch"]["state"] == "failure"
    assert found["gpu torch"]["cure"]
    assert found["gpu triton"]["state"] in ("failure", "skipped")


def test_a_driver_that_does_not_answer_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n"
    _with_driver(tmp_path, smi, monkeypatch)
    found = doctor_rig.examine("gpu driver")
    assert found.state is State.FAILURE
    assert "Driver/library version mismatch" in found.words
    assert found.cure == "nvidia-smi"


def test_a_model_that_does_not_fit_into_the_card_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_driver(tmp_path, DRIVER.format(free_mb=4), monkeypatch)
    found = doctor_rig.examine("policy memory", VLA_MODEL_PATH=str(TINY))
    assert found.state is State.FAILURE, found
    assert "of the GPU's memory free" in found.words
    found = doctor_rig.examine("policy memory", VLA_MODEL_PATH=str(TINY), VLA_DEVICE="cpu")
    assert found.state is State.OK


def test_a_device_that_is_not_here_is_found() -> None:
    found = doctor_rig.examine("gpu card", VLA_DEVICE="cuda:7")
    assert found.state is State.FAILURE
    assert "VLA_DEVICE=cuda:7: this machine has" in found.words


def test_a_card_without_a_driver_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(gpu, "PCI", tmp_path)
    monkeypatch.setattr(gpu.cuda_devices, "count", lambda: 0)
    found = doctor_rig.examine("gpu card")
    assert found.state is State.WARNING
    assert "no driver answers here" in found.words
    (device / "class").write_text("0x020000\n")
    assert doctor_rig.examine("gpu card").state is State.SKIPPED


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu.cuda_devices, "count", lambda: 1)
    monkeypatch.setenv("PATH", "/nowhere")
    found = doctor_rig.examine("gpu triton")
    assert found.state is State.FAILURE
    assert found.cure == "sudo apt-get install -y gcc libc6-dev"


def test_a_machine_without_vulkan_devices_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mani_skill")
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):  # for the process that draws
        monkeypatch.setenv(name, "/nowhere")
    found = doctor_rig.examine("drawing vulkan", doctor_rig.context(100.0))
    assert found.state is State.FAILURE, found
    assert found.cure == drawing.MESA


def test_a_renderer_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mani_skill")

    def crash(context: object, name: str, *words: str) -> None:
        del context, name, words
        raise ChildError("it crashed with SIGSEGV: it said nothing")

    monkeypatch.setattr(drawing.child, "probe", crash)
    for name in ("vulkan", "frame"):
        found = doctor_rig.examine(f"drawing {name}")
        assert found.state is State.FAILURE
        assert "crashed with SIGSEGV" in found.words


@pytest.mark.parametrize(
    ("name", "variable"),
    [("outputs", "OUTPUT_ROOT"), ("cache", "HF_HOME"), ("wandb", "WANDB_DIR")],
)
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, name: str, variable: str) -> None:
    """Root may write everywhere but into /proc."""
    closed = Path("/proc/self")
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
    found = doctor_rig.examine(f"disk {name}", **{variable: str(closed / "below")})
    assert found.state is State.FAILURE
    assert f"{variable}={closed}/below: {closed} cannot be written" in found.words
    (tmp_path / "file").touch()
    found = doctor_rig.examine(f"disk {name}", **{variable: str(tmp_path / "file" / "below")})
    assert found.state is State.FAILURE
    assert f"{tmp_path}/file is a file" in found.words


def test_writable_folders_stay_as_they_are(tmp_path: Path) -> None:
    found = doctor_rig.examine("disk outputs", OUTPUT_ROOT=str(tmp_path / "a" / "b"))
    assert found.state is State.OK
    assert "it will be created" in found.words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("left", "state"), [(10, State.FAILURE), (1000, State.WARNING)])
def test_a_disk_that_is_nearly_full_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, state: State
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=left * 1_000_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    found = doctor_rig.examine("disk outputs", OUTPUT_ROOT=str(tmp_path))
    assert found.state is state
    assert found.cure == f"df -h {tmp_path}"


@pytest.mark.container
def test_a_full_disk_is_found(tmp_path: Path) -> None:
    """On a file system of half a megabyte, which needs root and a namespace."""
    script = (
        f"mount -t tmpfs -o size=512k none {tmp_path} && {sys.executable} -m crane_x7_remote"
        f" doctor --only disk"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60,
        check=False, env=os.environ | {"OUTPUT_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"OUTPUT_ROOT={tmp_path}: {tmp_path} cannot be written: No space left" in done.stdout


def test_results_that_a_container_loses_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "CONTAINER_SIGNS", (tmp_path,))
    mounts = tmp_path / "mountinfo"
    mounts.write_text("21 1 0:1 / / rw - overlay overlay rw\n")
    monkeypatch.setattr(disk.output_volume, "MOUNTS", mounts)
    found = doctor_rig.examine("disk volume", OUTPUT_ROOT=str(tmp_path / "outputs"))
    assert found.state is State.WARNING
    assert "it is not on a volume" in found.words
    mounts.write_text(f"21 1 0:1 / {tmp_path}/outputs rw - ext4 /dev/sda rw\n")
    found = doctor_rig.examine("disk volume", OUTPUT_ROOT=str(tmp_path / "outputs"))
    assert found.state is State.OK


@contextlib.contextmanager
def booted(folder: Path, board: StatusBoard) -> Iterator[None]:
    """What `boot` serves of itself, on its real socket."""
    import asyncio

    ready, loop, end = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with health.served(board, files.status_socket(folder), None):
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def answering(banner: bytes) -> Iterator[int]:
    """The port of a server that says this to everyone."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    with link:
                        link.sendall(banner)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)  # a close alone would leave it listening in `accept`


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"


def test_a_part_of_boot_that_is_down_is_found_with_its_advice(tmp_path: Path) -> None:
    board = StatusBoard(time.monotonic, time.time)
    board.set("sshd", "up", "port 22")
    environ = {"BOOT_RUN_DIR": str(tmp_path), "SSH_PUBLIC_KEY": KEY}
    with booted(tmp_path, board):
        assert doctor_rig.examine("access boot", **environ).state is State.OK
        board.set("tunnel", "down", "logged out of the tailnet", "create a new key")
        found = doctor_rig.examine("access boot", **environ)
        assert found.state is State.FAILURE
        assert found.words == "tunnel: logged out of the tailnet (create a new key)"
        with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
            found = doctor_rig.examine("access sshd", **environ, SSH_PORT=str(port))
            assert found.state is State.OK
        found = doctor_rig.examine("access sshd", **environ, SSH_PORT=str(port))
        assert found.state is State.FAILURE
        with answering(b"220 mail.example.com ESMTP\r\n") as port:
            found = doctor_rig.examine("access sshd", **environ, SSH_PORT=str(port))
        assert found.state is State.FAILURE
        assert "another program answers there" in found.words


def test_without_a_boot_nothing_of_it_is_missed(tmp_path: Path) -> None:
    environ = {"BOOT_RUN_DIR": str(tmp_path), "SSH_PUBLIC_KEY": KEY}
    assert doctor_rig.examine("access boot", **environ).state is State.SKIPPED
    assert doctor_rig.examine("access sshd", **environ).state is State.SKIPPED
