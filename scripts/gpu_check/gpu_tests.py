"""The tests with marker `gpu`. pytest → how many passed, failed and were skipped."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sft_bench.figures import Figures

from gpu_check.parts import Options, Skipped

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "pytest.mark.gpu"
TINY: Final = ("tests/rl/policies/openvla/test_image.py", "-k", "pil", "-m", "not gpu")
"""Without a GPU: a few quick ones."""


def files(root: Path = ROOT) -> list[str]:
    """Return the test files that have the marker: the others need packages that may be missing."""
    found = (path for path in (root / "tests").rglob("test_*.py") if MARK in path.read_text())
    return sorted(str(path.relative_to(root)) for path in found)


def run(figures: Figures, options: Options) -> None:
    """Run them; raises SystemExit if one failed."""
    if missing := [name for name in ("pytest", "pytest_asyncio", "pytest_timeout")
                   if find_spec(name) is None]:  # fmt: skip
        raise Skipped(f"{', '.join(missing)} missing; see --bundle and --packages")
    report = options.scratch / "tests.xml"
    words = TINY if options.tiny else (*files(), "-m", "gpu")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
         *words],
        cwd=ROOT, check=False,
    )  # fmt: skip
    if not report.exists():
        raise SystemExit(f"pytest ended with {done.returncode} and without a report")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed, skipped = count["failures"] + count["errors"], count["skipped"]
    figures.row("passed", count["tests"] - failed - skipped, "tests", at_least=1)
    figures.row("failed", failed, "tests", at_most=0)
    figures.row("skipped", skipped, "tests")
    if failed:
        raise SystemExit(1)
