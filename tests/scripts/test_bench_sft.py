"""scripts/bench_sft: both sides learn the same, its limit is counted right, its rows are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("torch", "transformers", "peft", "accelerate"):
    pytest.importorskip(package, reason="needs the train extra")

import torch
from bench_rig import SCRIPTS, figures
from openvla_bench.limits import vision_flop
from sft_bench import flops, world

from crane_x7_vla_rl.policies.openvla import OpenVLA, OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora


@pytest.mark.slow
def test_both_sides_learn_the_same_and_all_figures_are_written(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--size", "smallest", "--threads", "1"]
    rows = figures(tmp_path / "figures.json", str(SCRIPTS / "bench_sft"), *words)
    assert all(rows[f"same batch: difference of {what}"]["met"] is True
               for what in ("pixels", "loss", "gradients"))  # fmt: skip
    speed = rows["fine-tuning, batch 2: throughput"]
    assert speed["value"] / speed["baseline"] == speed["ratio"] > 0
    assert speed["target"] == "ratio >= 1"
    assert speed["met"] is (speed["ratio"] >= 1)
    assert 0 < rows["fine-tuning, batch 2: data / step time"]["value"] < 100
    assert 0 < rows["fine-tuning, batch 2: share of the limit"]["value"] < 100
    assert rows["loader alone: ready for the model"]["value"] > 0


def test_the_limit_counts_what_torch_counts_but_for_what_nothing_reads(tmp_path: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    scale, rank, answer = world.SCALES["smallest"], 4, 8
    model = load(world.write_model(tmp_path, scale, torch.device("cpu"))).model
    add_lora(model, LoraSettings(rank=rank))
    prompt = torch.tensor([1, 40, 41, 42, 43])
    tokens = torch.full((1, answer), 31800)
    in_place = {torch.ops.aten.addmm_: lambda _total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)  # torch leaves these out
    with counter, sdpa_kernel(SDPBackend.MATH):
        evaluate(model, torch.randn(1, 6, 224, 224), [prompt], tokens).log_probs.mean().backward()
    text = model.config.text
    length = model.config.patches + len(prompt) + answer
    later = 3 * 2 * length**2 * text.hidden_size * (text.num_hidden_layers - 1)
    needed = counter.get_total_flops() - later
    assert flops.update_flop(model, len(prompt), answer) == pytest.approx(needed, rel=1e-3)


def test_the_released_model_needs_twice_its_forward_pass_and_its_adapters() -> None:
    """Vision by the table of limits of bench_openvla, the language model by its parameters."""
    with torch.device("meta"):
        model = OpenVLA(OpenVLAConfig())
        add_lora(model, LoraSettings(rank=32))
    config, text, answer = model.config, 22, 8
    length = config.patches + text + answer
    rows = 2.0 * sum(p.numel() for name, p in model.language_model.model.named_parameters()
                     if "layers" in name and "lora" not in name)  # fmt: skip
    forward = vision_flop(config) + length * rows
    assert flops.update_flop(model, text, answer) == pytest.approx(2 * forward, rel=0.1)
