"""Products with 8-bit weights in Triton: by its interpreter, by its compiler, on a GPU."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import openvla_rig as rig
import pytest
import torch
import triton_rig
from kernel_cases import LISTEN, low_bit_case, parts_case

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

LOW_BIT = """
from kernel_cases import low_bit_case, parts_case
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import Tiles

SPLIT = Tiles(outputs=16, inputs=64, stages=2, split=3)
for rows, inputs, outputs, group, tiles in (
    (1, 300, 40, 128, None), (3, 700, 33, 64, SPLIT), (8, 256, 16, None, SPLIT),
    (9, 88, 33, 128, None), (16, 1100, 64, 32, SPLIT), (2, 16, 3, 16, SPLIT),
    (3, 704, 64, 64, SPLIT),  # no tile reaches over an edge
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


def test_8_bit_products_compute_what_torch_does() -> None:
    triton_rig.interpret(LISTEN + LOW_BIT)


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


def test_an_8_bit_product_compiles_for_an_h100(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = triton_rig.compile_only(monkeypatch, 90)
    launch_low_bit(1, 96, 256, torch.bfloat16, torch.int8)
    assert [one.asm["cubin"][:4] for one in made] == [b"\x7fELF"] * 2


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
    # float32 is for tests; its products are long to compile.
    sizes = RELEASED if dtype is torch.bfloat16 else ()
    for rows in (1, 16):
        for outputs, inputs in (*sizes, (96, 256), (33, 100)):
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
