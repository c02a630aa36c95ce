"""Nothing that is shown holds a secret, forges a line or speaks to the terminal."""

from __future__ import annotations

import base64
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from crane_x7_vla_rl import log_text, secret_text
from crane_x7_vla_rl.log_text import MANY_LINES, LineFormatter, block, escape, shown, tell

SECRET = "hf_Se+cr/et\"with'odd\\signs"
FORGED = "red cube\n12:00:00 INFO    boot: all is well"
EVIL = ["\n", "\r", "\x1b", "\x00", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\u2029",
        "\x85", "\u200b", "\t", "\ud800"]  # fmt: skip


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of another package, whose handler and formatter do not know `log_text`."""
    make, stream = logging.getLogRecordFactory(), io.StringIO()
    logger = logging.getLogger("somebody.else")
    log_text.install()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    secret_text.remember(SECRET)
    yield logger, stream
    logger.removeHandler(handler)
    logging.setLogRecordFactory(make)


def _ours(message: str, *args: object, **named: object) -> str:
    record = logging.LogRecord("a", logging.INFO, "", 0, message, args, None)
    record.__dict__.update(named)
    return LineFormatter("%(levelname)s %(name)s: %(message)s").format(record)


@pytest.mark.parametrize("letter", EVIL)
def test_no_message_makes_two_lines_or_speaks_to_the_terminal(letter: str) -> None:
    text = _ours("instruction: %s", f"red{letter}cube")
    assert letter not in text
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert escape(f"a{letter}b").isprintable()


def test_words_of_any_script_stay_as_they_are() -> None:
    text = "赤い\u3000キューブを持ち上げて — 100 % «ça» 👍"
    assert escape(text) == text


def test_a_forged_line_stays_inside_its_own() -> None:
    assert _ours("instruction: %s", FORGED) == (
        "INFO a: instruction: red cube\\n12:00:00 INFO    boot: all is well"
    )


def test_a_message_of_ours_may_have_lines_and_they_are_told_from_its_first() -> None:
    text = _ours("configuration:\n%s", f"a: 1\n{FORGED}\x1b[2J", **MANY_LINES)
    assert text.splitlines() == [
        "INFO a: configuration:", "  a: 1", "  red cube",
        "  12:00:00 INFO    boot: all is well\\x1b[2J",
    ]  # fmt: skip


def test_nested_lines_of_a_configuration_stay_nested() -> None:
    text = _ours("configuration:\n%s", "lora:\n  rank: 4\nseed: 0", **MANY_LINES)
    assert text.splitlines()[1:] == ["  lora:", "    rank: 4", "  seed: 0"]


def test_a_traceback_stays_readable_and_cannot_forge_a_line() -> None:
    try:
        raise ValueError(f"{FORGED}\x1b[2J")
    except ValueError:
        text = _ours("failed", exc_info=sys.exc_info())
    first, *others = text.splitlines()
    assert first == "INFO a: failed"
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert others[0].strip() == "Traceback (most recent call last):"
    assert "  ValueError: red cube" in others


def test_settings_errors_keep_their_list() -> None:
    said = "settings are wrong:\n  A=1: no\n  B=2: no"
    assert tell(said) == said
    assert block(f"x\n{FORGED}").splitlines()[2].startswith("  12:00:00")


def test_what_others_say_is_cut() -> None:
    assert shown("x" * 10_000, 100) == "x" * 100 + "… (9900 more characters)"
    assert len(_ours("%s", "y" * 100_000)) < 2200

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert shown(Broken()) == "Broken that cannot be shown (RuntimeError)"


@pytest.mark.parametrize(
    "written",
    [
        SECRET, repr(SECRET), repr({"token": SECRET}), f"Bearer {SECRET}\n",
        quote(SECRET, safe=""), repr(SECRET.encode()),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"api:{SECRET}".encode()).decode(),
        base64.b64encode(f"user:{SECRET}:x".encode()).decode(),
        base64.urlsafe_b64encode(f"u:{SECRET}".encode()).decode(),
    ],
)  # fmt: skip
def test_a_secret_is_masked_however_it_is_written(
    written: str, logger: tuple[logging.Logger, io.StringIO]
) -> None:
    ours, stream = logger
    ours.warning("it failed: %s", written)
    ours.warning(f"it failed: {written}")
    heart = [written[k : k + 12] for k in range(0, max(1, len(written) - 12), 12)]
    masked = stream.getvalue()
    assert masked.count("***") >= 2
    assert SECRET not in masked
    core = base64.b64encode(f"api:{SECRET}".encode()).decode()[8:28]
    assert core not in masked
    assert len([piece for piece in heart if piece in masked]) <= max(1, len(heart) // 3)


def test_a_secret_is_masked_in_exceptions_whatever_raises(
    logger: tuple[logging.Logger, io.StringIO],
) -> None:
    ours, stream = logger
    try:
        try:
            raise ValueError(f"Illegal header value b'Bearer {SECRET}'")
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError:
        ours.exception("asking failed")
        ours.error("asking failed", exc_info=True, stack_info=True)
    text = stream.getvalue()
    assert "Traceback" in text
    assert "hf_Se" not in text


def test_a_message_whose_arguments_do_not_fit_shows_no_secret(
    logger: tuple[logging.Logger, io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, stream = logger
    ours.warning("%d and %d", SECRET)
    assert "hf_Se" not in stream.getvalue() + capsys.readouterr().err


def test_ordinary_words_and_too_short_values_are_not_masked() -> None:
    secret_text.remember("ab", "", None, "null", "  ")
    text = "ab is null, and the cube is not a secret"
    assert secret_text.mask(text) == text


def test_secrets_of_others_and_passwords_of_proxies_are_masked() -> None:
    secret_text.remember_environment(
        {
            "RUNPOD_API_KEY": "rpa_0123456789",
            "https_proxy": "http://me:p%40ssword@proxy:1",
            "PUBLIC_KEY": "ssh-ed25519",
            "VLA_UNNORM_KEY": "crane_x7",
        }
    )
    text = "rpa_0123456789 http://me:p%40ssword@proxy:1 p@ssword ssh-ed25519 crane_x7"
    assert secret_text.mask(text) == "*** http://me:***@proxy:1 *** ssh-ed25519 crane_x7"


UNCAUGHT = """
import logging, sys, threading, warnings
from crane_x7_vla_rl import log_text, secret_text
log_text.configure("info", "%(levelname)s %(message)s", "")
secret_text.remember("hf_verysecret")
late = logging.getLogger("late")
late.addHandler(logging.StreamHandler(sys.stderr))  # a library's own, added afterwards
late.error("with hf_verysecret")
warnings.warn("take hf_verysecret\\x1b[2J")
def fail():
    raise ValueError("hf_verysecret in a thread\\n12:00:00 INFO forged")
thread = threading.Thread(target=fail)
thread.start(); thread.join()
class Gone:
    def __del__(self):
        raise ValueError("hf_verysecret at the end")
Gone()
raise RuntimeError("hf_verysecret\\x1b[2J\\n12:00:00 INFO forged")
"""


def test_an_uncaught_error_is_masked_and_escaped_in_threads_and_warnings_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "hf_verysecret" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.count("***") >= 6
    assert done.stderr.count("Traceback") == 3
    assert not [line for line in done.stderr.splitlines() if line.startswith("12:00:00")]
