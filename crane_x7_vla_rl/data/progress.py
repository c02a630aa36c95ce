"""Progress bars for people at a terminal; this module alone decides whether to show one.

Counts → a line on standard error, if that is a terminal that can redraw a line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def watched() -> Console | None:
    """Return a console on standard error; None if that is a file, a pipe or TERM=dumb."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return console if console.is_interactive else None


@contextmanager
def episode_bar(words: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` episodes; yields `show(done, words=None)`, which moves it."""
    console = watched()
    if console is None:
        yield _show_nothing
        return
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(words, total=total)
        yield lambda done, words=None: progress.update(task, completed=done, description=words)


def _show_nothing(done: int, words: str | None = None) -> None:
    del done, words
