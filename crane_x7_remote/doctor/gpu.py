"""Group `gpu`: card, driver, torch, Triton's compiler, memory for the chosen model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from crane_x7_remote.doctor import child
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Stop,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_remote.doctor.places import in_container
from crane_x7_vla_rl.policies import cuda_devices

PCI: Final = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""PCI's vendor of NVIDIA, and the class of display controllers."""
QUERY: Final = "name,driver_version,memory.total,memory.free"
IN_CONTAINER: Final = "docker run --rm --gpus all debian:bookworm nvidia-smi"
COMPILERS: Final = ("cc", "gcc", "clang")


@dataclass(frozen=True)
class Card:
    """One GPU, as nvidia-smi lists it."""

    name: str
    driver: str
    total_mb: float
    free_mb: float


def cards(context: Context) -> list[Card]:
    """Return the GPUs that the driver lists; raises ChildError if nvidia-smi fails."""
    return context.once("cards", lambda: _cards(context))


def _cards(context: Context) -> list[Card]:
    command = ("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
    code, output, errors = child.call(command, context.left_s)
    if code:
        raise ChildError(f"nvidia-smi ended with {code}: {(errors or output).strip()}")
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line]
    try:
        return [Card(name, driver, float(total), float(free)) for name, driver, total, free in rows]
    except ValueError as error:
        raise ChildError(f"nvidia-smi said what is unknown here: {output[:200]}") from error


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers, or may answer to torch alone."""
    return cuda_devices.count() != 0


def need_gpu(what: str) -> None:
    """End the check if there is no GPU."""
    if not has_gpu():
        raise Stop(skipped(f"no NVIDIA GPU: {what}"))


def card(context: Context) -> Finding:
    """Whether there is a GPU, and whether one that is there, or that is wanted, can be used."""
    count, device = cuda_devices.count(), context.settings.vla_device
    check = IN_CONTAINER if in_container() else "nvidia-smi"
    if problems := cuda_devices.problems(device, "VLA_DEVICE"):
        return failure(str(problems[0]), check)
    if count == 0 and _is_plugged_in():
        return warning(
            "an NVIDIA GPU is in this machine, but no driver answers here; everything runs on the"
            " CPU",
            check,
        )
    if count == 0:
        return skipped("no NVIDIA GPU: small policies and the simulation run on the CPU")
    if count is None:
        return ok("a GPU whose number only torch can tell")
    return ok(f"{count} NVIDIA GPU{'s' * (count != 1)}")


def driver(context: Context) -> Finding:
    """The driver's version and the cards' memory."""
    need_gpu("no driver is needed")
    try:
        found = cards(context)
    except ChildError as error:
        return failure(f"the driver does not answer: {error}", "nvidia-smi")
    listed = "; ".join(
        f"{each.name}, {each.free_mb / 1024:.1f} of {each.total_mb / 1024:.1f} GiB free"
        for each in found
    )
    return ok(f"driver {found[0].driver}: {listed}" if found else "no card is listed")


def torch(context: Context) -> Finding:
    """Whether torch computes, and on the GPU if there is one."""
    if find_spec("torch") is None:
        return skipped("torch is not installed; color-servo needs none")
    try:
        found = child.probe(context, "torch")
    except ChildError as error:
        return failure(
            f"torch cannot be used: {error}",
            "pip install --force-reinstall -c constraints.txt torch",
        )
    name = f"torch {found['version']}"
    wrong = [each["name"] for each in found["devices"] if not each["is_right"]]
    if wrong or not found["is_right"]:
        return failure(f"{name} computes wrong products on {wrong or 'the CPU'}", "nvidia-smi -q")
    if found["devices"]:
        listed = ", ".join(f"{each['name']} ({each['capability']})" for each in found["devices"])
        return ok(f"{name} with CUDA {found['cuda']} computes on {listed}")
    if not has_gpu():
        return ok(f"{name} computes on the CPU; there is no GPU")
    if found["cuda"] is None:
        return failure(
            f"{name} is a build without CUDA, and this machine has a GPU",
            "pip install --force-reinstall -c constraints.txt torch",
        )
    return failure(
        f"{name} for CUDA {found['cuda']} cannot use the GPU: the driver is older than that CUDA,"
        " or the container lacks the card",
        "nvidia-smi",
    )


def triton(context: Context) -> Finding:
    """Whether Triton can compile and launch a kernel: it needs a C compiler."""
    need_gpu("Triton's kernels run on a GPU alone")
    if find_spec("triton") is None:
        return skipped("triton is not installed; torch then computes without its kernels")
    if not any(map(shutil.which, COMPILERS)):
        return failure(
            "no C compiler: Triton compiles its launcher with one",
            "sudo apt-get install -y gcc libc6-dev",
        )
    try:
        found = child.probe(context, "triton")
    except ChildError as error:
        return failure(f"Triton cannot run a kernel: {error}", "sudo apt-get install -y gcc")
    if not found["is_right"]:
        return failure(f"a kernel of triton {found['version']} computed wrong values", "nvidia-smi")
    return ok(f"triton {found['version']} compiles and runs kernels")


def _is_plugged_in() -> bool:
    for device in PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor.startswith(NVIDIA) and kind.startswith(DISPLAY):
            return True
    return False


CHECKS = (
    Check("gpu", "card", card, needs_settings=False),
    Check("gpu", "driver", driver, needs_settings=False),
    Check("gpu", "torch", torch, needs_settings=False),
    Check("gpu", "triton", triton, needs_settings=False),
)
