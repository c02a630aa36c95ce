"""Pages can be typed: labels are known, blocks are bash, and the script finds what is wrong."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pages
import pytest
from pages import Label, PageError
from places import ROOT

SCRIPT = ROOT / "tests" / "scripts" / "first_hour"
ALL = [path for page in pages.english() for path in (page, pages.japanese(page)) if path.exists()]
PLACEHOLDER = re.compile(r"<[^<>|&;()\n]+>")
NAMES = [path.relative_to(ROOT).as_posix() for path in ALL]


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_every_block_of_a_page_is_bash_with_a_known_label(page: Path) -> None:
    for block in pages.blocks(page):
        if block.language == "bash":
            text = PLACEHOLDER.sub("word", block.text)
            checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert not checked.stderr, f"{page.name}:{block.line}: {checked.stderr}"


def type_it(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Have the script type a page with this text."""
    page = folder / "page.md"
    page.write_text(text)
    command = [sys.executable, str(SCRIPT), "--here", str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_page_that_says_what_happens_passes(tmp_path: Path) -> None:
    done = type_it(
        tmp_path,
        "```bash\nexport GREETING=hello # stays\n```\n"
        "```bash\necho $GREETING world\n```\n```text\nhello …rld\n```\n"
        "<!-- first-hour: exit 3 -->\n```bash\n(exit 3)\n```\n"
        "<!-- first-hour: keeps running -->\n```bash\necho begun; exec sleep 60\n```\n"
        "```text\nbegun\n```\n"
        "<!-- first-hour: not here, a GPU -->\n```bash\nfalse\n```\n",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 blocks typed, 0 ended otherwise" in done.stdout
    assert "not typed: a GPU" in done.stdout


def test_here_nothing_is_cloned(tmp_path: Path) -> None:
    done = type_it(tmp_path, "```bash\ngit clone <this repository> x && cd x\npwd\n```\n")
    assert done.returncode == 0, done.stdout
    assert not (ROOT / "x").exists()


ROBOT = """#!/usr/bin/env python3
import socket, sys, time
print("robot", *sys.argv[1:], flush=True)
with socket.create_server(("127.0.0.1", PORT)):
    time.sleep(60)
"""


def test_the_robot_of_a_page_is_the_clones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README.md's terminal begins outside the clone, with no `.venv` activated."""
    loader = SourceFileLoader("first_hour", str(SCRIPT))
    module = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, loader.name, module)  # dataclasses look it up
    loader.exec_module(module)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(module, "GUARD_PORT", port)
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    program = tmp_path / "a clone" / ".venv" / "bin" / "crane-x7-remote"
    program.parent.mkdir(parents=True)
    program.write_text(ROBOT.replace("PORT", str(port)))
    program.chmod(0o755)
    page = tmp_path / "README.md"
    page.write_text("<!-- first-hour: with a robot -->\n```bash\necho crane-x7-local\n```\n")
    (block,) = pages.blocks(page)
    with module.terminal_at(tmp_path, program.parents[2], ROOT) as terminal:
        module.run(block, terminal)
        assert terminal._robot.output == "robot sim-robot --guard\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nfalse\ntrue\n```\n", "exit code 1, expected 0"),
        ("```bash\necho one\n```\n```text\ntwo\n```\n", "'two' is not seen"),
        ("<!-- first-hour: exit 3 -->\n```bash\ntrue\n```\n", "exit code 0, expected 3"),
        (
            "<!-- first-hour: keeps running -->\n```bash\nfalse\n```\n```text\nup\n```\n",
            "'up' is not",
        ),
        ("```bash\nexit 0\n```\n", "did not end"),
    ],
)
def test_a_page_that_says_something_else_fails(tmp_path: Path, text: str, said: str) -> None:
    done = type_it(tmp_path, text)
    assert done.returncode == 1
    assert said in done.stdout


@pytest.mark.parametrize(
    "text", ["backwards", "exit three", "not here", "not here, no time", "for a while",
             "not here, typed by tests/none.py"],
)  # fmt: skip
def test_a_label_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(PageError):
        Label.parse(text)


def test_labels_are_read() -> None:
    assert Label.parse("with a robot; for 20 s") == Label(with_a_robot=True, for_s=20.0)
    assert Label.parse("exit 5; slow") == Label(exit_code=5, slow=True)
    assert Label.parse("not here, a GPU with 16 GB") == Label(not_here="a GPU with 16 GB")


def test_what_is_seen_is_compared_in_order() -> None:
    assert pages.missing("a\n\nb …d", "x a\nb c d\n") is None
    assert pages.missing("b\na", "a\nb\n") == "a"


def test_comments_are_no_commands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\n# first\nsay a  # then\n```\n")
    (block,) = pages.blocks(page)
    assert block.commands == "say a"
