"""The command line: quick help, exit codes, one line per expected failure."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import ROOT

from crane_x7_remote import cli
from crane_x7_remote.errors import ExitCode
from crane_x7_vla_rl.training import errors as training_errors


def test_help_imports_nothing_heavy() -> None:
    """The half-second promise is benchmarked; an import is what would break it."""
    code = (
        "import sys; from crane_x7_remote import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'cv2', 'torch', 'mani_skill', 'websockets', 'twisted'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.strip().splitlines()[-1] == "[]"
    assert all(command in result.stdout for command in cli.COMMANDS)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_prints_its_help_without_torch(command: str) -> None:
    code = (
        "import sys; from crane_x7_remote import cli\n"
        f"try: cli.main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'mani_skill'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"crane-x7-remote {command}" in result.stdout


def test_wrong_variable_ends_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROSBRIDGE_PORT", "ninety")
    assert cli.main(["infer", "--vla-policy", "color-servo"]) == ExitCode.SETTINGS
    assert "ROSBRIDGE_PORT='ninety'" in capsys.readouterr().err


def test_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["infre"])
    assert caught.value.code == ExitCode.USAGE


def test_exit_codes_are_all_documented() -> None:
    text = (ROOT / "docs/exit-codes.md").read_text()
    ours, _, trainers = text.partition("## `crane-x7-vla-rl`")
    for code in ExitCode:
        assert f"| {code.value} | {code.name} |" in ours
    for other in training_errors.ExitCode:
        same = ExitCode(other).name in (other.name, "SETTINGS")
        assert same or f"| {other.value} | {other.name} |" in trainers


@pytest.mark.parametrize(
    "arguments",
    [["train", "--env-id", "Lift"], ["sft"], ["evaluate", "--checkpoint", "there"]],
    ids=lambda arguments: arguments[0],
)
def test_training_without_its_packages_names_what_to_install(arguments: list[str]) -> None:
    """As in an image without the extra `train`: no import may come before that answer."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('yaml', 'pyarrow', 'torch'));"
        "from crane_x7_vla_rl.training.cli import main;"
        f"sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.USAGE
    assert re.search("(is missing:|missing packages: torch;) pip install", done.stderr)
    assert "Traceback" not in done.stderr
