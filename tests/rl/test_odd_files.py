"""Files that cannot be used are refused by name, in words that are not Python's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from crane_x7_remote import cli as remote
from crane_x7_vla_rl.file_errors import kind_in_words
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.training import cli as learning

PYTHON = re.compile(r"\[Errno|codec|<unicode string>|\(char \d|PosixPath|<class|Traceback|a str\b")
TRAIN = ("train", "--backend", "cpu", "--sft-checkpoint", str(TINY))
LINES = {
    "train --config": (learning, "train", "--config"),
    "train --statistics": (learning, *TRAIN, "--statistics"),
    "train --resume": (learning, "train", "--resume"),
    "train --follow": (learning, "train", "--follow"),
    "sft --data-root": (
        learning, "sft", "--backend", "openvla", "--model", str(TINY), "--data-root",
    ),
    "evaluate": (learning, "evaluate", "--checkpoint"),
    "convert": (learning, "convert"),
    "infer --camera-pose": (remote, "infer", "--policy", "color-servo", "--camera-pose"),
    "infer --vla-model-path": (remote, "infer", "--vla-model-path"),
    "sim-robot --camera-pose": (remote, "sim-robot", "--camera-pose"),
    "sim-robot --scene-of": (remote, "sim-robot", "--scene-of"),
    "demo --policy": (remote, "demo", "--policy"),
}  # fmt: skip
ODD = ("missing", "folder", "empty", "binary", "broken.yaml", "broken.json", "list.json", "text")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    (tmp_path / "broken.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text").write_text("some words")
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_a_file_of_the_wrong_kind_is_refused_by_name_in_plain_words(
    line: str, odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli, *words = LINES[line]
    monkeypatch.setattr("crane_x7_remote.demo.command._show", None)
    monkeypatch.chdir(odd)
    wrong = []
    for name in ODD:
        if name == "empty" and line == "train --config":
            continue  # a configuration that sets nothing
        path = str(odd / name)
        more = [str(odd / "out")] if line == "convert" else []
        try:
            code = cli.main([*words, path, *more])
        except SystemExit as end:
            code = int(str(end.code))
        said = capsys.readouterr().err
        if code in (0, 1) or path not in said or PYTHON.search(said):
            wrong.append(f"{name}: exit code {code}, {said!r}")
    assert wrong == []


def test_a_yaml_error_is_one_line_with_its_place(
    odd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learning.main(["train", "--config", str(odd / "broken.yaml")]) == 3
    (said,) = capsys.readouterr().err.splitlines()
    assert "is not YAML: line 2, column 1: expected ',' or ']'" in said


@pytest.mark.parametrize(("text", "said"), [
    ("{}", "an object"), ("[1]", "a list"), ('"a"', "text"), ("1.5", "a number"),
    ("null", "nothing"), ("true", "true or false"),
])  # fmt: skip
def test_a_value_is_called_what_a_person_calls_it(text: str, said: str) -> None:
    assert kind_in_words(json.loads(text)) == said


@pytest.mark.parametrize(("cli", "words"), [
    (learning, ["demos", "text"]),
    (learning, ["demos", "/proc/demos"]),
    (learning, ["config", "--output", "text/config.yaml"]),
    (remote, ["demo", "--output-dir", "text/demo"]),
    (remote, ["demo", "--json", "folder"]),
    (remote, ["demo", "--json", "nowhere/report.json"]),
    (remote, ["infer", "--policy", "color-servo", "--metrics", "nowhere/metrics"]),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_by_name_in_plain_words(
    cli: ModuleType, words: list[str], odd: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("crane_x7_remote.demo.command._show", None)
    monkeypatch.chdir(odd)
    assert cli.main(words) == 8
    said = capsys.readouterr().err
    assert words[-1].split("/")[-1] in said or words[-1].split("/")[0] in said
    assert not PYTHON.search(said)
