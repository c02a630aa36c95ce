"""scripts/bench_cloud: random schedules of faults leave nothing rented, lost, doubled or shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_rig import SCRIPTS, figures


@pytest.mark.timeout(300)  # most of it is waiting; a busy machine stretches it
def test_schedules_of_faults_leave_nothing_rented_and_lose_nothing(tmp_path: Path) -> None:
    """40 of the 1000 schedules; `list` as a process is timed by the bench alone."""
    command = (str(SCRIPTS / "bench_cloud"), "--schedules", "40", "--schedules-only")
    rows = figures(tmp_path / "rows.json", *command, patience_s=280)
    assert rows["left after the next start, 40 schedules"]["value"] == 0
    assert rows["double rentals"]["value"] == 0
    assert rows["complete checkpoints lost"]["value"] == 0
    assert rows["places with a secret"]["value"] == 0
    assert rows["last starts that did not finish"]["value"] == 0
