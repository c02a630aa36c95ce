"""Text for a log or a terminal: any text → one without secrets, in one line where needed.

Known secrets become `***`; control and format characters are escaped, so that a message from
outside can neither forge a line nor control the terminal; long lines are cut. `install` applies it
everywhere: records are masked at their creation, so also for handlers that libraries add later.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Final, TextIO

from crane_x7_vla_rl.secret_text import mask

LINE: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
"""Format of every log of both packages."""
CLOCK: Final = "%H:%M:%S"
DATE_AND_CLOCK: Final = "%Y-%m-%d %H:%M:%S"
"""For logs that are read on another day."""
LINE_LIMIT: Final = 2000
"""Characters of one line of a log."""
SHOWN_LIMIT: Final = 300
"""Most characters of text from outside within a line."""
INDENT: Final = "  "
"""Before every line except the first: only messages of this program start at the margin."""
MANY_LINES: Final = {"many_lines": True}
"""For `extra` of a message of this program with several lines."""
REQUESTS: Final = ("httpx", "httpx2")
"""Libraries that log a line for each HTTP request, which only --log-level debug shows."""
WIDE_BLANK: Final = "\u3000"
"""The blank of Japanese text, not printable to Python."""


def escape(text: str) -> str:
    """Return `text` in one line: unprintable characters as \\n, \\x1b or \\u202e."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == WIDE_BLANK else _code(letter) for letter in text
    )


def _code(letter: str) -> str:
    return ascii(letter)[1:-1]


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, and the number of further ones."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"


def shown(said: object, limit: int = SHOWN_LIMIT) -> str:
    """Return text from outside, or an exception that quotes it: escaped, cut and masked."""
    try:
        text = str(said)
    except Exception as error:  # a foreign class may raise anything
        text = f"{type(said).__name__} that cannot be shown ({type(error).__name__})"
    return cut(escape(mask(text)), limit)


def block(text: str) -> str:
    """Return `text` with its lines kept, each escaped and cut, and all but the first indented.

    If one of them starts at the margin all move, so that nested lines stay nested.
    """
    first, *others = text.split("\n")
    margin = "" if all(line.startswith(INDENT) for line in others) else INDENT
    lines = (first, *(margin + line for line in others))
    return "\n".join(cut(escape(line), LINE_LIMIT) for line in lines)


def tell(text: object) -> str:
    """Return an error of this program for printing: masked, and see `block`."""
    return block(mask(str(text)).rstrip("\n"))


class LineFormatter(logging.Formatter):
    """One record, one line; tracebacks and MANY_LINES indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        record.message = _message(record)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        line = mask(self.formatMessage(record))
        text = (
            block(line) if getattr(record, "many_lines", False) else cut(escape(line), LINE_LIMIT)
        )
        if record.exc_info and not record.exc_text:
            record.exc_text = mask(self.formatException(record.exc_info))
        for more in (record.exc_text, record.stack_info):
            if more:
                text = f"{text}\n{block(INDENT + mask(more))}"
        return text


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a wrong format string must not show its arguments on standard error
        return f"{record.msg} {record.args!r}"


def configure(level: str, line: str = LINE, datefmt: str = CLOCK) -> None:
    """Log to standard error in the format `line`, unless logging is configured; `install`."""
    install()
    root = logging.getLogger()
    if not root.handlers:
        handler = StandardError()
        handler.setFormatter(LineFormatter(line, datefmt))
        root.addHandler(handler)
        root.setLevel(level.upper())
        quiet = max(root.level, logging.WARNING)
        for name in REQUESTS:
            logging.getLogger(name).setLevel(root.level if root.level == logging.DEBUG else quiet)


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`: a progress bar may have replaced it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr


def install() -> None:
    """Mask secrets in all records and uncaught errors of this process; repeated calls are harmless.

    Hooks that other code has set are kept.
    """
    make = logging.getLogRecordFactory()
    if not getattr(make, "masks_secrets", False):
        logging.setLogRecordFactory(_masking(make))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if warnings.formatwarning.__module__ == "warnings":
        warnings.formatwarning = _masking_warning(warnings.formatwarning)


def _masking(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make_masked(*args: Any, **named: Any) -> logging.LogRecord:
        record = make(*args, **named)
        message = _message(record)
        if (masked := mask(message)) != message:
            record.msg, record.args = masked, None
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (masked := mask(trace)) != trace:  # a handler must not find the exception itself
                record.exc_text, record.exc_info = masked, None
        if record.stack_info:
            record.stack_info = mask(record.stack_info)
        return record

    make_masked.masks_secrets = True  # type: ignore[attr-defined]
    return make_masked


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    _print("".join(traceback.format_exception(kind, error, trace)))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = "?" if args.thread is None else args.thread.name
        text = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        _print(f"Exception in thread {name}:\n" + "".join(text))


def _unraisable(args: Any) -> None:
    text = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
    _print(f"{args.err_msg or 'Exception ignored in'}: {args.object!r}\n" + "".join(text))


def _masking_warning(make: Callable[..., str]) -> Callable[..., str]:
    def make_masked(*args: Any, **named: Any) -> str:
        return tell(make(*args, **named)) + "\n"

    return make_masked


def _print(text: str) -> None:
    if sys.stderr is not None:
        print(tell(text), file=sys.stderr)
