"""The loop's state in one line, redrawn twice a second in a terminal.

`LoopMetrics` of the loop's thread → text, formatted and drawn on a separate thread; the loop
neither calls it nor waits for it. There is no such line in a file, in a pipe or with TERM=dumb.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.inference.tick_log import DRIVING, DRY_RUN
from crane_x7_vla_rl.data.progress import watched
from crane_x7_vla_rl.log_text import shown

if TYPE_CHECKING:
    from rich.console import Console

PERIOD_S: Final = 0.5
TASK_LETTERS: Final = 60


@contextmanager
def live_line(metrics: LoopMetrics, period_s: float = PERIOD_S) -> Iterator[None]:
    """Show the line inside the block, on a terminal only."""
    console = watched()
    if console is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_draw, args=(console, metrics, period_s, ended), name="live line", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)


def _draw(console: Console, metrics: LoopMetrics, period_s: float, ended: threading.Event) -> None:
    from rich.live import Live
    from rich.text import Text

    # Log lines go through the console meanwhile, so that they appear above the line.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        while not ended.wait(period_s):
            live.update(Text(line(metrics), no_wrap=True, overflow="ellipsis"), refresh=True)


def line(metrics: LoopMetrics) -> str:
    """Return state, rate, latency and task of a loop as text."""
    state, rate_hz = metrics.state, metrics.rate_hz
    words = [state if state in (DRIVING, DRY_RUN, "starting") else f"holds: {state}"]
    if rate_hz is not None:
        words.append(f"{rate_hz:.1f} of {metrics.asked_rate_hz:g} Hz")
    p50_ms, p99_ms = metrics.latency.quantile_ms(0.5), metrics.latency.quantile_ms(0.99)
    if p50_ms is not None and p99_ms is not None:
        words.append(f"latency {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms")
    words.append(f"{metrics.counters['trajectories']} trajectories")
    words.append(f"task: {shown(metrics.instruction, TASK_LETTERS)}")
    return " · ".join(words)
