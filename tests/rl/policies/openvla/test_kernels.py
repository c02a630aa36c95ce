"""Triton kernels against torch's operations: by its interpreter, by its compiler, on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import openvla_rig as rig
import pytest
import torch
import triton_rig
from kernel_cases import (
    BATCHES,
    HEADS,
    INNER,
    LISTEN,
    gated_case,
    norm_case,
    require_equal,
    turn_case,
)
from torch.nn import functional

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

AGAINST_TORCH = """
import torch
from kernel_cases import BATCHES, HEADS, INNER, norm_case, gated_case, turn_case
from crane_x7_vla_rl.policies.openvla.run import kernels

kernels._trials.passed = lambda *args: True  # the kernels, not what would replace them
torch.manual_seed(0)
for batch, length in BATCHES:
    for inner in INNER:
        gated_case(kernels.gated, batch, length, inner, "cpu", torch.float32)
        norm_case(kernels.add_norm, batch, length, inner, "cpu", torch.float32)
    for heads in HEADS:
        turn_case(kernels.turn_into, batch, length, *heads, "cpu", torch.float32)
gated_case(kernels.gated, 256, 1, 24, "cpu", torch.bfloat16)
norm_case(kernels.add_norm, 256, 1, 24, "cpu", torch.bfloat16)
turn_case(kernels.turn_into, 64, 1, 24, 4, 2, "cpu", torch.bfloat16)
"""

FALLBACK = """
from kernel_cases import HEADS, gated_case, norm_case, turn_case
from crane_x7_vla_rl.policies.openvla.trials import Trials

kernels._trials = Trials()
whole = kernels._turn_into
def broken(qkv, cos, sin, cache, start):
    query = whole(qkv, cos, sin, cache, start)
    if qkv.shape[-1] == 80:
        raise RuntimeError("no such instruction")
    return query.flip(0) if qkv.shape[-1] == 24 else query

kernels._turn_into = broken
for _ in range(2):
    for heads in HEADS:
        turn_case(kernels.turn_into, 2, 3, *heads, "cpu", torch.float32)
assert len(Lines.found) == 2, Lines.found
assert "turn_into" in Lines.found[0] and "(8, 24, 4)" not in Lines.found[0], Lines.found
assert "differs by" in Lines.found[0] and "(12, 24, 4)" in Lines.found[0], Lines.found
assert "no such instruction" in Lines.found[1] and "(10, 80, 2)" in Lines.found[1], Lines.found
gated_case(kernels.gated, 2, 3, 5, "cpu", torch.float64)  # too many digits for a kernel
norm_case(kernels.add_norm, 2, 3, 5, "cpu", torch.float64)
assert kernels.gated(torch.zeros(2, 0, 6)).shape == (2, 0, 3)
assert kernels.add_norm(*[torch.zeros(0, 1, 6)] * 2, torch.ones(6), 1e-6)[1].shape == (0, 1, 6)
"""

SHIPPED_WHOLE = """
import torch
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.policies.openvla.run import inference, kernels, low_bit
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
import openvla_rig as rig

model = loading.load(TINY).model
size = model.config.image_size
pixels = torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(0))
given = (pixels, rig.prompts()[:1], 2)

def rollout(found):
    inference.kernels_for = low_bit.kernels_for = lambda x: found
    runner = Runner(model, "int8")
    runner.bucket = 16
    return runner.roll_out(*given)

wanted, ours = rollout(None), rollout(kernels)
assert torch.equal(ours.tokens, wanted.tokens), (ours.tokens, wanted.tokens)
assert (ours.logits - wanted.logits).abs().max() < 1e-4
assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts
assert len(kernels._trials._verdicts) == 5, kernels._trials._verdicts
"""

FIXTURE_WHOLE = """
import torch
from crane_x7_vla_rl.policies.openvla.run import inference, kernels
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
import openvla_rig as rig

inference.kernels_for = lambda x: kernels
runner = Runner(rig.load())
runner.bucket = 16
tokens = runner.roll_out(rig.expected()["pixel_values"][:2], rig.prompts()[:2], 3).tokens
assert torch.equal(tokens, rig.tokens("crane_x7")[:2, :3]), tokens
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(AGAINST_TORCH + LISTEN + FALLBACK, id="each"),
        pytest.param(SHIPPED_WHOLE, id="shipped policy", marks=pytest.mark.slow),
        pytest.param(FIXTURE_WHOLE, id="fixture", marks=pytest.mark.slow),
    ],
)
def test_kernels_compute_what_torch_does(script: str) -> None:
    triton_rig.interpret(script)


def launch_all(width: int, heads: int, key_heads: int, inner: int, dtype: torch.dtype) -> None:
    """Launch each kernel as a decode step and as a prefill with pads would."""
    from crane_x7_vla_rl.policies.openvla.run import kernels

    hidden = width * heads
    for batch, length in ((1, 1), (3, 19)):
        one = torch.zeros(batch, length, hidden, dtype=dtype)
        kernels._gated(torch.zeros(batch, length, 2 * inner, dtype=dtype))
        kernels._add_norm(one, one, one[0, 0], 1e-6)
        qkv = torch.zeros(batch, length, heads + 2 * key_heads, width, dtype=dtype)
        cos = torch.zeros(batch, length, 1, width, dtype=dtype)
        cache = torch.zeros(2, batch, 40, key_heads, width, dtype=dtype)
        kernels._turn_into(qkv, cos, cos, cache, 11)


def test_the_shipped_policys_kernels_compile_for_an_h100(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = triton_rig.compile_only(monkeypatch, 90)
    launch_all(24, 4, 4, 256, torch.float32)
    assert len(made) == 6
    for one in made:
        assert one.asm["cubin"].startswith(b"\x7fELF")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", triton_rig.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_compile_for_every_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: int, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = triton_rig.compile_only(monkeypatch, architecture)
    for (width, heads, key_heads), inner in zip(HEADS, (*INNER, 5000), strict=True):
        launch_all(width, heads, key_heads, inner, dtype)
    assert len(made) == 6 * len(HEADS)
    for one in made:
        assert one.asm["cubin"].startswith(b"\x7fELF")
        # 32 bits do not number what a batch of 64 has; a row's offset is a product, so 64 bits.
        rows = [line for line in one.asm["ttir"].splitlines() if "arith.muli" in line]
        assert all("i64" in line or "%tile" in line for line in rows if "%row" in line), rows


def test_a_failing_assembler_costs_speed_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from crane_x7_vla_rl.policies.openvla.run import kernels
    from crane_x7_vla_rl.policies.openvla.trials import Trials

    broken = tmp_path / "ptxas"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo "release 13.0, V13.0";; '
                      "*) exit 3;; esac\n")  # fmt: skip
    broken.chmod(0o755)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(broken))
    monkeypatch.setattr(kernels, "_trials", Trials())
    triton_rig.compile_only(monkeypatch, 90)
    for _ in range(2):
        gated_case(kernels.gated, 1, 2, 40, "cpu", torch.float32)
    assert not kernels.usable(torch.device("cpu"))
    (first, second) = caplog.messages
    assert "gated is not used on cpu for (torch.float32, (40,))" in first
    assert "PTXASError" in first
    assert "PTXASError" in second


NO_COMPILER = """
import torch
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
import openvla_rig as rig

model = rig.load().cuda()
pixels = rig.expected()["pixel_values"].cuda()
tokens = Runner(model).roll_out(pixels, rig.prompts(), 8).tokens
assert torch.equal(tokens.cpu(), rig.tokens("crane_x7"))
print("equal")
"""


NO_COMPILER_HERE = """
import torch
torch.cuda.is_available = lambda: True  # Triton then loads its driver for CUDA, as on a GPU
from crane_x7_vla_rl.policies.openvla.run import inference, kernels, low_bit
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
import openvla_rig as rig

torch.set_num_threads(1)
asked = []
def kernels_for(x):
    asked.append(x.device)
    return kernels if kernels.usable(x.device) else None
inference.kernels_for = low_bit.kernels_for = kernels_for
tokens = Runner(rig.load()).roll_out(rig.expected()["pixel_values"], rig.prompts(), 8).tokens
assert len(asked) > 1
assert torch.equal(tokens, rig.tokens("crane_x7"))
print("equal")
"""


def test_a_missing_compiler_costs_speed_alone_and_is_said_once(tmp_path: Path) -> None:
    """Triton's own driver looks for one, up to the point where it would need the device."""
    (tmp_path / "libcuda.so.1").touch()
    environ = {name: value for name, value in os.environ.items() if name != "CC"}
    environ |= {
        "PATH": str(tmp_path), "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER_HERE], env=environ,
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
    assert done.stderr.count("Failed to find C compiler") == 1, done.stderr
    assert done.stderr.count("is a C compiler installed") == 1, done.stderr


@pytest.mark.gpu
def test_without_a_compiler_the_actions_are_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER],
        env={
            **os.environ,
            "PATH": str(tmp_path),
            "CC": str(tmp_path / "cc"),
            "TRITON_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr
    assert done.stderr.count("is a C compiler installed") == 1, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_shape_runs_on_the_gpu(dtype: torch.dtype) -> None:
    from crane_x7_vla_rl.policies.openvla.run import kernels

    assert kernels.usable(torch.device("cuda", 0))
    for batch, length in (*BATCHES, (64, 4), (256, 1)):
        for inner in INNER:
            gated_case(kernels.gated, batch, length, inner, "cuda", dtype)
            norm_case(kernels.add_norm, batch, length, inner, "cuda", dtype)
        for heads in HEADS:
            turn_case(kernels.turn_into, batch, length, *heads, "cuda", dtype)
    assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts


@pytest.mark.gpu
def test_more_than_2_to_the_31_values_run_on_the_gpu() -> None:
    """5 GB in, as much as batch 64 has in 1600 positions of the released model."""
    from crane_x7_vla_rl.policies.openvla.run import kernels

    inner, rows = 11008, 110_000
    both = torch.zeros(rows, 1, 2 * inner, device="cuda", dtype=torch.bfloat16)
    both[-1] = 1
    assert kernels._trials.passed("gated", "huge", both.device, lambda: None)
    out = kernels._gated(both)
    require_equal(out[-1], functional.silu(both[-1, :, :inner]))
    assert not out[:-1].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_policy_runs_on_the_gpu_with_every_kernel(dtype: torch.dtype) -> None:
    from crane_x7_vla_rl.policies.load import TINY
    from crane_x7_vla_rl.policies.openvla.run import kernels
    from crane_x7_vla_rl.policies.openvla.run.runner import Runner
    from crane_x7_vla_rl.policies.openvla.weights import loading

    found = {}
    for device in ("cpu", "cuda"):
        model = loading.load(TINY, device=device, dtype=dtype).model
        size = model.config.image_size
        pixels = torch.randn(3, 6, size, size, generator=torch.Generator().manual_seed(0))
        rollout = Runner(model).roll_out(pixels.to(device), rig.prompts()[:3], 8)
        found[device] = rollout.logits[:, 0].cpu()
    limit = 1e-3 if dtype is torch.float32 else 0.5
    assert float((found["cuda"] - found["cpu"]).abs().max()) < limit
    assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts
