"""What a trial shows: three lines on a terminal, or one line per change elsewhere.

All texts are escaped by `shown`; log lines appear above the lines of the terminal.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from crane_x7_vla_rl.data.progress import watched
from crane_x7_vla_rl.log_text import shown

if TYPE_CHECKING:
    from rich.live import Live

REDRAW_S: Final = 0.25


@dataclass(frozen=True)
class Lines:
    """The state of a trial as text."""

    head: str
    """Task, episode and results so far."""
    stage: str
    """What happens now; a change is a new line without a terminal."""
    numbers: str
    """Times and rates, which always change."""
    keys: str
    """What can be pressed now."""
    news: str = ""
    """The newest event."""


class TrialScreen:
    """A context manager; `show` is called often."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._drawn_s = float("-inf")
        self._drawn: Lines | None = None
        self._told: tuple[str, str, str] | None = None

    def __enter__(self) -> TrialScreen:
        console = watched()
        if console is not None:
            from rich.live import Live

            self._live = Live(
                console=console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, lines: Lines) -> None:
        """Draw the lines, at most every REDRAW_S; print what is new without a terminal."""
        if self._live is not None:
            self._draw(self._live, lines)
            return
        told = lines.head, lines.stage, lines.news
        if told != self._told:
            news = (
                f" · {lines.news}" if lines.news and lines.news != (self._told or told)[2] else ""
            )
            self._told = told
            self.say(f"{lines.head} · {lines.stage}{news}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(shown(text, 1000)))
        else:
            print(shown(text, 1000), file=sys.stderr, flush=True)

    def _draw(self, live: Live, lines: Lines) -> None:
        from rich.text import Text

        now_s = time.monotonic()
        if now_s - self._drawn_s < REDRAW_S or lines == self._drawn:
            return
        self._drawn_s, self._drawn = now_s, lines
        text = Text.assemble(
            (shown(lines.head), "bold"), "\n",
            (shown(lines.stage), "cyan"), f"  {shown(lines.numbers)}\n",
            (f"{lines.keys}\n", "dim"),
            (shown(lines.news), "yellow"),
            no_wrap=True, overflow="ellipsis",
        )  # fmt: skip
        live.update(text, refresh=True)
