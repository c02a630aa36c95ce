"""Our layers with adapters compute what PEFT's compute, and drop as often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("peft", reason="needs the train extra")

from peft import LoraConfig
from peft.tuners.lora import layer as peft
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla.model.matrices import outputs
from crane_x7_vla_rl.policies.openvla.weights import lora_layers
from crane_x7_vla_rl.policies.openvla.weights.lora_layers import (
    AdaptedConv2d,
    AdaptedLinear,
)

RANK, DROPOUT = 3, 0.25
EQUAL = 2e-6
"""Of the largest value: float32, sums in another order."""


def adapted(kind: Any, base: nn.Module, dropout: float = DROPOUT) -> Any:
    """Return `base`, frozen, with an adapter whose second matrix is not zero."""
    torch.manual_seed(0)
    base.requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout)
    layer = kind(base, "default", config=config, r=RANK, lora_alpha=2 * RANK)
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def results(layer: Any, x: Tensor, ask: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the output, and the gradients of a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    made = ask(x)
    weights = torch.arange(made.numel(), dtype=torch.float32).view(made.shape).cos()
    (made.float() * weights).sum().backward()
    halves = {name: getattr(layer, name)["default"].weight.grad for name in ("lora_A", "lora_B")}
    return {"output": made.detach(), "x": x.grad, **halves}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], within: float = EQUAL) -> None:
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert ours[name].dtype == value.dtype, name
        furthest = float((ours[name].float() - value.float()).abs().max())
        assert furthest <= within * float(value.float().abs().max()), name


@pytest.mark.parametrize("recomputed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_what_pefts_does(bias: bool, recomputed: bool) -> None:
    layer = adapted(AdaptedLinear, nn.Linear(7, 5, bias=bias)).eval()
    layer.recomputed = recomputed
    x = torch.randn(2, 4, 7)
    theirs = results(layer, x, lambda x: peft.Linear.forward(layer, x))
    assert_close(results(layer, x, layer), theirs)


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (3, 2)], ids=["patches", "overlapping"])
def test_a_convolution_computes_what_pefts_does(size: int, stride: int) -> None:
    layer = adapted(AdaptedConv2d, nn.Conv2d(3, 6, size, stride)).eval()
    x = torch.randn(2, 3, 8, 12)
    theirs = results(layer, x, lambda x: peft.Conv2d.forward(layer, x))
    assert_close(results(layer, x, layer), theirs)


def test_rows_of_a_head_are_those_of_all_its_outputs() -> None:
    layer = adapted(AdaptedLinear, nn.Linear(7, 9, bias=False)).eval()
    x = torch.randn(2, 4, 7)
    theirs = results(layer, x, lambda x: peft.Linear.forward(layer, x)[..., 3:8])
    assert_close(results(layer, x, lambda x: layer.rows(x, 3, 8)), theirs)


@pytest.mark.parametrize("entered", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_its_dtype(entered: torch.dtype) -> None:
    layer = adapted(AdaptedLinear, nn.Linear(64, 48).bfloat16(), dropout=0.0)
    for half in (layer.lora_A, layer.lora_B):
        half.float()
    x = torch.randn(2, 4, 64).to(entered)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = results(layer, x, lambda x: peft.Linear.forward(layer, x))
        ours = results(layer, x, layer)
    assert ours["output"].dtype == torch.bfloat16
    assert_close(ours, theirs, within=0.02)


def test_rows_are_multiplied_in_float32() -> None:
    layer = adapted(AdaptedLinear, nn.Linear(64, 48, bias=False).bfloat16(), dropout=0.0)
    for half in (layer.lora_A, layer.lora_B):
        half.float()
    x = torch.randn(5, 64).bfloat16()
    found = layer.rows(x, 8, 40).detach()
    layer.base_layer.float()
    exact = peft.Linear.forward(layer, x.float())[..., 8:40].detach()
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) <= EQUAL * float(exact.abs().max())


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    layer = adapted(AdaptedLinear, nn.Linear(400, 1, bias=False))
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_A["default"].weight.fill_(1)
        layer.lora_B["default"].weight.fill_(1 / (2 * RANK))  # an output is the sum of what stays
    x = torch.ones(1000, 400, requires_grad=True)
    stays = layer(x)[:, 0] * (1 - DROPOUT)  # (1000,)
    stays.sum().backward()
    counted = stays.detach()
    assert float(counted.mean()) == pytest.approx(400 * (1 - DROPOUT), rel=0.01)
    assert float(counted.std()) == pytest.approx((400 * DROPOUT * (1 - DROPOUT)) ** 0.5, rel=0.15)
    assert x.grad is not None
    assert float((x.grad == 0).float().mean()) == pytest.approx(DROPOUT, abs=0.01)
    assert torch.allclose((x.grad != 0).sum(1).float(), counted, rtol=1e-4)


def test_dropout_follows_from_the_seed_and_is_off_in_evaluation() -> None:
    layer = adapted(AdaptedLinear, nn.Linear(50, 5))
    x = torch.randn(3, 50)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        made: Tensor = layer(x)
        return made

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    layer.eval()
    assert torch.equal(drawn(1), drawn(2))


def test_an_adapter_switched_off_or_merged_counts_as_in_peft() -> None:
    layer = adapted(AdaptedLinear, nn.Linear(7, 5)).eval()
    x = torch.randn(4, 7)
    beside, bare = layer(x), layer.base_layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), bare)
    layer.enable_adapters(True)
    layer.merge()
    assert torch.allclose(layer(x), beside, atol=1e-5)
    assert torch.allclose(layer.rows(x, 1, 3), beside[:, 1:3], atol=1e-5)


def joined(x: Tensor, layers: list[Any]) -> Tensor:
    return torch.cat(outputs(x, *layers), dim=-1)


def apart(x: Tensor, layers: list[Any]) -> Tensor:
    return torch.cat([layer(x) for layer in layers], dim=-1)


def test_layers_that_read_the_same_input_compute_what_each_does_alone() -> None:
    """The third one has another scale and the last one no adapter, so they share nothing."""
    layers: list[Any] = [
        *(adapted(AdaptedLinear, nn.Linear(7, high, bias=high > 4)) for high in (5, 4, 3)),
        nn.Linear(7, 2).requires_grad_(False),
    ]
    layers[2].scaling["default"] = 0.5
    together = nn.ModuleList(layers).eval()
    found = []
    for ask in (apart, joined):
        x = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        together.zero_grad()
        made = ask(x, layers)
        made.square().sum().backward()
        learning = (p.grad for p in together.parameters() if p.requires_grad)
        found.append([made.detach(), x.grad, *learning])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= EQUAL * float(one.abs().max())


def test_layers_that_read_the_same_input_drop_the_same_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers: list[Any] = [adapted(AdaptedLinear, nn.Linear(7, 5))] * 3
    drawn: list[Tensor] = []
    draw = lora_layers._keep
    monkeypatch.setattr(lora_layers, "_keep", lambda x, share: drawn.append(x) or draw(x, share))
    x = torch.randn(4, 7)
    made = outputs(x, *layers)
    assert len(drawn) == 1
    assert torch.allclose(made[0], made[2], atol=1e-5)
    assert not torch.equal(made[0], layers[0](x))
    layers[0].enable_adapters(False)
    assert torch.equal(outputs(x, *layers)[0], layers[0].base_layer(x))


def test_recomputing_stops_before_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [adapted(AdaptedLinear, nn.Linear(7, 7)) for _ in range(2)]
    multiplied: list[int] = []

    class Counted:
        @staticmethod
        def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            multiplied.append([layer.base_layer.weight is weight for layer in layers].index(True))
            return nn.functional.linear(x, weight, bias)

    def both(x: Tensor) -> Tensor:
        made: Tensor = layers[1](layers[0](x))
        return made

    x = torch.randn(4, 7, requires_grad=True)
    torch.manual_seed(0)
    both(x).sum().backward()
    kept = [p.grad.clone() for layer in layers for p in layer.parameters() if p.requires_grad]
    nn.ModuleList(layers).zero_grad()
    monkeypatch.setattr(lora_layers, "functional", Counted)
    for layer in layers:
        layer.recomputed = True
    torch.manual_seed(0)
    made = torch.utils.checkpoint.checkpoint(both, x, use_reentrant=False)
    made.sum().backward()
    assert multiplied == [0, 1, 0]
    again = [p.grad for layer in layers for p in layer.parameters() if p.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
