"""Kernels of the pass with gradients against torch's operations, by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import openvla_rig as rig
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crane_x7_vla_rl.policies.openvla.model import fused
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.trials import Trials

AGAINST_TORCH = """
import torch
from crane_x7_vla_rl.policies.openvla.model import fused, fused_kernels

def gradients(run, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    made = run(*inputs)
    made.backward(torch.arange(made.numel()).view(made.shape).cos())
    return [made.detach(), *(x.grad for x in inputs)]

def equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6), (one - other).abs().max()

torch.manual_seed(0)
for shape in ((1, 1, 88), (3, 2, 1500)):
    both = [torch.randn(shape), torch.randn(shape)]
    fast = lambda gate, up: fused._Gated.apply(gate, up, fused_kernels)
    equal(gradients(fast, both), gradients(fused.gated, both))
for batch, length, rows, heads, width in ((1, 1, 1, 2, 16), (3, 4, 3, 5, 24), (2, 3, 1, 40, 64)):
    x, angles = torch.randn(batch, length, heads, width), torch.randn(rows, length, 1, width // 2)
    cos = torch.cat([angles.cos()] * 2, -1)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    fast = lambda x: fused._Rotated.apply(x, cos, sin, fused_kernels)
    equal(gradients(fast, [x]), gradients(lambda x: fused.rotate(x, cos, sin), [x]))
    fused._try_rotate(fused_kernels, x)
fused._try_gated(fused_kernels, x)
print("equal")
"""

FOR_A_CARD = """
import torch, triton
from triton.backends.compiler import GPUTarget
from crane_x7_vla_rl.policies.openvla.model import fused_kernels as kernels

def built(kernel, pointers, numbers, **constants):
    names = [name for name in kernel.arg_names if name not in constants]
    kinds = dict(zip(names, ["*bf16"] * pointers + numbers, strict=True))
    source = triton.compiler.ASTSource(kernel, kinds | dict.fromkeys(constants, "constexpr"), {
        (kernel.arg_names.index(name),): value for name, value in constants.items()
    })
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

built(kernels._gated_kernel, 3, ["i64"], tile=1024)
built(kernels._gated_backward_kernel, 5, ["i64"], tile=1024)
for block, tile in ((16, 64), (4, 16)):
    built(kernels._rotate_kernel, 4, ["i32"] * 4 + ["fp32"], block=block, tile=tile)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "script",
    [AGAINST_TORCH, pytest.param(FOR_A_CARD, marks=pytest.mark.slow)],
    ids=["torch", "sm_90"],
)
def test_kernels_compute_what_torch_does_and_compile(script: str) -> None:
    interpreted = {"TRITON_INTERPRET": "1"} if script is AGAINST_TORCH else {}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **interpreted, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


class StandIn:
    """The kernels' functions in torch's operations, for whole passes on a CPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        self.calls.append("gated")
        return functional.silu(gate) * up

    def gated_backward(self, grown: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("gated_backward")
        share = gate.sigmoid()
        return grown * up * share * (1 + gate * (1 - share)), grown * gate * share

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, turn: float) -> Tensor:
        self.calls.append(f"rotate {turn:g}")
        return x * cos + x.roll(x.shape[-1] // 2, -1) * sin * turn


@pytest.mark.parametrize("recompute", [False, True])
def test_a_whole_pass_through_the_kernels_has_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    model = rig.load().double()
    model.checkpoint_gradients(recompute)
    pixels, prompts, tokens = rig.expected()["pixel_values"], rig.prompts(), rig.tokens("crane_x7")

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        evaluate(model, pixels, prompts, tokens).log_probs.sum().backward()
        named = model.language_model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    wanted, kernels = gradients(), StandIn()
    monkeypatch.setattr(fused, "kernels_for", lambda *_: kernels)
    monkeypatch.setattr(fused, "_trials", Trials())
    found, layers = gradients(), len(model.language_model.model.layers)
    tried = 1  # of each kind: queries and keys have heads of one shape
    assert kernels.calls.count("rotate -1") == 2 * layers + tried
    assert kernels.calls.count("gated_backward") == layers + tried
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name


class Wrong(StandIn):
    """A kernel whose gradient is wrong."""

    def gated_backward(self, grown: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        of_gate, of_up = super().gated_backward(grown, gate, up)
        return of_gate, of_up * 1.01


def raising(*_: object) -> Tensor:
    raise RuntimeError("ptxas died")


def test_a_kernel_that_fails_or_is_wrong_is_said_once_and_torch_takes_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Wrong()
    monkeypatch.setattr(kernels, "rotate", raising)
    monkeypatch.setattr(fused, "kernels_for", lambda *_: kernels)
    monkeypatch.setattr(fused, "_trials", Trials())
    x, gate = torch.randn(1, 2, 3, 24), torch.randn(1, 2, 40)
    cos, sin = torch.randn(2, 1, 2, 1, 24)
    for _ in range(2):
        assert torch.allclose(fused.rotate(x, cos, sin), x * cos + x.roll(12, -1) * sin)
        assert torch.equal(fused.gated(gate, gate), functional.silu(gate) * gate)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "rotate is not used on cpu for (torch.float32, 3, 24)" in caplog.text
    assert "gated is not used on cpu for torch.float32" in caplog.text
    assert "ptxas died" in caplog.text
    assert "differs by" in caplog.text
