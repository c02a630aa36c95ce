"""scripts/bench_rl: both sides see, compute and do the same, limits are counted right, rows whole.

Its simulations start in seconds of an idle core, minutes of a busy one, so the deadlines are long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "transformers", "peft", "accelerate", "mani_skill"):
    pytest.importorskip(package, reason="needs the train and sim extras")

import numpy as np
import torch
from bench_rig import SCRIPTS, figures
from rl_bench import case, limits, plain
from rl_bench.plain_envs import Seen, View

from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig

PATIENCE_S = 580
patient = pytest.mark.timeout(PATIENCE_S + 20)


Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Return what one small run of everything writes."""
    words = ["--device", "cpu", "--size", "smallest", "--threads", "1"]
    path = tmp_path_factory.mktemp("bench_rl") / "figures.json"
    return figures(path, str(SCRIPTS / "bench_rl"), *words, patience_s=PATIENCE_S)


@pytest.mark.slow  # minutes; what it computes with is tested below, and in test_ppo
@patient
def test_both_sides_see_compute_and_do_the_same(rows: Rows) -> None:
    same = [row for name, row in rows.items() if name.startswith("same ")]
    assert len(same) == 5
    assert all(row["met"] is True for row in same)
    decisions, samples, steps = (
        rows[f"of a round: {what}"]
        for what in ("decisions", "samples learned from", "steps of the optimizer")
    )
    assert decisions["value"] == decisions["baseline"] == 2 * case.ENDING  # environments
    assert samples["value"] == samples["baseline"] == decisions["value"]  # one epoch
    assert steps["value"] == steps["baseline"] == 2
    for name in ("rollout: environment steps", "update: samples",
                 "rollout and update: environment steps"):  # fmt: skip
        row = rows[name]
        assert row["value"] / row["baseline"] == row["ratio"] > 0
        assert row["target"] == "ratio >= 3"
        assert row["met"] is (row["ratio"] >= 3)
        least, middle = (
            rows[f"{name}, {which} of the rounds' ratios"]["value"] for which in ("least", "median")
        )
        assert 0 < least <= middle
    parts = [rows[f"{name}: environment steps"]["value"]
             for name in ("rollout", "rollout and update")]  # fmt: skip
    assert parts[0] > parts[1]
    waiting = rows["rollout: waiting for simulations"]
    assert 0 <= waiting["value"] <= 100
    assert 0 <= waiting["baseline"] <= 100
    bounds = [rows[f"{name}: limit, simulation and products one after the other"]["value"]
              for name in ("rollout", "rollout and update")]  # fmt: skip
    alone = rows["simulation alone, the fastest of all rounds"]["value"]
    assert alone > bounds[0] > bounds[1] > 0
    assert rows["rollout: share of that limit"]["value"] > 0


@pytest.mark.slow  # minutes; what it computes with is tested below, and in test_ppo
@patient
def test_maniskills_rollout_has_one_environment_or_as_many_as_ours(rows: Rows) -> None:
    one = rows["rollout beside ManiSkill's PPO, one environment"]
    many = rows["rollout beside ManiSkill's PPO over AsyncVectorEnv"]
    assert one["value"] == many["value"] > 0
    assert one["baseline"] > 0
    assert many["baseline"] > 0


@pytest.mark.slow  # minutes; what it computes with is tested below, and in test_ppo
@patient
def test_the_trainers_own_run_says_what_it_loses(rows: Rows) -> None:
    lost = rows["train: outside simulate, infer and learn, of an update"]
    assert 0 <= lost["value"] <= 100
    assert lost["target"] == "<= 5"
    assert lost["met"] is (lost["value"] <= 5)
    whole = rows["train: outside, with those every 2 updates"]["value"]
    extra = rows["train: an evaluation and two checkpoints"]["value"]
    update = rows["train: time of an update"]["value"]
    assert extra > 0
    # Of two updates and what follows them, at least that is lost.
    assert 100 * extra / (2 * update + extra) <= whole < 100


def test_an_answers_limit_counts_what_torch_counts_but_for_what_nothing_reads(
    tmp_path: Path,
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    scale, answer = case.SCALES["smallest"], 8
    model = load(case.write_model(tmp_path, scale)).model
    prompt = torch.tensor([1, *range(40, 60)])
    pixels, tokens = torch.randn(1, 6, 32, 32), torch.full((1, answer), 31800)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate(model, pixels, [prompt], tokens)
    length = model.config.patches + len(prompt) + answer
    text = model.config.text
    later = 2 * length**2 * text.hidden_size * (text.num_hidden_layers - 1)
    add_lora(model, LoraSettings(rank=4))
    counted = counter.get_total_flops() - later
    assert limits.answer_flop(model, len(prompt), answer) == pytest.approx(counted, rel=0.03)


def test_the_plain_loop_values_the_last_view_of_a_truncated_episode() -> None:
    view = View(np.zeros((2, 2, 3), np.uint8), np.zeros(8), "wait")
    none = torch.zeros(0)
    chosen = plain.Choice(none, none, none, none, value=1.0)
    ends = [Seen(view, 0.0, False, True, view), Seen(view, 1.0, True, False, None)]
    story = plain.Story([[chosen] * 2], [ends], [[3.0, 0.0]], [7.0, 7.0])
    advantages, returns = story.judged(PpoConfig(gamma=0.5))
    assert returns.tolist() == [0.5 * 3.0, 1.0]  # and nothing of what comes next
    assert advantages.tolist() == pytest.approx([1.0, -1.0])
