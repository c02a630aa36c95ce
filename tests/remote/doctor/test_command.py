"""The command: what it prints, its exit codes, and that its page knows every check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import doctor_rig
import pytest
from places import ROOT

from crane_x7_remote import cli
from crane_x7_remote.doctor import command, gpu
from crane_x7_remote.doctor.finding import Result, State, failure, ok, skipped, warning

RESULTS = [
    Result(command.CHECKS[0], ok("fine"), 0.1),
    Result(command.CHECKS[1], skipped("not here"), 0.1),
    Result(command.CHECKS[2], warning("slow", "do this"), 0.1),
    Result(command.CHECKS[3], failure("broken", "do that"), 0.1),
]


def test_the_page_lists_every_check_in_both_languages() -> None:
    for page in ("docs/doctor.md", "docs/ja/doctor.md"):
        sections = (ROOT / page).read_text().split("\n## ")
        for group in command.GROUPS:
            (section,) = (text for text in sections if text.startswith(f"`{group}`"))
            names = [check.name for check in command.CHECKS if check.group == group]
            rows = [row.split("`")[1] for row in section.splitlines() if row.startswith("| `")]
            assert rows == names, (page, group)


def test_a_pipe_gets_a_line_per_check_and_the_cure_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command.show(RESULTS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "ok", "skipped", "WARNING", "→", "FAILURE", "→", "not",
    ]  # fmt: skip
    assert lines[3].endswith("→  do this")
    assert lines[-1] == "not healthy: 1 ok, 1 skipped, 1 warning, 1 failure"


def test_a_terminal_gets_a_table_and_each_cure_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "crane-x7-remote resume --host crane-x7-local --port 9091 # " + 100 * "x"
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True, raising=False)
    command.show([*RESULTS, Result(command.CHECKS[4], failure("stopped", long), 0.1)])
    lines = capsys.readouterr().out.splitlines()
    assert f"  {long}" in lines
    assert "  do that" in lines
    assert any("broken" in line and "│" in line for line in lines)


def test_json_has_every_finding() -> None:
    found = command.document(RESULTS)
    assert found["healthy"] is False
    assert found["counts"] == dict.fromkeys(State, 1)
    assert found["checks"][3] == {
        "group": "gpu", "check": "torch", "state": "failure", "words": "broken",
        "cure": "do that", "took_s": 0.1,
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


@pytest.mark.timeout(300)
def test_a_healthy_machine_without_robot_and_model_has_exit_code_0() -> None:
    code, found, log = doctor_rig.doctor("--strict", "--timeout", "250", timeout_s=280)
    wrong = {name: check for name, check in found.items() if check["cure"] is not None}
    assert code == 0, (wrong, log)
    assert wrong == {}
    if gpu.has_gpu() or find_spec("mani_skill") is None:
        return
    # Drawing in software, as the simulation chooses without a GPU.
    words = {name: check["words"] for name, check in found.items()}
    assert found["drawing frame"]["state"] == "ok"
    assert "96×72 image of base_camera" in words["drawing frame"]
    assert words["drawing frame"].endswith("(software: slower than a GPU)")
    assert words["drawing vulkan"].startswith("draws in software, on the CPU: llvmpipe")
    assert found["drawing physx"]["state"] == found["drawing egl"]["state"] == "skipped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "gpus"], "expected one of settings, gpu"),
        (["--timeout", "0"], "expected 1 to 3600 seconds"),
        (["--timeout", "soon"], "--timeout"),
    ],
)
def test_wrong_flags_are_named(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_bundle_that_cannot_be_written_has_the_exit_code_of_outputs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "doctor", "--only", "settings", "--bundle",
         "/nowhere/doctor.tar.gz"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 8
    assert "--bundle /nowhere/doctor.tar.gz: No such file or directory" in done.stderr
    assert "healthy" in done.stdout, "the findings are printed before"


def test_an_installation_without_extras_has_no_finding_and_no_error(tmp_path: Path) -> None:
    """As in the image without torch: only what `dependencies` of pyproject.toml bring."""
    extras = re.compile(
        r"(torch|triton|huggingface_hub|sapien|mani_skill|safetensors|tokenizers|transformers|peft"
        r"|accelerate|pyarrow|wandb|av|matplotlib|httpx2|psutil|pytest)"
    )
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if extras.fullmatch(path.name) is None:
            (tmp_path / path.name).symlink_to(path)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "crane_x7_remote", "doctor", "--json"],
        capture_output=True, text=True, timeout=110, check=False,
        env=kept | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "VLA_POLICY": "color-servo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    words = {each["check"]: each["words"] for each in json.loads(done.stdout)["checks"]}
    assert words["torch"] == "torch is not installed; color-servo needs none"
    assert words["frame"].startswith("the simulation is not installed")
    assert words["hub"] == "huggingface_hub is not installed"
