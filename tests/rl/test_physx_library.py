"""SAPIEN's GPU PhysX library: missing, truncated, damaged, of another version; from an archive.

A small shared library stands in for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import http.server
import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

from crane_x7_vla_rl import physx_library
from crane_x7_vla_rl.gpu_simulation import Machine
from crane_x7_vla_rl.physx_library import NAME, LibraryError

BYTES = Path(sys.executable).resolve().read_bytes()[: 1 << 16]
"""Looks like a shared library, and is truncated."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the archive of a release that is pinned."""
    path = tmp_path / "linux-so.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr(NAME, BYTES)
    release = replace(
        physx_library.PINNED,
        archive_sha256=digest(path.read_bytes()),
        library_sha256=digest(BYTES),
        library_bytes=len(BYTES),
    )
    monkeypatch.setattr(physx_library, "PINNED", release)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return path


@pytest.fixture
def library(archive: Path, tmp_path: Path) -> Path:
    """Return the library, installed."""
    path = physx_library.install(str(archive), tmp_path / "physx")
    assert path == tmp_path / "physx" / physx_library.PINNED.version / NAME
    return path


def test_an_installed_library_is_right_and_stays(library: Path, tmp_path: Path) -> None:
    assert physx_library.problem(library) is None
    assert library.stat().st_mode & 0o555 == 0o555  # every user may load it
    assert physx_library.install("/nowhere", tmp_path / "physx") == library
    assert [path.name for path in library.parent.iterdir()] == [NAME]


def test_what_is_wrong_with_a_library_is_said(library: Path) -> None:
    found = Machine(True, library.parent.with_name("106") / NAME, True).problems()
    version = physx_library.PINNED.version
    assert re.search(f"is missing; found only version {re.escape(version)}. Fetch it", found[0])
    library.write_bytes(BYTES[:-1])
    assert f"{len(BYTES) - 1} bytes, expected {len(BYTES)}: it is truncated or of another" in str(
        physx_library.problem(library)
    )
    library.write_bytes(bytes([BYTES[0] ^ 1]) + BYTES[1:])
    (said,) = Machine(True, library, True).problems()
    assert f"expected {digest(BYTES)}: it is damaged or of another version. Fetch it once" in said
    assert f"python -m crane_x7_vla_rl.physx_library {physx_library.PINNED.url}; or unpack" in said
    assert "or use --backend cpu" in said


def test_a_version_without_a_checksum_is_checked_by_its_form(tmp_path: Path) -> None:
    path = tmp_path / "106" / NAME
    path.parent.mkdir()
    path.write_bytes(next(Path(np.__file__).parent.rglob("*.so")).read_bytes())
    assert physx_library.problem(path) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert "it is truncated" in str(physx_library.problem(path))
    path.write_text("<html>not found</html>" * 10)
    assert "is not a shared library" in str(physx_library.problem(path))


def test_a_wrong_archive_installs_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "physx"
    whole = archive.read_bytes()
    for content, says in (
        (whole[:-10], "expected [0-9a-f]{64}, that of https://.*linux-so.zip: it is damaged"),
        (b"", "it is damaged"),
    ):
        archive.write_bytes(content)
        with pytest.raises(LibraryError, match=says):
            physx_library.install(str(archive), folder)
    archive.write_bytes(whole)
    pinned = replace(physx_library.PINNED, library_sha256="0" * 64)
    monkeypatch.setattr(physx_library, "PINNED", pinned)
    assert physx_library.main([str(archive), str(folder)]) == 1
    assert "it is damaged or of another version" in capsys.readouterr().err
    assert physx_library.main([str(tmp_path / "gone.zip"), str(folder)]) == 1
    assert re.search("gone.zip: .*No such file.*expected linux-so.zip", capsys.readouterr().err)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.fixture
def address(archive: Path) -> Iterator[str]:
    """Return the URL of the archive, served from its folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(archive.parent))

        def log_message(self, *args: Any) -> None:
            del args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_mirror_serves_as_well(address: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "physx"
    assert physx_library.main([f"{address}/linux-so.zip", str(folder)]) == 0
    installed = Path(capsys.readouterr().out.strip())
    assert physx_library.problem(installed) is None
    installed.unlink()
    assert physx_library.main([f"{address}/none.zip", str(folder)]) == 1
    assert "HTTP Error 404" in capsys.readouterr().err


def test_sapien_loads_the_file_that_is_checked_and_downloads_nothing(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sapien = pytest.importorskip("sapien")
    from crane_x7_vla_rl.sim.vector import maniskill_gpu

    assert sapien.physx.version() == physx_library.PINNED.version
    (tmp_path / ".sapien").mkdir()
    (tmp_path / ".sapien" / "physx").symlink_to(library.parents[1])  # as in the image
    monkeypatch.setenv("HOME", str(tmp_path))
    checked = maniskill_gpu.this_machine().physx_library
    assert physx_library.problem(checked) is None
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, _: loaded.append(name))
    monkeypatch.setattr(sapien.physx, "_enable_gpu", lambda: None)
    monkeypatch.setattr(sapien.physx.requests, "get", None)
    sapien.physx.enable_gpu()
    assert loaded == ["libcuda.so", str(checked)]


def test_the_image_fetches_the_pinned_release() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"ARG PHYSX_ARCHIVE={physx_library.PINNED.url}\n" in dockerfile
