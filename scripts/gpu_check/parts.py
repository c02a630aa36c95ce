"""The parts of check_gpu. `Options` → what each part runs, and how long it may take.

Each part is a function that runs in a separate process. Some need a model of the released size
(`needs_model`), which the part `model` writes once for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from sft_bench.figures import Figures

FIXTURE: Final = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "openvla_tiny"


class Skipped(Exception):
    """A part that cannot run here; the text says what is missing."""


@dataclass(frozen=True)
class Options:
    """What every part is told."""

    scratch: Path
    """Folder for models and data, deleted by the parent."""
    device: str = "cuda"
    tiny: bool = False
    """Models and runs of the smallest size, for a test of this script on a CPU."""
    fixture: Path = FIXTURE

    @property
    def model(self) -> Path:
        """The checkpoint that the part `model` writes; it exists once it is whole."""
        return self.scratch / "model"


Run = Callable[[Figures, Options], None]


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    what: str
    seconds: float
    """Time limit on a GPU."""
    tiny_s: float = 300.0
    """Time limit with `--tiny`."""
    needs_model: bool = False

    def limit_s(self, tiny: bool) -> float:
        """Return the time limit."""
        return self.tiny_s if tiny else self.seconds

    def load(self) -> Run:
        """Return the function `run` of the part's file."""
        module, _, function = _RUNS[self.name].partition(":")
        return cast(Run, getattr(importlib.import_module(f"gpu_check.{module}"), function))


_RUNS: Final = {
    "tests": "gpu_tests:run",
    "padding": "padding:run",
    "parity": "parity:run",
    "kernels": "shapes:run",
    "draw": "drawing:run",
    "bench": "benches:openvla",
    "decode": "benches:decode",
    "model": "released:write",
    "loop10": "loop:at_10_hz",
    "loop30": "loop:at_30_hz",
    "sft": "training:fine_tuning",
    "ppo": "training:reinforcement",
    "genesis": "drawing:genesis",
}
PARTS: Final = {
    part.name: part
    for part in (
        Part("tests", "pytest -m gpu", 100),
        Part("padding", "bfloat16 with padded prompts, against float64", 30),
        Part("parity", "every path against the fixture, float32 and bfloat16", 40),
        Part("kernels", "Triton kernels at the shapes in use, against torch", 40),
        Part("draw", "SAPIEN draws on the GPU; simulation steps/s", 30),
        Part("bench", "scripts/bench_openvla without the cases of decode", 110),
        Part("model", "write a model of the released size, random weights", 60),
        Part("loop10", "infer at 10 Hz against sim-robot --arm kinematic", 60, needs_model=True),
        Part("loop30", "infer at 30 Hz against sim-robot --arm kinematic", 60, needs_model=True),
        Part("sft", "updates of fine-tuning at the released size", 75, needs_model=True),
        Part("ppo", "a rollout and its update at the released size", 90, needs_model=True),
        Part("decode", "8-bit products tuned; 8-bit and speculative decode", 90),
        Part("genesis", "Genesis scenes on CUDA; compiling takes minutes", 90),
    )
}
"""In this order: the first ones are worth most if time runs out."""
