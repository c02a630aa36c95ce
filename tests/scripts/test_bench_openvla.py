"""scripts/bench_openvla: runs with six packages alone, and its figures are what they claim."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package, reason="needs the train extra")

from bench_rig import SCRIPTS, figures
from openvla_bench.decoding import tiles
from openvla_bench.figures import INPUTS, Bench, in_turn
from openvla_bench.limits import Device, generate_limit, vision_flop
from openvla_bench.stages import STAGES, split

from crane_x7_vla_rl.policies.openvla import OpenVLAConfig
from crane_x7_vla_rl.policies.openvla.run import low_bit_tiles, low_bit_tune
from crane_x7_vla_rl.policies.openvla.run.replay import Replay

WITHOUT = """
import runpy, sys
names = ("cv2", "av", "mani_skill", "gymnasium", "websockets", "pydantic", "pydantic_settings",
         "simplejpeg", "rich", "roslibpy", "matplotlib", "scipy", "cbor2")
sys.modules.update(dict.fromkeys(names))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_bench_needs_no_other_package_and_counts_fewer_launches_than_the_baseline(
    tmp_path: Path,
) -> None:
    cases = ["same", "launches", "parts", "speculation"]
    words = ["--device", "cpu", "--rounds", "1", "--only", *cases]
    command = ["-c", WITHOUT, str(SCRIPTS / "bench_openvla"), *words]
    rows = figures(tmp_path / "figures.json", *command)
    same = rows["difference of both models' action logits / their spread"]
    assert same["value"] < 1e-4, "the baseline is another model"
    launches = rows["operations launched per action of 8 tokens"]
    assert launches["baseline"] / launches["value"] == launches["ratio"] > 1.3
    stages = [rows[f"operations launched: {stage}"]["value"] for stage in STAGES]
    assert min(stages) > 50
    assert launches["value"] - 40 < sum(stages) < launches["value"]
    assert all(rows[f"batch 1, 8 tokens: {stage}"]["value"] > 0 for stage in STAGES)
    name = "speculation, batch 1, 8 tokens"
    drafted = rows[f"{name}: latency"]
    assert drafted["baseline"] / drafted["value"] == drafted["ratio"]
    assert 0 < rows[f"{name}: passes after the prefill, random weights"]["value"] <= 7


def test_tiles_of_8_bit_products_are_tuned_and_compared_with_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(rows: int, outputs: int, inputs: int, tiles: low_bit_tiles.Tiles) -> float:
        del rows
        return outputs * inputs / 1e12 * (1 if tiles.outputs == 32 else 2)

    monkeypatch.setattr(low_bit_tiles, "TABLE", {})
    monkeypatch.setattr(low_bit_tune, "TABLE", low_bit_tiles.TABLE)
    monkeypatch.setattr(low_bit_tune, "cuda_clock", lambda _: clock)
    bench = Bench(torch.device("cpu"), None, None, Device(4e12, 1.0), 1)  # type: ignore[arg-type]
    tiles(bench)
    assert len(low_bit_tiles.TABLE) == 2 * len(low_bit_tune.RELEASED)
    assert {each.outputs for each in low_bit_tiles.TABLE.values()} == {32}
    rows = {row["name"]: row for row in bench.rows}
    name = "int8 product of 4096 × 11008, 16 rows"
    assert rows[f"{name}: tuned"]["value"] == pytest.approx(45.1, abs=0.1)
    assert rows[f"{name}: share of the bandwidth"]["value"] == pytest.approx(25.8, abs=0.1)


@dataclass
class Recorder:
    """A runner that keeps the inputs it got, and replays three steps as a rollout does."""

    seen: list[int] = field(default_factory=list)

    def roll_out(self, pixels: int, *_: object) -> None:
        self.seen.append(pixels)
        for _stage in STAGES:
            Replay(lambda: time.sleep(1e-3), torch.device("cpu"), None)()


@pytest.mark.parametrize("runs", [1, 2, 3, 4])
def test_no_timed_call_repeats_the_inputs_of_the_call_before(runs: int) -> None:
    """A model keeps the last inputs' results: a call that repeats them times the decode alone."""
    recorder = Recorder()
    bench: Any = SimpleNamespace(device=torch.device("cpu"), rounds=6, runner=recorder)
    batches: Any = [(number, []) for number in range(INPUTS)]
    in_turn(bench, batches, *[lambda one: recorder.roll_out(*one)] * runs)
    assert all(one != other for one, other in pairwise(recorder.seen))
    for run in range(runs):  # nor do those of one run, where the others use another model
        timed = recorder.seen[3 * runs :][run : 6 * runs : runs]
        assert all(one != other for one, other in pairwise(timed))


def test_stages_are_timed_one_by_one() -> None:
    recorder = Recorder()
    bench: Any = SimpleNamespace(device=torch.device("cpu"), rounds=3, runner=recorder)
    found = split(bench, [(0, []), (1, [])], 8)  # type: ignore[list-item]
    assert all(one != other for one, other in pairwise(recorder.seen))
    assert list(found.stages) == list(STAGES)
    assert all(seconds >= 1e-3 for seconds in found.stages.values())
    assert 0 <= found.rest < sum(found.stages.values())


def test_limits_are_those_of_the_projects_table() -> None:
    """4.3 TB/s and 790 TFLOP/s, released sizes, 280 tokens."""
    config, here = OpenVLAConfig(), Device(4.3e12, 790e12)
    assert vision_flop(config) / here.flop_s * 1e3 == pytest.approx(0.5, abs=0.03)
    one = generate_limit(config, here, 1, 280, 8)
    assert one.prefill_s * 1e3 == pytest.approx(4.6, abs=0.1)
    assert one.decode_s / 7 * 1e3 == pytest.approx(3.1, abs=0.1)
    assert one.total_s * 1e3 == pytest.approx(26.9, abs=0.9)
    many = generate_limit(config, here, 64, 280, 7)
    assert many.total_s * 1e3 == pytest.approx(360, rel=0.02)
