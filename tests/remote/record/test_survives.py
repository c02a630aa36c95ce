"""A recorder that is killed, or whose disk is full, loses no finished episode."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from places import RIGS, ROOT

from crane_x7_vla_rl.data.lerobot import open_lerobot, recover

pytestmark = pytest.mark.timeout(600)

KILLS = 50


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of recorders that were killed, each at another file operation."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, RIGS / "record_rig.py", str(root), "1"],
        capture_output=True, text=True, timeout=500, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{RIGS}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [root / str(k) for k in range(1, int(done.stdout) + 1)]


def test_every_episode_that_was_finished_loads_after_a_kill(killed: list[Path]) -> None:
    assert len(killed) >= KILLS
    most = 0
    for folder in killed:
        finished = len((folder / "kept").read_text().split())
        found = recover(folder) or 0
        assert finished <= found <= 3, folder
        if not found:
            continue
        most = max(most, found)
        source = open_lerobot(folder)
        assert len(source) == found
        for number in range(found):
            episode = source[number]
            assert len(episode) in (3, 4)
            assert episode.image(len(episode) - 1).shape == (24, 32, 3)
        assert not list(folder.glob("**/*.partial"))
    assert most >= 2  # kills came before, between and after finished episodes


FULL_DISK = """
import sys
from pathlib import Path
from record_rig import START_S, options, stream
from crane_x7_remote.record.events import Ordered
from crane_x7_remote.record.recorder import Recorder
from crane_x7_remote.record.writing import EpisodeWriter
import resource

folder = Path(sys.argv[1])
writer = EpisodeWriter(folder, resume=False, kept=0, observe=None)
recorder = Recorder(options(folder), writer, print)

def episode(number):
    events = list(stream(0.6, START_S + 10 * number))
    for event in events[:30]:
        recorder.handle(event)
    recorder.handle(Ordered("start", "test"))
    for event in events[30:]:
        recorder.handle(event)
    recorder.handle(Ordered("stop", "test"))

for number in range(2):
    episode(number)
while writer.kept < 2:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for number in range(2, 4):
    episode(number)
writer.close_waiting()
print("failure:", writer.failure)
"""


@pytest.mark.parametrize("limit", [0, 700, 3000])
def test_a_full_disk_is_said_and_keeps_the_episodes_before(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), str(limit)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{RIGS}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "File too large" in done.stdout + done.stderr
    assert resource.RLIMIT_FSIZE is not None
    assert recover(folder) in (2, 3, 4)
    source = open_lerobot(folder)
    for number in range(2):
        assert source[number].image(0).shape == (24, 32, 3)
