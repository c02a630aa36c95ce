"""Packages for the image without torch: those of the tests' own environment, mounted read-only.

The image with torch has 7 GB and takes minutes to build. The image without it, with the same pinned
versions mounted at FOLDER, answers a model or a training as that one does. Our own packages are not
among them (the checkout is installed there by a reference alone): the image's wheel is what runs.
"""

from __future__ import annotations

import sys
import sysconfig

import pytest
from containers import Workshop

FOLDER = "/opt/test-packages"


def mounted(workshop: Workshop, image: str) -> tuple[str, ...]:
    """Return the flags of `podman run` that give `image` this environment's packages."""
    for package in ("torch", "tokenizers", "transformers", "accelerate"):
        pytest.importorskip(package, reason="needs the train extra")
    asked = ("podman", "run", "--rm", "--network", "none", "--entrypoint", "python", image, "-V")
    theirs, ours = workshop.run(*asked).stdout.split()[1], sys.version_info[:2]
    if theirs.split(".")[:2] != [str(number) for number in ours]:
        # Compiled modules fit one minor version of Python alone.
        pytest.skip(f"the image has Python {theirs}, this environment {ours[0]}.{ours[1]}")
    folder = sysconfig.get_path("purelib")
    return (f"--volume={folder}:{FOLDER}:ro", f"--env=PYTHONPATH={FOLDER}")
