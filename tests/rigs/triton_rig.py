"""Triton without a GPU: its interpreter, and its compiler for a card that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from typing import Any

import pytest

ARCHITECTURES = (80, 90)
"""A100; H100 and H200."""


def interpret(script: str) -> None:
    """Run a script under the interpreter to its end."""
    done = subprocess.run(
        [sys.executable, "-c", script + "print('done')"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


_numbers = count(1000)
"""Each card is another device to Triton, which keeps what it compiled by device."""


class Card:
    """As much of Triton's driver as a compilation needs."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)
        self._number = next(_numbers)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_only(monkeypatch: pytest.MonkeyPatch, architecture: int) -> list[Any]:
    """Let launches compile and not run; return the list into which what they made goes.

    A launch takes tensors on the CPU: the code depends on their dtypes and alignment alone. An
    error of Triton's, then, is what a first launch on such a card would raise, too.
    """
    from triton.runtime import driver, jit

    made: list[Any] = []
    run = jit.JITFunction.run

    def compiled(self: Any, *args: Any, **options: Any) -> Any:
        made.append(run(self, *args, **{**options, "warmup": True}))
        return made[-1]

    monkeypatch.setattr(jit.JITFunction, "run", compiled)
    monkeypatch.setattr(driver, "_active", Card(architecture))
    return made
