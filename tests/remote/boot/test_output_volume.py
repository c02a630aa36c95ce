"""boot warns where results are lost with the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_remote.boot.output_volume import MOUNTS, warning

ROOT = Path("/workspace/vla-rl/outputs")
LAYER = "1 0 0:50 / / rw,relatime - overlay overlay rw"


def mounted(root: str, point: str = str(ROOT)) -> str:
    return f"{LAYER}\n9 1 8:1 {root} {point} rw,relatime - ext4 /dev/sda1 rw\n"


def test_a_folder_of_the_container_itself_is_lost() -> None:
    text = warning(ROOT, LAYER)
    assert text is not None
    assert f"OUTPUT_ROOT={ROOT}: it is not on a volume" in text
    assert f"-v /path/to/outputs:{ROOT}" in text


@pytest.mark.parametrize("store", ["/var/lib/docker/volumes", "/storage/volumes"])
def test_a_volume_without_a_name_is_lost(store: str) -> None:
    text = warning(ROOT, mounted(f"{store}/{'0a' * 32}/_data"))
    assert text is not None
    assert "its volume has no name" in text


@pytest.mark.parametrize(
    ("root", "point"),
    [
        ("/home/me/outputs", str(ROOT)),
        ("/var/lib/docker/volumes/outputs/_data", str(ROOT)),
        ("/", "/workspace"),
        (r"/my\040disk", str(ROOT)),
    ],
)
def test_what_is_mounted_there_or_above_is_kept(root: str, point: str) -> None:
    assert warning(ROOT, mounted(root, point)) is None


def test_escaped_mount_points_are_read() -> None:
    assert warning(Path("/my disk/run"), mounted("/x", r"/my\040disk")) is None


def test_this_machines_own_table_is_read() -> None:
    assert warning(Path("/proc/self"), MOUNTS.read_text()) is None, "/proc is always a mount"
