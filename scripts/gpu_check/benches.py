"""scripts/bench_openvla as parts of the check: its figures become the part's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from openvla_bench.cases import CASES
from sft_bench.figures import Figures

from gpu_check.parts import Options

SCRIPT: Final = Path(__file__).resolve().parents[1] / "bench_openvla"
DECODE: Final = ("tiles", "int8", "fp8", "speculation")
"""Cases of other ways to decode; on a CPU only the last one exists."""
ROUNDS: Final = 10
TARGETS: Final = {
    "batch 1, 8 tokens: latency, alone": ("at_most", 29.0),
    "batch 64, 7 tokens: share of the limit": ("at_least", 85.0),
    "int8 decode, batch 1, 7 tokens: latency": ("at_most", 20.0),
    "fp8 decode, batch 1, 7 tokens: latency": ("at_most", 20.0),
}
"""On one H200."""


def openvla(figures: Figures, options: Options) -> None:
    """Run the cases that are no way to decode."""
    known = CASES[options.device]
    names = [name for name in known if name not in DECODE]
    _bench(figures, options, names[:2] if options.tiny else names)


def decode(figures: Figures, options: Options) -> None:
    """Tune and run 8-bit decode, and run speculative decode."""
    _bench(figures, options, [name for name in DECODE if name in CASES[options.device]])


def _bench(figures: Figures, options: Options, names: Sequence[str]) -> None:
    path = options.scratch / f"{'-'.join(names)}.rows.json"
    rounds = 1 if options.tiny else ROUNDS
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--device", options.device, "--rounds", str(rounds),
         "--only", *names, "--json", str(path)],
    )  # fmt: skip
    try:
        while True:
            try:
                code = process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                _fold(figures, path)  # so that a part that runs out of time keeps its figures
    finally:
        process.kill()
    _fold(figures, path)
    if code:
        raise RuntimeError(f"bench_openvla ended with exit code {code}; see above")


def _fold(figures: Figures, path: Path) -> None:
    """Add the rows that are new, with this check's targets."""
    if not path.exists():
        return
    try:
        rows = json.loads(path.read_text())
    except ValueError:  # being written
        return
    for row in rows[len(figures.rows):]:  # fmt: skip
        kind, target = TARGETS.get(row["name"], (None, None))
        if target is not None and kind is not None:
            met = row["value"] <= target if kind == "at_most" else row["value"] >= target
            row |= {"target": f"{'<=' if kind == 'at_most' else '>='} {target:g}", "met": met}
        figures.rows.append(row)
    if figures.path is not None:
        figures.path.write_text(json.dumps(figures.rows, indent=2, ensure_ascii=False) + "\n")
