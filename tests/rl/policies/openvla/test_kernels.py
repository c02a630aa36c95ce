"""Triton kernels against torch's operations: by its interpreter, by its compiler, on a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openvla_rig as rig
import pytest
import torch
import triton_rig
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

HEADS = ((24, 4, 4), (64, 3, 1), (80, 6, 2), (128, 2, 2), (6, 5, 1))
"""Head width, heads, key-value heads: the shipped policy's first, the released model's last but
one."""
INNER = (2, 100, 257, 11008)
BATCHES = ((1, 1), (3, 2))

AGAINST_TORCH = """
import torch
from test_kernels import BATCHES, HEADS, INNER, norm_case, gated_case, turn_case
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

LISTEN = """
import logging
import torch
from crane_x7_vla_rl.policies.openvla.run import kernels, low_bit
low_bit.kernels_for = lambda x: kernels

class Lines(logging.Handler):
    found = []
    def emit(self, record):
        self.found.append(record.getMessage())

logging.getLogger().addHandler(Lines())
"""

FALLBACK = """
from test_kernels import HEADS, gated_case, norm_case, turn_case
from crane_x7_vla_rl.policies.openvla.run.trials import Trials

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

LOW_BIT = """
from test_kernels import low_bit_case, parts_case
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import Tiles

SPLIT = Tiles(outputs=16, inputs=64, stages=2, split=3)
for rows, inputs, outputs, group, tiles in (
    (1, 300, 40, 128, None), (3, 700, 33, 64, SPLIT), (8, 256, 16, None, SPLIT),
    (9, 88, 33, 128, None), (16, 1100, 64, 32, SPLIT), (2, 16, 3, 16, SPLIT),
):
    for kind in ("int8", "fp8"):
        low_bit_case(kind, rows, inputs, outputs, group, tiles, "cpu", torch.float32)
# The interpreter multiplies bfloat16 as the integers that hold it, so float16 stands for it.
low_bit_case("int8", 4, 1100, 40, 128, SPLIT, "cpu", torch.float16)
low_bit_case("int8", 0, 64, 40, 128, None, "cpu", torch.float32)
low_bit_case("int8", 3, 64, 40, 128, None, "cpu", torch.float64)
for count in (1, 4):
    parts_case(count, "cpu", torch.bfloat16)
assert not Lines.found, Lines.found
"""

WHOLE = """
import torch
from crane_x7_vla_rl.policies.load import SHIPPED
from crane_x7_vla_rl.policies.openvla.run import inference, kernels, low_bit
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
import openvla_rig as rig

shipped = loading.load(SHIPPED).model
size = shipped.config.image_size
pixels = torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(0))
wanted = Runner(shipped).roll_out(pixels, rig.prompts()[:1], 2)
inference.kernels_for = lambda x: kernels
runner = Runner(rig.load())
runner.bucket = 16
low_bit.kernels_for = lambda x: kernels
tokens = runner.roll_out(rig.expected()["pixel_values"][:1], rig.prompts()[:1], 3).tokens
assert torch.equal(tokens, rig.tokens("crane_x7")[:1, :3]), tokens
found = Runner(shipped).roll_out(pixels, rig.prompts()[:1], 2)
assert torch.equal(found.tokens, wanted.tokens), (found.tokens, wanted.tokens)
assert (found.logits - wanted.logits).abs().max() < 1e-4
coarse = Runner(shipped, "int8").roll_out(pixels, rig.prompts()[:1], 2).logits
low_bit.kernels_for = inference.kernels_for = lambda x: None
wanted = Runner(shipped, "int8").roll_out(pixels, rig.prompts()[:1], 2).logits
assert (coarse - wanted).abs().max() < 1e-4
assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts
assert len(kernels._trials._verdicts) == 8, kernels._trials._verdicts
"""


def require_equal(ours: Tensor, theirs: Tensor) -> None:
    tolerance = 1e-5 if ours.dtype in (torch.float32, torch.float64) else 0.02
    assert torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def gated_case(gated: Any, batch: int, length: int, inner: int, device: Any, dtype: Any) -> None:
    wide = torch.randn(batch, 2 * length, 2 * inner, device=device).to(dtype)
    for both in (wide[:, :length].contiguous(), wide[:, ::2]):
        wanted = functional.silu(both[..., :inner].float()) * both[..., inner:].float()
        require_equal(gated(both), wanted.to(dtype))


def norm_case(add_norm: Any, batch: int, length: int, width: int, device: Any, dtype: Any) -> None:
    x = torch.randn(batch, 2 * length, width, device=device).to(dtype)[:, ::2]
    delta = torch.randn(batch, width, length, device=device).to(dtype).transpose(1, 2)
    weight = torch.randn(width, device=device).to(dtype)
    total, normed = add_norm(x, delta, weight, 1e-6)
    require_equal(total, x + delta)
    wanted = functional.rms_norm((x + delta).float(), (width,), weight.float(), 1e-6)
    require_equal(normed, wanted.to(dtype))


def turn_case(
    turn_into: Any, batch: int, length: int, width: int, heads: int, key_heads: int,
    device: Any, dtype: Any,
) -> None:  # fmt: skip
    from crane_x7_vla_rl.policies.openvla.model.language import rotate

    for rows, start in ((1, 0), (batch, 5)):
        every = heads + 2 * key_heads
        qkv = torch.randn(batch, every, length, width, device=device).to(dtype).transpose(1, 2)
        angles = torch.randn(rows, length, 1, width // 2, device=device)
        cos = torch.cat([angles.cos()] * 2, -1).to(dtype)
        sin = torch.cat([-angles.sin(), angles.sin()], -1).to(dtype)
        cache = torch.full((2, batch, 9, key_heads, width), 7.0, device=device, dtype=dtype)
        wanted = cache.clone()
        turned = rotate(qkv[:, :, : heads + key_heads], cos, sin)
        wanted[0, :, start : start + length] = turned[:, :, heads:]
        wanted[1, :, start : start + length] = qkv[:, :, heads + key_heads :]
        require_equal(turn_into(qkv, cos, sin, cache, start), turned[:, :, :heads])
        require_equal(cache, wanted)


def low_bit_case(
    kind: Any, rows: int, inputs: int, outputs: int, group: int | None, tiles: Any,
    device: Any, dtype: Any,
) -> None:  # fmt: skip
    """The kernel against the dense product with the weight that the 8 bits stand for."""
    from crane_x7_vla_rl.policies.openvla.model.matrices import Dense
    from crane_x7_vla_rl.policies.openvla.run import low_bit_tiles
    from crane_x7_vla_rl.policies.openvla.run.low_bit import LowBit

    coarse = LowBit(Dense(torch.randn(outputs, inputs, device=device).to(dtype)), kind, group)
    low_bit_tiles.TABLE.clear()
    if tiles is not None:
        low_bit_tiles.TABLE[low_bit_tiles.tile_rows(rows), outputs, inputs] = tiles
    x = torch.randn(inputs, rows, 1, device=device).to(dtype).permute(1, 2, 0)
    scale = coarse.scale.t().repeat_interleave(coarse.group, 1)[:, :inputs]
    wanted = x.double() @ (coarse.weight.double() * scale).t()
    require_equal(coarse(x) / inputs**0.5, (wanted / inputs**0.5).to(dtype))
    if tiles is not None and inputs > tiles.inputs and rows and dtype is not torch.float64:
        assert 1 < len(coarse.parts(x)) <= tiles.split
    low_bit_tiles.TABLE.clear()


def parts_case(count: int, device: Any, dtype: Any) -> None:
    """A norm that adds the parts of a product as it reads them."""
    from crane_x7_vla_rl.policies.openvla.run import kernels

    x = torch.randn(3, 2, 100, device=device).to(dtype)
    parts = torch.randn(count, 3, 2, 100, device=device)
    weight = torch.randn(100, device=device).to(dtype)
    total, normed = kernels.add_parts_norm(x, parts, weight, 1e-6)
    wanted = (x.float() + parts.sum(0)).to(dtype)
    require_equal(total, wanted)
    require_equal(normed, functional.rms_norm(wanted.float(), (100,), weight.float()).to(dtype))


@pytest.mark.parametrize(
    "script",
    [AGAINST_TORCH + LISTEN + FALLBACK, LISTEN + LOW_BIT, WHOLE],
    ids=["torch", "8bit", "whole"],
)
def test_kernels_compute_what_torch_does(script: str) -> None:
    triton_rig.interpret(script, Path(__file__).parent)


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
    launch_low_bit(1, 96, 256, torch.bfloat16, torch.int8)
    assert len(made) == 8
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


def launch_low_bit(rows: int, outputs: int, inputs: int, dtype: torch.dtype, kind: Any) -> None:
    """Launch an 8-bit product as it stands in a table without measurements."""
    from crane_x7_vla_rl.policies.openvla.run import kernels, low_bit_kernel
    from crane_x7_vla_rl.policies.openvla.run.low_bit import GROUP

    x = torch.zeros(rows, inputs, dtype=dtype)
    weight = torch.zeros(outputs, inputs, dtype=kind)
    scale = torch.zeros(-(-inputs // GROUP), outputs)
    parts = low_bit_kernel.parts(x, weight, scale, GROUP)
    one = torch.zeros(rows, 1, outputs, dtype=dtype)
    kernels._add_norm(one, parts[:, :, None], one[0, 0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("architecture", "kind"), [(80, torch.int8), (90, torch.int8), (90, torch.float8_e4m3fn)]
)
def test_8_bit_products_compile_and_stream_their_weights(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    architecture: int,
    dtype: torch.dtype,
    kind: torch.dtype,
) -> None:
    """Copies of 16 bytes ahead of the arithmetic, and tensor cores for bfloat16."""
    from crane_x7_vla_rl.policies.openvla.run.low_bit_tune import RELEASED

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = triton_rig.compile_only(monkeypatch, architecture)
    for rows in (1, 16):
        for outputs, inputs in (*RELEASED, (96, 256), (33, 100)):
            del made[:]
            launch_low_bit(rows, outputs, inputs, dtype, kind)
            product, norm = made
            assert product.asm["cubin"].startswith(b"\x7fELF")
            assert norm.asm["cubin"].startswith(b"\x7fELF")
            if inputs % 16 == 0:
                wide = re.findall(r"cp\.async\.cg\.shared\.global.*0x10", product.asm["ptx"])
                assert len(wide) >= 3, product.asm["ptx"]
            if dtype is torch.bfloat16:
                assert "mma.sync.aligned.m16n8k16" in product.asm["ptx"]


def test_a_failing_assembler_costs_speed_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from crane_x7_vla_rl.policies.openvla.run import kernels
    from crane_x7_vla_rl.policies.openvla.run.trials import Trials

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 16])
def test_8_bit_products_run_on_the_gpu(rows: int, dtype: torch.dtype) -> None:
    from crane_x7_vla_rl.policies.openvla.run import kernels
    from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import Tiles

    for inputs, outputs, group in ((4096, 4096, 128), (11008, 264, 128), (96, 288, None)):
        for tiles in (None, Tiles(outputs=16, inputs=64, stages=3, split=4)):
            for kind in (
                ("int8", "fp8") if torch.cuda.get_device_capability() >= (8, 9) else ("int8",)
            ):
                low_bit_case(kind, rows, inputs, outputs, group, tiles, "cuda", dtype)
    for count in (1, 2, 8):
        parts_case(count, "cuda", dtype)
    assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts


@pytest.mark.gpu
def test_8_bit_decode_on_the_gpu_equals_the_cpus() -> None:
    from crane_x7_vla_rl.policies.openvla.run.runner import Runner

    found = {}
    for device in ("cpu", "cuda"):
        runner = Runner(rig.load().to(device), "int8")
        shown = rig.expected()["pixel_values"].to(device)
        for _ in range(2):  # captured, then replayed
            found[device] = runner.roll_out(shown, rig.prompts(), 8)
    assert torch.equal(found["cuda"].tokens.cpu(), found["cpu"].tokens)
    assert float((found["cuda"].logits.cpu() - found["cpu"].logits).abs().max()) < 1e-3


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
    from crane_x7_vla_rl.policies.load import SHIPPED
    from crane_x7_vla_rl.policies.openvla.run import kernels
    from crane_x7_vla_rl.policies.openvla.run.runner import Runner
    from crane_x7_vla_rl.policies.openvla.weights import loading

    found = {}
    for device in ("cpu", "cuda"):
        model = loading.load(SHIPPED, device=device, dtype=dtype).model
        size = model.config.image_size
        pixels = torch.randn(3, 6, size, size, generator=torch.Generator().manual_seed(0))
        rollout = Runner(model).roll_out(pixels.to(device), rig.prompts()[:3], 8)
        found[device] = rollout.logits[:, 0].cpu()
    limit = 1e-3 if dtype is torch.float32 else 0.5
    assert float((found["cuda"] - found["cpu"]).abs().max()) < limit
    assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts
