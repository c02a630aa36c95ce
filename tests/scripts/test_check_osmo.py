"""scripts/check-osmo: our workflows are right, and every kind of fault is named with its place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from osmo_check import rendering
from osmo_check.workflow import Given, check
from places import ROOT

PLAIN = Given()
OURS = sorted((ROOT / "configs/osmo").glob("osmo-workflow*.yaml"))
GOOD = """\
version: 2
workflow:
  name: good
  resources:
    default:
      gpu: 1
      memory: 32Gi
  tasks:
  - name: first
    image: {{ image }}
    command: [bash]
    args: [/tmp/run.sh]
    environment:
      DEBUG: true
    credentials:
      wandb:
        WANDB_API_KEY: value
    inputs:
    - url: s3://bucket/in/
    outputs:
    - url: s3://bucket/out/
    checkpoint:
    - path: /output/run
      url: s3://bucket/run
      frequency: 5m
    exitActions:
      RESCHEDULE: 13
    files:
    - path: /tmp/run.sh
      contents: |
        cp {{input:0}}/a {{output}}/b
  - name: second
    image: {{ image }}
    command: [bash, -c]
    args:
    - cp {{input:first}}/b .
    inputs:
    - task: first

default-values:
  image: ubuntu:24.04
"""
GROUP = """\
version: 2
workflow:
  name: many
  groups:
  - name: training
    ignoreNonleadStatus: false
    tasks:
    {% for item in range(n) %}
    - name: node_{{ item }}
      lead: {{ "true" if item == 0 else "false" }}
      image: ubuntu:24.04
      command: [ping, "{{host:node_0}}"]
    {% endfor %}

default-values:
  n: 3
"""


def told(text: str, folder: Path = ROOT, given: Given = PLAIN) -> list[str]:
    return [fault.shown("w.yaml") for fault in check(text, folder, given)[0]]


def with_change(before: str, after: str, text: str = GOOD) -> list[str]:
    assert before in text
    return told(text.replace(before, after, 1))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_workflows_are_right(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert told(text, path.parent) == []


def test_all_six_workflows_of_the_published_package_are_here() -> None:
    kinds = ("", "-blob", "-ddp", "-sweep", "-train-eval", "-wandb")
    assert {path.stem for path in OURS} == {f"osmo-workflow{kind}" for kind in kinds}


def test_a_right_workflow_has_no_fault() -> None:
    assert told(GOOD) == []
    assert told(GROUP) == []


FAULTS = [
    ("version: 2", "version: 3", "w.yaml:1: version: is 3, expected 2"),
    ("version: 2", "verson: 2", "verson: is no section of a workflow file; did you mean version?"),
    ("workflow:\n", "workflw:\n", "workflow: is missing"),
    ("  name: good", "  name: 1good", "workflow.name: is '1good', expected letters"),
    ("  name: good", "  nam: good", "workflow.nam: is unknown; did you mean name?"),
    ("  name: good\n", "  name: good\n  labels: {a: b}\n", "labels: is unknown; OSMO 6.3.1"),
    ("  name: good\n", "  name: good\n  name: x\n", "workflow.name: stands twice, also on line 3"),
    ("      gpu: 1", "      gpu: one", "default.gpu: is 'one', expected a whole number"),
    ("      gpu: 1", "      gpus: 1", "default.gpus: is unknown; did you mean gpu?"),
    ("memory: 32Gi", "memory: 32 GB", "memory: is '32 GB', expected a quantity such as 32Gi"),
    ("    default:", "    big:", "tasks[0]: lacks resource; defined: big"),
    ("  - name: second", "  - name: First", "is named First, which OSMO takes for first"),
    ("  - name: second", "  - name: first-group", "is named first-group, which OSMO takes for"),
    ("  - name: second", "  - name: osmo_ctrl", "is osmo-ctrl, which OSMO keeps for itself"),
    ("    image: {{ image }}\n    command: [bash]\n", "    image: {{ image }}\n", "lacks command"),
    ("command: [bash]\n", "command: bash\n", "command: is 'bash', expected a list of words"),
    ("command: [bash]\n", "command: []\n", "command: is empty, expected a program"),
    ("    args: [/tmp", "    env: {A: b}\n    args: [/tmp", "env: is unknown; use environment"),
    ("    args: [/tmp", "    count: 4\n    args: [/tmp", "count: is unknown; write each task"),
    ("      DEBUG: true", "      API_TOKEN: abc", "looks like a secret"),
    ("      DEBUG: true", "      DEBUG: [a]", "DEBUG: has no plain value"),
    ("      DEBUG: true", "      DE-BUG: x", "is no name of a variable"),
    ("        WANDB_API_KEY: value", "        WANDB_API_KEY: [value]", "expected a key of the"),
    ("      wandb:\n        WANDB_API_KEY: value", "      wandb: root/.netrc", "absolute path"),
    ("- url: s3://bucket/in/", "- url: https://acc.blob.core.windows.net/data/x",
     "OSMO wants azure://acc/data/x"),
    ("- url: s3://bucket/in/", "- dataset: x", "OSMO 6 has no datasets"),
    ("- url: s3://bucket/in/", "- {url: s3://b/i, task: first}", "expected either task or url"),
    ("- url: s3://bucket/out/", "- dataset: {name: x}", "OSMO 6 has no datasets"),
    ("    - task: first", "    - task: frist", "'frist' is no task of this workflow; tasks: first"),
    ("    - url: s3://bucket/in/", "    - task: second", "is a task further below; move it above"),
    ("    - task: first", "    - task: second", "is a task of the same group"),
    ("frequency: 5m", "frequency: 5 min", "frequency: is '5 min', expected one number"),
    ("frequency: 5m", "frequency: 1h30m", "expected one number and one unit"),
    ("- path: /output/run", "- path: output/run", "expected an absolute path in the container"),
    ("RESCHEDULE: 13", "RETRY: 13", "exitActions.RETRY: is unknown; known: COMPLETE, FAIL, RE"),
    ("RESCHEDULE: 13", "RESCHEDULE: 13 or 14", "expected exit codes such as 1-10,16"),
    ("RESCHEDULE: 13", "RESCHEDULE: 300", "names codes above 255"),
    ("RESCHEDULE: 13", "RESCHEDULE: 5-15\n      FAIL: 1-10", "gives 5 to"),
    ("- path: /tmp/run.sh", "- path: /osmo/run.sh", "/ and /osmo are OSMO's"),
    ("      contents: |", "      content: |", "content: is unknown; did you mean contents?"),
    ("{{input:0}}/a", "{{input:1}}/a", "{{input:1}} stays as it is; known here: {{host:first}}"),
    ("{{input:0}}/a", "{{host:second}}/a", "{{host:second}} names no task of its group"),
    ("{{input:0}}/a", "{{ input:0 }}/a", "has spaces, so Jinja reads it and not OSMO; write {{inp"),
    ("{{output}}/b", "{{ output }}/b", "w.yaml:31: {{ output }}: has spaces"),
    ("{{output}}/b", "b", "outputs: would stay empty"),
    ("cp {{input:0}}/a", "xs=(a); echo ${#xs[@]}; cp a", "{#: opens a comment of Jinja"),
    ("{{ image }}", "{{ imag }}", "imag: has no value in default-values; did you mean image?"),
    ("{{ image }}", "{{ image", "w.yaml:"),
    ("  image: ubuntu:24.04\n", "  image: u\n  lr: 1.0e-5\n", "prints as 1e-05; quote it"),
    ("  image: ubuntu:24.04\n", "  image: u\n  extra: x\n", "extra: is used nowhere"),
    ("  image: ubuntu:24.04\n", "  image: u\n  output: x\n", "output: is a token of OSMO"),
    ("  image: ubuntu:24.04\n", "  image: '{{ a }}'\n", "holds Jinja outside the section workflow"),
    ("  tasks:\n", "  groups: []\n  tasks:\n", "has tasks and groups, expected either tasks or"),
    ("      contents: |\n        cp {{input:0}}/a {{output}}/b",
     "      localpath: nowhere.sh", "nowhere.sh: No such file or directory"),
    ("      contents: |\n        cp {{input:0}}/a {{output}}/b",
     "      localpath: tests", "is the folder"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), FAULTS)
def test_a_fault_is_named(before: str, after: str, expected: str) -> None:
    found = with_change(before, after)
    assert any(expected in line for line in found), found


def test_a_group_needs_one_lead() -> None:
    found = with_change('"true" if item == 0 else "false"', '"true"', GROUP)
    assert "has 3 tasks with lead: true among 3, expected 1" in found[0]
    none = with_change('"true" if item == 0 else "false"', '"false"', GROUP)
    assert "has 0 tasks with lead: true" in none[0]
    assert none[0].startswith("w.yaml (rendered):"), "its lines are not those of the file"


def test_a_template_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "LONGEST_S", 0.2)
    loop = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    (line,) = with_change("name: good", f"name: good{loop}")
    assert "Jinja: takes longer than 0.2 s; OSMO stops it" in line


def test_a_section_without_values_is_right() -> None:
    assert told(GOOD.replace("{{ image }}", "ubuntu").replace("  image: ubuntu:24.04\n", "")) == []


def test_older_groups_with_workers_are_explained() -> None:
    older = "workflow:\n  name: a\n  groups:\n    workers:\n      count: 4\n"
    found = told(older)
    assert any("workflow.groups: is keys and values, expected a list" in line for line in found)
    assert any("each group has its named tasks" in line for line in found)


def test_a_file_beside_the_workflow_is_rendered_too(tmp_path: Path) -> None:
    text = GOOD.replace("      contents: |\n        cp {{input:0}}/a {{output}}/b",
                        "      localpath: run.sh")  # fmt: skip
    (tmp_path / "run.sh").write_text("echo ${#xs[@]} > /osmo/output/x\n")
    (line,) = told(text, tmp_path)
    assert "run.sh has {# on line 1: OSMO gives the file to Jinja" in line
    (tmp_path / "run.sh").write_text("cp {{input:0}}/a {{output}}/x\n")
    assert told(text, tmp_path) == []
    (tmp_path / "run.sh").write_bytes(b"\xff")
    assert any("is not UTF-8 text" in line for line in told(text, tmp_path))


def test_set_makes_numbers_and_set_string_keeps_text() -> None:
    text = GOOD.replace("name: good", "name: lr{{ lr }}").replace("24.04\n", "24.04\n  lr: '1'\n")
    assert "'lr5e-05'" not in "".join(told(text, given=Given(texts={"lr": "5e-5"})))
    _, rendered = check(text, ROOT, Given(texts={"lr": "5e-5"}))
    assert rendered is not None
    assert "name: lr5e-5" in rendered
    _, rendered = check(text, ROOT, Given(numbers={"lr": "5e-5"}))
    assert rendered is not None
    assert "name: lr5e-05" in rendered


def test_the_command_prints_faults_and_ends_with_1(tmp_path: Path) -> None:
    wrong = tmp_path / "w.yaml"
    wrong.write_text(GOOD.replace("gpu: 1", "gpus: 1"))
    program = str(ROOT / "scripts/check-osmo")
    done = subprocess.run(
        [program, str(wrong), "--show"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert f"{wrong}:6: workflow.resources.default.gpus: is unknown" in done.stdout
    assert "   1 workflow:" in done.stdout, "--show numbers the rendered text"
    right = subprocess.run([program, *map(str, OURS)], capture_output=True, text=True, timeout=60)
    assert (right.returncode, right.stdout) == (0, "6 files are right\n")
