"""The table of figures that bench_sft prints and writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS = ("name", "value", "unit", "baseline", "ratio", "target", "met")


@dataclass
class Figures:
    """Rows so far; each is printed when it is added."""

    path: Path | None = None
    """Written again after each row, so that a failed run keeps its measurements."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        baseline: float | None = None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        least_ratio: float | None = None,
    ) -> bool:
        """Keep a figure; return whether it meets its target or has none.

        A ratio is value / baseline: above 1 is more than the baseline.
        """
        ratio = value / baseline if baseline else None
        wanted, met = None, None
        if at_most is not None:
            wanted, met = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            wanted, met = f">= {at_least:g}", value >= at_least
        elif least_ratio is not None:
            wanted, met = f"ratio >= {least_ratio:g}", ratio is not None and ratio >= least_ratio
        row = (name, value, unit, baseline, ratio, wanted, met)
        self.rows.append(dict(zip(KEYS, row, strict=True)))
        beside = "" if ratio is None else f"  baseline {baseline:.4g}, ratio {ratio:.3g}"
        verdict = "" if met is None else f"  target {wanted}: {'met' if met else 'NOT met'}"
        print(f"{name}: {value:.4g} {unit}{beside}{verdict}", flush=True)
        if self.path is not None:
            text = json.dumps(self.rows, indent=2, ensure_ascii=False)
            self.path.write_text(text + "\n")
        return met is not False
