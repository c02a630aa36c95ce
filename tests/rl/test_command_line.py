"""What both commands do alike: versions, help, wrong words, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from crane_x7_remote import cli as remote
from crane_x7_remote.errors import ExitCode
from crane_x7_vla_rl import completion, tables
from crane_x7_vla_rl.data import progress
from crane_x7_vla_rl.training import cli as learning

Main = Callable[[Sequence[str]], int]
MAINS = {"crane-x7-remote": remote.main, "crane-x7-vla-rl": learning.main}
both = pytest.mark.parametrize(("name", "main"), MAINS.items(), ids=MAINS)


def ends(main: Main, *words: str) -> int:
    try:
        return main(words)
    except SystemExit as end:
        return int(str(end.code))


@both
def test_version_is_the_installed_one(
    name: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(main, "--version") == 0
    assert capsys.readouterr().out == f"{name} {metadata.version('crane-x7-remote')}\n"


@both
def test_a_bare_command_prints_its_help(
    name: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(main) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: {name} COMMAND")
    assert "completion" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (remote.main, ["infre"], "no command 'infre'; did you mean infer?"),
        (learning.main, ["trian"], "no command 'trian'; did you mean train?"),
        (remote.main, ["xyzzy"], "no command 'xyzzy'; commands: infer, sim-robot"),
        (remote.main, ["--nonsense"], "--nonsense is unknown here; flags follow the command"),
        (
            learning.main,
            ["--log-level", "info", "sft"],
            "--log-level is unknown here; flags follow",
        ),
        (learning.main, ["config", "--episodes", "-1"], "--episodes is unknown\n"),
        (remote.main, ["say", ""], "text: instruction is empty, expected a task such as"),
        (remote.main, ["say", "a\x1bb"], "control character U+001B at place 2"),
        (remote.main, ["say", "x" * 2000], "has 2000 bytes, expected at most 1024"),
        (remote.main, ["say", "--prot", "3"], "--prot is unknown"),
        (remote.main, ["demo", "--duration", "3"], "--duration is unknown\n"),
        (learning.main, ["train", "--nproc", "2"], "--nproc is unknown\n"),
        (learning.main, ["merge", "--dtyp=x"], "--dtyp=x is unknown; did you mean --dtype?"),
        (remote.main, ["stop", "--reas", "x"], "--reas is unknown; did you mean --reason?"),
        (remote.main, ["tunnel", "local", "a@b", "--ident", "k"], "--ident is unknown"),
        (learning.main, ["demos", "x", "--episode", "3"], "--episode is unknown"),
        (remote.main, ["status", "--log-level", "loud"], "--log-level: 'loud', expected one of"),
        (learning.main, ["config", "--log-level", "loud"], "--log-level: 'loud', expected one of"),
        (remote.main, ["status", "--json=yes"], "--json: takes no value, got 'yes'"),
    ],
    ids=lambda words: " ".join(words)[:40] if isinstance(words, list) else "",
)
def test_a_wrong_word_is_named_in_one_line(
    main: Main, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not below sixty lines of usage, and no beginning of a flag counts for the flag."""
    assert ends(main, *words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 2


@both
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_code_for_the_command_that_printed_it(
    shell: str, name: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(main, "completion", shell) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("crane-x7-remote sim", "sim-robot"),
        ("crane-x7-vla-rl config --template f", "fast full"),
        ("crane-x7-remote status --js", "--json"),
    ],
)
def test_bash_completes(line: str, offered: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = line.split()[0]
    assert ends(MAINS[name], "completion", "bash") == 0
    script = (
        f"{capsys.readouterr().out}\n"
        f"COMP_LINE={line!r}; COMP_POINT={len(line)}; COMP_TYPE=9; COMP_WORDBREAKS=' '\n"
        f"_python_argcomplete {name}\n"
        'for word in "${COMPREPLY[@]}"; do printf "%s " $word; done'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.stdout.split() == offered.split(), done.stderr


@both
def test_help_of_no_command_shows_python(
    name: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not False but off, no class, no path object; and no word longer than a value's name."""
    program = {"crane-x7-remote": remote, "crane-x7-vla-rl": learning}[name].PROGRAM
    for command in program.commands:
        assert ends(main, command, "--help") == 0
        shown = capsys.readouterr().out
        assert not re.search(r"\b(True|False|None)\b|Path\(|<class|\[\'", shown), command


@pytest.mark.parametrize("command", ["train", "sft"])
def test_help_of_a_trainer_is_short_and_in_groups(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ends(learning.main, command, "--help") == 0
    short = capsys.readouterr().out
    assert ends(learning.main, command, "--help-all") == 0
    whole = capsys.readouterr().out
    assert len(short.splitlines()) <= 85
    assert "training: how long" in short
    assert "--weight-decay" in whole
    assert "--weight-decay" not in short
    hidden = len(flags(whole) - flags(short))
    assert f"{hidden} more flags: crane-x7-vla-rl {command} --help-all" in short


def flags(text: str) -> set[str]:
    return set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))


def test_help_of_infer_is_short_and_in_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ends(remote.main, "infer", "--help") == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 70
    assert "--dry-run" in short
    assert ends(remote.main, "infer", "--help-all") == 0
    shown = capsys.readouterr().out
    hidden = len(flags(shown) - flags(short))
    assert f"{hidden} more flags: crane-x7-remote infer --help-all" in short
    places = [
        shown.index(f"\n{group}:\n") for group in ("robot link", "policy", "safety", "topics")
    ]
    assert places == sorted(places)
    assert "--vla-inference-rate HZ" in shown
    assert "[VLA_INFERENCE_RATE=10" in shown


@pytest.mark.parametrize("watched", [True, False])
def test_a_table_is_ruled_for_a_person_and_plain_for_a_pipe(
    watched: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    tables.show("two", ("name", "n"), [("a", "10"), ("[red]b\x1b[2J", "1")], right=("n",))
    said = capsys.readouterr().out
    assert "[red]b\\x1b[2J" in said
    assert ("┃" in said) == watched
    if not watched:
        assert said.splitlines()[1:3] == ["name            n", "a              10"]


@pytest.mark.parametrize(("terminal", "kind", "shown"), [
    (True, "xterm", True), (True, "dumb", False), (False, "xterm", False),
])  # fmt: skip
def test_progress_is_shown_where_a_person_looks(
    terminal: bool, kind: str, shown: bool,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress.episode_bar("episodes", 2) as show:
        show(1)
    said = capsys.readouterr()
    assert ("episodes" in said.err) == shown
    assert not re.search(r"\x1b\[[0-9;]*m", said.err)
    assert said.out == ""


def test_json_is_one_document_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(learning.main, "validate", str(tmp_path), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert "found no episodes" in found["problems"][0]["what"]
    assert ends(remote.main, "guard", "--rules", "--json") == 0
    rules = json.loads(capsys.readouterr().out)
    assert rules["subscribe"]["/joint_states"] == "sensor_msgs/JointState"
    assert ends(remote.main, "stop", "--port", "1", "--json") == ExitCode.GUARD
    said = capsys.readouterr()
    assert said.out == ""
    assert "did not confirm stop" in said.err
