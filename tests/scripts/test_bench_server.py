"""bench_server measures both servers and the link, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_run_measures_every_row(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_server"), "--calls=5", f"--json={path}"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = json.loads(path.read_text())
    assert ended.returncode == (1 if found["missed"] else 0), ended.stderr
    assert {*found["loopback"]} == {"ours", "openpi's shape"}
    assert {*found["link"]} == {"JPEG 640x480", "JPEG 224x224"}
    rows = [row for part in ("loopback", "link") for row in found[part].values()]
    assert all(0 < row["p50"] <= row["p99"] and row["calls"] >= 5 for row in rows)
    # No byte arrives before half a round trip in each direction.
    assert all(row["p50"] >= 40 for row in found["link"].values())
