"""scripts/bench_openvla: runs with six packages alone, and its figures are what they claim."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package, reason="needs the train extra")

from bench_rig import SCRIPTS, figures
from openvla_bench.limits import Device, generate_limit, vision_flop

from crane_x7_vla_rl.policies.openvla import OpenVLAConfig

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
    words = ["--device", "cpu", "--only", "same", "launches", "--rounds", "1"]
    command = ["-c", WITHOUT, str(SCRIPTS / "bench_openvla"), *words]
    rows = figures(tmp_path / "figures.json", *command)
    same = rows["difference of both models' action logits / their spread"]
    assert same["value"] < 1e-4, "the baseline is another model"
    launches = rows["operations launched per action of 8 tokens"]
    assert launches["baseline"] / launches["value"] == launches["ratio"] > 1.3


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
