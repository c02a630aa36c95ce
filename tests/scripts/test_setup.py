"""scripts/setup and scripts/setup-containers on a disk that is full, or fills from day to day."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Workshop
from places import ROOT

IMAGE = "localhost/crane-x7-remote"
NO_MOUNT = 77
READ_BY_SETUP = ("pyproject.toml", "constraints.txt", "scripts/setup")


def setup_on_a_disk_of(megabytes: int, checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup, without available packages, in a checkout on a separate file system.

    What .venv holds follows on standard output.
    """
    copies = "".join(f" && cp --parents {name} {checkout}" for name in READ_BY_SETUP)
    script = (
        f"mount -t tmpfs -o size={megabytes}m none {checkout} || exit {NO_MOUNT};"
        f" cd {ROOT}{copies} && {checkout}/scripts/setup; ended=$?; ls -A {checkout}/.venv;"
        " exit $ended"
    )
    environ = os.environ | {"SETUP_APT": "0", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        capture_output=True, text=True, timeout=60, env=environ,
    )  # fmt: skip
    if done.returncode == NO_MOUNT or done.stderr.startswith("unshare:"):
        # A container without privileges may not mount, and a disk cannot be filled otherwise.
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return done


def test_setup_on_a_small_disk_says_how_much_it_needs_before_it_downloads(tmp_path: Path) -> None:
    done = setup_on_a_disk_of(64, tmp_path)
    assert done.returncode == 1
    assert f"MB are free for {tmp_path}/.venv, which takes 3 GB" in done.stderr
    free_mb = int(done.stderr.partition("only ")[2].partition(" MB")[0])
    assert 60 <= free_mb <= 64
    assert "Free space" in done.stderr
    assert done.stdout == "", "nothing was installed"


def test_setup_on_a_disk_of_some_gigabytes_warns_and_tries(tmp_path: Path) -> None:
    """PyTorch's CPU build may fit; which one pip will find cannot be known."""
    done = setup_on_a_disk_of(4000, tmp_path)
    assert "MB are free for" in done.stderr
    assert "PyTorch's CUDA build takes 7 GB" in done.stderr
    assert "No matching distribution found" in done.stderr, "pip has run"
    assert done.returncode == 1
    assert "bin" in done.stdout.split()


def test_libraries_are_found_though_the_list_of_them_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may close the pipe early, once the first line is found: that ends ldconfig."""
    names = ("GL.so.1", "gthread-2.0.so.0", "Xext.so.6", "X11.so.6", "EGL.so.1", "vulkan.so.1")
    found = "".join(f"lib{name}\n" for name in names)
    ldconfig = tmp_path / "ldconfig"
    ldconfig.write_text(f"#!/bin/sh\nprintf '{found}'\nexec seq 300000\n")
    ldconfig.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    assert "MB are free for" in setup_on_a_disk_of(64, checkout).stderr


@pytest.fixture
def two_images(workshop: Workshop) -> Iterator[tuple[str, str]]:
    """An image of 1970 and one of now, named like those that the tests build."""
    names = (f"{IMAGE}:long-ago", f"{IMAGE}:just-now")
    for name, dated in zip(names, (["--timestamp", "0"], []), strict=True):
        container = workshop.run("buildah", "from", "scratch").stdout.strip()
        workshop.run("buildah", "commit", "--quiet", "--rm", *dated, container, name)
    yield names
    for name in names:
        workshop.run("podman", "rmi", "--force", name, check=False)


@pytest.mark.container
def test_images_a_day_old_are_removed_and_younger_ones_stay(
    workshop: Workshop, two_images: tuple[str, str]
) -> None:
    old, young = two_images
    assert workshop.run("podman", "image", "exists", old, check=False).returncode == 0
    Workshop.set_up()
    kept = set(
        workshop.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    )
    assert old not in kept
    assert {young, "localhost/crane-x7-base:bookworm"} <= kept
