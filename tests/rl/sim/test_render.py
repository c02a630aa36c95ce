"""Where images are drawn: GPU where SAPIEN can, else Mesa, said once. GPUs are stand-ins here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import sapien

from crane_x7_vla_rl import sim
from crane_x7_vla_rl.sim import SimError, render

NAME = "NVIDIA Stand-in"


class Device:
    """sapien.Device("cuda") of a machine with one GPU."""

    name = NAME

    def __init__(self, renders: bool) -> None:
        self._renders = renders

    def can_render(self) -> bool:
        return self._renders


class Builder:
    """Builds for the backends in `good`."""

    def __init__(self, *good: str) -> None:
        self.good, self.tried = good, list[str]()

    def __call__(self, backend: str) -> str:
        self.tried.append(backend)
        if backend not in self.good:
            raise RuntimeError(f"vk: {backend} lost")
        return f"drawn by {backend}"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return to the state of a process that has drawn nothing."""
    monkeypatch.setattr(render, "_failed_gpus", [])
    render._say.cache_clear()


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Return what the Vulkan loader is told, on a machine with Mesa below `tmp_path`."""
    told: dict[str, str] = {}
    system = SimpleNamespace(putenv=told.__setitem__, pathsep=os.pathsep)
    monkeypatch.setattr(render, "os", system)
    monkeypatch.setattr(render, "DRIVER_FOLDERS", (tmp_path,))
    (tmp_path / "lvp_icd.x86_64.json").touch()
    (tmp_path / "nvidia_icd.json").touch()
    return told


def with_gpu(monkeypatch: pytest.MonkeyPatch, *, renders: bool = True) -> None:
    monkeypatch.setattr(render, "_vulkan_devices", lambda: ["llvmpipe"])
    monkeypatch.setattr(sapien, "Device", lambda _: Device(renders))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == render.__name__]


@pytest.mark.parametrize("choice", ["auto", "gpu"])
def test_a_gpu_that_can_draw_draws(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, choice: Any
) -> None:
    caplog.set_level(logging.INFO)
    with_gpu(monkeypatch)
    for _ in range(2):
        assert render.build(choice, Builder("gpu")) == "drawn by gpu"
    assert said(caplog) == [f"rendering on the GPU: {NAME}"]


def test_a_driver_without_vulkan_is_no_gpu_to_draw_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, renders=False)
    assert render.gpu_name() is None
    assert render.build("auto", Builder("cpu")) == "drawn by cpu"
    with pytest.raises(SimError, match=r"--render gpu: SAPIEN finds no GPU to draw on.*--gpus all"):
        render.build("gpu", Builder("cpu"))


def test_a_gpu_that_fails_is_replaced_by_mesa_once_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str]
) -> None:
    with_gpu(monkeypatch)
    builder = Builder("cpu")
    for _ in range(2):
        assert render.build("auto", builder) == "drawn by cpu"
    assert builder.tried == ["gpu", "cpu", "cpu"]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"rendering on {NAME} failed (vk: gpu lost); using Mesa on the CPU"]
    assert {Path(file).name for file in variables.values()} == {"lvp_icd.x86_64.json"}


def test_a_gpu_that_must_draw_and_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)
    builder = Builder("cpu")
    with pytest.raises(SimError, match=rf"--render gpu: .*cannot draw on {NAME} \(vk: gpu lost\)"):
        render.build("gpu", builder)
    assert builder.tried == ["gpu"]


def test_cpu_means_mesa_also_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], tmp_path: Path
) -> None:
    with_gpu(monkeypatch)
    assert render.build("cpu", Builder("cpu")) == "drawn by cpu"
    assert variables == dict.fromkeys(
        ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), str(tmp_path / "lvp_icd.x86_64.json")
    )
    monkeypatch.setattr(render, "DRIVER_FOLDERS", (tmp_path / "empty",))
    with pytest.raises(SimError, match=f"--render cpu: .*would draw on {NAME}: install mesa"):
        render.build("cpu", Builder("cpu"))


def test_options_that_are_wrong_are_no_failure_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch)

    def refuse(_: str) -> None:
        raise SimError("spawn_range_m is 0.5")

    with pytest.raises(SimError, match=r"^spawn_range_m"):
        render.build("auto", refuse)
    assert render._failed_gpus == []


def test_frames_come_from_mesa_after_a_gpu_has_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make = gymnasium.make

    def no_gpu(*args: Any, render_backend: str, **options: Any) -> Any:
        if render_backend == "gpu":
            raise RuntimeError("ErrorOutOfDeviceMemory")
        return make(*args, render_backend=render_backend, **options)

    monkeypatch.setattr(render, "gpu_name", lambda: NAME)
    monkeypatch.setattr(gymnasium, "make", no_gpu)
    env = sim.make(sim.LIFT_ID, image_size=(64, 64))
    observation, _ = env.reset(seed=0)
    assert observation["sensor_data"]["base_camera"]["rgb"].float().std() > 5
    env.close()
    assert [line for line in said(caplog) if "failed (ErrorOutOfDeviceMemory)" in line]
    assert [line for line in said(caplog) if "without a CUDA GPU: llvmpipe" in line]


def test_mesa_draws_if_the_first_driver_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str]
) -> None:
    monkeypatch.setattr(render, "_vulkan_devices", lambda: ["llvmpipe"])
    monkeypatch.setattr(render, "gpu_name", lambda: None)

    def make(_: str) -> str:
        if not variables:
            raise RuntimeError("ErrorIncompatibleDriver")
        return "drawn"

    assert render.build("auto", make) == "drawn"
    assert "cannot render (ErrorIncompatibleDriver); using Mesa" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_file_that_leads_nowhere_leaves_mesa() -> None:
    """As SAPIEN's import leaves it where an NVIDIA driver has no Vulkan."""
    code = (
        "import logging; logging.basicConfig()\n"
        "from crane_x7_vla_rl import sim\n"
        "view = sim.make(sim.LIFT_ID, image_size=(64, 64)).reset(seed=0)[0]['sensor_data']\n"
        "print(float(view['base_camera']['rgb'].float().std()))"
    )
    hidden = os.environ | {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=hidden, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 5
    assert done.stderr.count("the first Vulkan driver cannot render") == 1
