"""Triton kernels against torch's operations, by Triton's interpreter: indices, not speed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

AGAINST_TORCH = """
import torch
from torch.nn import functional
from crane_x7_vla_rl.policies.openvla.run import kernels
from crane_x7_vla_rl.policies.openvla.model.language import rotate

def equal(ours, theirs):
    assert torch.allclose(ours, theirs, atol=1e-5), (ours - theirs).abs().max()

torch.manual_seed(0)
for batch, length, inner in ((1, 1, 88), (3, 2, 1500)):
    both = torch.randn(batch, length, 2 * inner)
    equal(kernels.gated(both), functional.silu(both[..., :inner]) * both[..., inner:])
    x, delta, weight = torch.randn(batch, length, inner), torch.randn(1), torch.randn(inner)
    delta = delta * x.flip(-1)
    total, normed = kernels.add_norm(x, delta, weight, 1e-6)
    equal(total, x + delta)
    equal(normed, functional.rms_norm(x + delta, (inner,), weight, 1e-6))
for batch, length, rows, heads, key_heads, start in ((1, 1, 1, 2, 2, 5), (3, 4, 3, 4, 2, 1)):
    qkv = torch.randn(batch, length, heads + 2 * key_heads, 16)
    angles = torch.randn(rows, length, 1, 8)
    cos = torch.cat([angles.cos()] * 2, -1)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    cache = torch.full((2, batch, 9, key_heads, 16), 7.0)
    wanted = cache.clone()
    turned = rotate(qkv[:, :, : heads + key_heads], cos, sin)
    wanted[0, :, start : start + length] = turned[:, :, heads:]
    wanted[1, :, start : start + length] = qkv[:, :, heads + key_heads :]
    equal(kernels.turn_into(qkv, cos, sin, cache, start), turned[:, :, :heads])
    equal(cache, wanted)
print("equal")
"""

LOW_BIT = """
import torch
from crane_x7_vla_rl.policies.openvla.run.low_bit import LowBit
from crane_x7_vla_rl.policies.openvla.run.low_bit_kernel import product
from crane_x7_vla_rl.policies.openvla.model.matrices import Dense

for rows, inputs, outputs in ((1, 300, 40), (7, 256, 16), (16, 88, 33)):
    coarse = LowBit(Dense(torch.randn(outputs, inputs)), "int8")
    x = torch.randn(rows, inputs)
    wanted = (x @ coarse.weight.float().T) * coarse.scale
    assert torch.allclose(product(x, coarse.weight, coarse.scale), wanted, atol=1e-3)
print("equal")
"""

WHOLE = """
import sys
import torch
from crane_x7_vla_rl.policies.openvla.run import inference, kernels
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
import openvla_rig as rig

inference.kernels_for = lambda x: kernels
runner = Runner(rig.load())
runner.bucket = 16
tokens = runner.roll_out(rig.expected()["pixel_values"][:2], rig.prompts()[:2], 3).tokens
assert torch.equal(tokens, rig.tokens("crane_x7")[:2, :3]), tokens
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("script", [AGAINST_TORCH, LOW_BIT, WHOLE], ids=["torch", "8bit", "whole"])
def test_kernels_compute_what_torch_does(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr
