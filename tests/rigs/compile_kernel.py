"""Compile a Triton kernel for a GPU that is not there, and C code as Triton does; print where to.

Run inside the image: ptxas makes sm_90's machine code, gcc a module against Python's and CUDA's
headers. Linking against the driver is left out: no driver exists without a GPU.
"""

import os
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.runtime.build import _build


@triton.jit
def double(values, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + at, 2 * tl.load(values + at, at < count), at < count)


types = {"values": "*fp32", "count": "i32", "BLOCK": "constexpr"}
source = triton.compiler.ASTSource(double, types, {"BLOCK": 64})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print("machine code:", len(kernel.asm["cubin"]) > 1000)
with tempfile.TemporaryDirectory() as folder:
    code = Path(folder, "cuda_utils.c")
    code.write_text((Path(driver.__file__).parent / "driver.c").read_text())
    module = _build("cuda_utils", str(code), folder, [], driver.include_dirs, [], [])
    print("module:", Path(module).read_bytes()[:4] == b"\x7fELF")
print("cached:", any(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")))
