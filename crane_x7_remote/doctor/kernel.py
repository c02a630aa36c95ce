"""The smallest Triton kernel, to find out whether Triton can compile and launch one."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def double(values, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Double `count` values in place."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + at, 2 * tl.load(values + at, at < count), at < count)
