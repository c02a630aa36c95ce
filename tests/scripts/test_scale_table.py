"""`docs/scale.md` compares what GPUs exchange with what they compute, from counted figures."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "scale-table"))


def test_both_pages_have_the_tables_of_the_script(table: dict[str, Any]) -> None:
    for language, path in table["PAGES"].items():
        page = path.read_text(encoding="utf-8")
        assert table["rendered"](page, language) == page, "run scripts/scale-table"


def test_a_ring_sends_what_its_collectives_need(table: dict[str, Any]) -> None:
    """Each GPU sends (N − 1)/N of a tensor to gather or scatter it, twice that to sum it."""
    sent = {case.key: case.sent_bytes(8) for case in table["CASES"]}
    assert sent["lora_ddp"] == pytest.approx(2 * 7 / 8 * 4 * table["ADAPTERS"])
    assert sent["all_fsdp"] == pytest.approx(3 * 7 / 8 * 4 * table["WEIGHTS"])
    assert sent["all_ddp"] / sent["all_fsdp"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_sizes_and_operations_are_those_of_the_released_model(table: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from crane_x7_vla_rl.policies.openvla import OpenVLA
    from crane_x7_vla_rl.policies.openvla.model.config import OpenVLAConfig
    from crane_x7_vla_rl.policies.openvla.weights.lora import ALL_LINEAR, LoraSettings, add_lora

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from openvla_bench.limits import evaluate_flop
        from sft_bench.flops import update_flop
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    with torch.device("meta"):
        model = OpenVLA(OpenVLAConfig())
        assert sum(p.numel() for p in model.parameters()) == table["WEIGHTS"]
        add_lora(model, LoraSettings(32, 16, 0.0, ALL_LINEAR))
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapters == table["ADAPTERS"]
    assert table["FLOP"]["lora"] == pytest.approx(update_flop(model, 24, 8), rel=1e-3)
    assert table["FLOP"]["all"] == pytest.approx(
        4 * evaluate_flop(model.config, 1, 280, 8), rel=1e-3
    )
