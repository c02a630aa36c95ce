"""The vision towers as rollouts run them: the modules' values, in fewer operations."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvla_rig as rig
import pytest
import torch
import triton_rig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vision_cases import WIDTHS, norm_case

from crane_x7_vla_rl.policies.openvla import OpenVLA, OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.model import vision
from crane_x7_vla_rl.policies.openvla.model.config import TowerConfig
from crane_x7_vla_rl.policies.openvla.model.vision import Tower, VisionBackbone
from crane_x7_vla_rl.policies.openvla.run.vision import see

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
SCALED = TowerConfig(24, 3, 2, 48, 4, True, True, image_size=28)
PLAIN = TowerConfig(36, 4, 3, 40, attention_pool=True, image_size=28)


def towers() -> VisionBackbone:
    """Return random towers; every parameter counts."""
    torch.manual_seed(0)
    backbone = VisionBackbone(SCALED, PLAIN)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone


def pixels() -> Tensor:
    return torch.randn(2, 12, 28, 28, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_towers_without_gradients_give_the_modules_values() -> None:
    backbone = towers().double()
    wanted = backbone(pixels().double())
    assert float((backbone(pixels().double(), vision.add_norm) - wanted).abs().max()) < 1e-13
    ours = backbone.float()(pixels(), vision.add_norm)
    assert float((ours - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


@torch.no_grad()
def test_a_tower_of_one_block_computes_none() -> None:
    tower = Tower(TowerConfig(24, 1, 2, 48, 4, True, True, image_size=28))
    one = pixels()[:, :3]
    assert torch.equal(tower(one, vision.add_norm), tower(one))


def test_a_patch_is_embedded_as_the_convolution_does_with_its_gradients() -> None:
    embed = towers().fused_featurizer.patch_embed.double()
    one = pixels()[:, 3:6].double()  # not contiguous, as a part of six channels is
    theirs = embed.proj(one).flatten(2).transpose(1, 2)
    ours = embed(one)
    assert torch.allclose(ours, theirs, atol=1e-14)
    wanted = torch.autograd.grad(theirs.square().sum(), embed.proj.weight)[0]
    found = torch.autograd.grad(ours.square().sum(), embed.proj.weight)[0]
    assert torch.allclose(found, wanted, atol=1e-12)


def test_no_norm_or_sum_of_a_tower_reads_a_transposed_tensor() -> None:
    """The convolution's own layout would stay with every sum after it."""
    backbone = towers()
    read: list[bool] = []
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, given: read.append(given[0].is_contiguous()))
    backbone(pixels())
    assert len(read) == 2 * (2 + 3)
    assert all(read)


class Count(TorchDispatchMode):
    """Counts operations that compute, not views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        alias = returns[0].alias_info if returns else None
        self.count += alias is None and func is not torch.ops.aten._unsafe_view.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_released_towers_launch_a_quarter_less() -> None:
    """Of the released depth, but narrow, with an `AddNorm` that is one operation, as the kernel."""
    released = OpenVLAConfig()
    backbone = VisionBackbone(
        replace(released.dinov2, embed_dim=16, num_heads=2, mlp_dim=16, image_size=28),
        replace(released.siglip, embed_dim=16, num_heads=2, mlp_dim=16, image_size=28),
    )
    given = torch.zeros(1, 6, 28, 28)
    with Count() as modules:
        backbone(given)
    with Count() as kernel:
        backbone(given, lambda x, *_: (x.clone(), x))
    assert (modules.count, kernel.count) == (544, 402)


@torch.no_grad()
def test_patches_of_the_fixture_are_the_originals() -> None:
    model, expected = rig.load(), rig.expected()
    ours = see(model, expected["pixel_values"])
    exact = rig.load().double().encode(expected["pixel_values"].double())
    largest = float(expected["projected"].abs().max())
    # Both sides round, by processor: each is compared with float64, which hardly does.
    assert float((exact - expected["projected"]).abs().max()) <= 1e-6 * largest
    assert float((ours - exact).abs().max()) <= 1e-6 * largest


KERNEL = """
import torch
from torch import nn
from crane_x7_vla_rl.policies.openvla.model import vision
from crane_x7_vla_rl.policies.openvla.run import kernels, vision_kernels
from vision_cases import WIDTHS, norm_case

kernels._trials.passed = lambda *args: True  # the kernel, not what would replace it
for width in WIDTHS:
    norm_case(width, "cpu", torch.float32)
norm_case(36, "cpu", torch.bfloat16)
"""

FALLBACK = """
from crane_x7_vla_rl.policies.openvla.trials import Trials

kernels._trials = Trials()
norm_case(36, "cpu", torch.float32)
assert list(kernels._trials._verdicts.values()) == [True, True], kernels._trials._verdicts
norm_case(36, "cpu", torch.float64)  # too many digits for the kernel
vision_kernels._add_norm = lambda x, *_: (x, x)
norm_case(40, "cpu", torch.float32)
assert list(kernels._trials._verdicts.values())[2:] == [False, False], kernels._trials._verdicts
"""


@needs_triton
def test_the_kernel_computes_what_torch_does() -> None:
    triton_rig.interpret(KERNEL + FALLBACK)


@needs_triton
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        (90, torch.bfloat16),
        pytest.param(80, torch.float16, marks=pytest.mark.slow),
        pytest.param(90, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_compiles_for_the_released_towers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: int, dtype: torch.dtype
) -> None:
    from crane_x7_vla_rl.policies.openvla.run import vision_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = triton_rig.compile_only(monkeypatch, architecture)
    for width, scaled in ((1024, True), (1152, False)):
        x, norm = torch.zeros(1, 256, width, dtype=dtype), nn.LayerNorm(width, dtype=dtype)
        vision_kernels._add_norm(x, x, norm.bias if scaled else None, norm)
    assert len(made) == 2
    for one in made:
        assert one.asm["cubin"].startswith(b"\x7fELF")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_runs_on_the_gpu_at_every_width(dtype: torch.dtype) -> None:
    from crane_x7_vla_rl.policies.openvla.run import kernels

    for width in WIDTHS:
        norm_case(width, "cuda", dtype)
    assert all(kernels._trials._verdicts.values()), kernels._trials._verdicts


@pytest.mark.gpu
@torch.no_grad()
def test_patches_on_the_gpu_are_the_modules() -> None:
    model: OpenVLA = rig.load().cuda()
    given = rig.expected()["pixel_values"].cuda()
    assert float((see(model, given) - model.encode(given)).abs().max()) < 1e-4
