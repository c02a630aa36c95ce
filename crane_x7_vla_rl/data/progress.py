"""The one progress bar: counts of episodes → a line on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def episode_bar(words: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` episodes; yields `show(done, words=None)`, which moves it."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    stderr = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=stderr, disable=not stderr.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(words, total=total)
        yield lambda done, words=None: progress.update(task, completed=done, description=words)
