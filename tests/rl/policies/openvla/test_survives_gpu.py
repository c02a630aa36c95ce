"""Faults of a GPU machine: memory, captures, devices, missing packages. Each is injected."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import openvla_rig as rig
import pytest
import torch

from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.openvla import policy
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.run import replay
from crane_x7_vla_rl.policies.openvla.run.replay import Replay
from crane_x7_vla_rl.policies.openvla.weights import gpu_memory, loading
from crane_x7_vla_rl.training import out_of_memory

GB = 10**9
SEVEN_B = 7_540_000_000


class FakeCuda:
    """Stands for torch.cuda: notes what a capture does; `fault` is raised at its end."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.calls = fault, list[Any]()
        self.is_capturing = False

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Any:
        self.calls.append(("capture", pool, stream))
        self.is_capturing = True
        yield graph
        self.is_capturing = False
        if self.fault is not None:
            raise self.fault

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.calls.append("replay"))

    def Stream(self, device: torch.device) -> Any:
        return SimpleNamespace(name=f"side of {device}", wait_stream=lambda _: None)

    def current_stream(self, device: torch.device) -> Any:
        return SimpleNamespace(name=f"main of {device}", wait_stream=lambda _: None)

    def set_stream(self, stream: Any) -> None:
        self.calls.append(("set", stream.name))

    def device(self, device: torch.device) -> Any:
        self.calls.append(("device", str(device)))
        return nullcontext()

    def stream(self, stream: Any) -> Any:
        del stream
        return nullcontext()

    def synchronize(self, device: torch.device) -> None:
        del device


def stand_in(monkeypatch: pytest.MonkeyPatch, fault: Exception | None) -> FakeCuda:
    cuda = FakeCuda(fault)
    monkeypatch.setattr(replay, "torch", SimpleNamespace(cuda=cuda))
    replay._say_once.cache_clear()
    return cuda


def test_a_step_that_cannot_be_captured_is_called_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fault = RuntimeError("operation not permitted when stream is capturing\nmore")
    cuda = stand_in(monkeypatch, fault)
    done: list[int] = []
    steps = [
        Replay(lambda: None if cuda.is_capturing else done.append(1), torch.device("cuda"), None)
        for _ in range(2)
    ]
    for _ in range(3):
        for step in steps:
            step()
    assert len(done) == 2 * (Replay.WARM_UPS + 3)
    assert [call[0] for call in cuda.calls].count("capture") == 2  # it is not tried again
    assert "replay" not in cuda.calls
    assert ("set", "main of cuda") in cuda.calls
    (said,) = caplog.messages
    assert said.startswith("no CUDA graph on cuda: operation not permitted when stream")
    assert "more" not in said


def test_an_error_of_the_step_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, None)

    def broken() -> None:
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        Replay(broken, torch.device("cuda"), None)()


def test_a_graph_is_captured_on_the_second_gpu_if_the_model_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = stand_in(monkeypatch, None)
    step = Replay(lambda: None, torch.device("cuda:1"), "pool")
    step()
    step()
    assert cuda.calls[0] == ("device", "cuda:1")
    _, pool, stream = cuda.calls[1]
    assert (pool, stream.name) == ("pool", "side of cuda:1")
    assert cuda.calls[2:] == ["replay", "replay"]


def memory(
    monkeypatch: pytest.MonkeyPatch, free: float, whole: float, cached: float = 0
) -> torch.device:
    for name, found in (
        ("mem_get_info", (int(free * GB), int(whole * GB))), ("memory_allocated", 0),
        ("memory_reserved", int(cached * GB)), ("current_device", 0), ("is_available", True),
        ("max_memory_allocated", 3 * GB),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=found: found)
    return torch.device("cuda")


def refusal(device: torch.device) -> str:
    with pytest.raises(PolicyLoadError) as refused:
        gpu_memory.check(rig.CHECKPOINT, SEVEN_B, torch.bfloat16, device)
    return str(refused.value)


def test_a_gpu_of_16_gb_is_refused_with_need_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(memory(monkeypatch, 15.6, 16.0))
    assert "its weights in bfloat16 need 16.6 GB of GPU memory" in said
    assert "cuda:0 has 15.6 GB free of 16.0 GB" in said
    assert "Use a GPU with 17 GB or more" in said
    assert "VLA_DEVICE=cuda:1" in said
    assert "other processes" not in said


def test_a_process_that_holds_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(memory(monkeypatch, 5.0, 85.0))
    assert "cuda:0 has 5.0 GB free of 85.0 GB; other processes hold 80.0 GB" in said
    assert "`nvidia-smi` lists them" in said


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = memory(monkeypatch, 10.0, 85.0, cached=20.0)
    gpu_memory.check(rig.CHECKPOINT, SEVEN_B, torch.bfloat16, device)


def test_a_cpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 0, 0)
    gpu_memory.check(rig.CHECKPOINT, SEVEN_B, torch.float32, torch.device("cpu"))


def test_a_full_gpu_is_noticed_before_any_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    device = memory(monkeypatch, 0.001, 85.0)
    monkeypatch.setattr(loading, "_read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(PolicyLoadError, match="other processes hold"):
        loading.load(rig.CHECKPOINT, device=device)


def test_out_of_memory_names_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 1.0, 85.0, cached=4.0)
    said = out_of_memory.need(RuntimeError("CUDA out of memory"))
    assert said.startswith("CUDA out of memory; 3.0 GB of the GPU's 85.0 GB were in use")
    assert said.endswith("and other processes hold 80.0 GB (see `nvidia-smi`)")
    memory(monkeypatch, 80.0, 85.0, cached=4.0)
    assert "other processes" not in out_of_memory.need(RuntimeError("CUDA out of memory"))


def test_the_second_gpu_is_taken_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert policy._device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(CheckpointError, match="VLA_DEVICE=cuda:2: this machine has 2 CUDA devices"):
        policy._device("cuda:2")


ODD = """
import sys, types
import openvla_rig as rig, torch
from crane_x7_vla_rl.policies.openvla.model import fused
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for
odd, language = types.ModuleType("triton"), types.ModuleType("triton.language")
odd.language, odd.jit = language, lambda function: function  # a `jit` that takes no options
sys.modules["triton"], sys.modules["triton.language"] = odd, language
class OnGpu:
    is_cuda, device, dtype = True, torch.device("cuda"), torch.float32
for _ in range(3):
    assert kernels_for(OnGpu()) is None
fused.kernels_for(OnGpu(), OnGpu())
print("none")
"""


def test_a_triton_that_cannot_define_a_kernel_costs_speed_alone_and_is_said_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ODD], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == "none\n", done.stderr
    assert done.stderr.count("no Triton kernels of kernels, torch's operations run instead") == 1
    assert "TypeError" in done.stderr
    assert "does this Triton fit this torch?" in done.stderr


BARE = """
import sys
sys.modules.update(dict.fromkeys(("transformers", "triton", "peft", "accelerate", "scipy")))
import openvla_rig as rig, torch
from crane_x7_vla_rl.policies.openvla.run.device import kernels_for
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
torch.set_num_threads(1)
class OnGpu:
    is_cuda, device = True, torch.device("cuda")
assert kernels_for(OnGpu()) is None
shown, ids = rig.expected()["pixel_values"][:1], rig.prompts()[:1]
found = Runner(rig.load()).roll_out(shown, ids, 1).tokens
print("right" if found[0, 0] == rig.tokens("crane_x7")[0, 0] else found)
"""


def test_no_version_of_transformers_triton_or_peft_matters_to_a_policy_that_drives() -> None:
    """It imports none of the first and third, and does without the second."""
    done = subprocess.run(
        [sys.executable, "-c", BARE], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == "right\n", done.stderr
