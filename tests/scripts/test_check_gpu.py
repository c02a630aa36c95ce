"""scripts/check_gpu: parts end in time and apart from each other, and its checks find faults."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bench_rig import ROW, SCRIPTS
from gpu_check import bundle, gpu_tests, run
from gpu_check.parts import PARTS, Options
from gpu_check.run import Job, Report

PART = """
import json, subprocess, sys, time
from pathlib import Path
kind, figures = sys.argv[1], Path(sys.argv[3])
row = dict.fromkeys(("name", "value", "unit", "baseline", "ratio", "target", "met"))
figures.write_text(json.dumps([row | {"name": "speed", "value": 1.0, "met": kind != "slow"}]))
if kind == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    figures.with_name("grandchild").write_text(str(child.pid))
    time.sleep(60)
if kind == "skips":
    figures.with_suffix(".reason").write_text("no Vulkan")
    sys.exit(77)
sys.exit(3 if kind == "breaks" else 0)
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "part.py"
    script.write_text(PART)
    monkeypatch.setattr(run, "SCRIPT", script)
    return tmp_path


def verdicts(report: Report) -> dict[str, tuple[Any, Any]]:
    return {
        row["name"].removeprefix("part "): (row["value"], row["met"])
        for row in report.rows
        if row["name"].startswith("part ") and not row["name"].endswith(": time")
    }


def test_a_part_that_breaks_hangs_or_is_skipped_stops_no_other(parts: Path) -> None:
    report = Report(parts / "report.json")
    limits = {"breaks": 20.0, "hangs": 5.0, "skips": 20.0, "slow": 20.0}
    jobs = [Job(kind, limit_s, [kind]) for kind, limit_s in limits.items()]
    jobs.append(Job("alone", 20.0, ["fine"], needs=parts / "model"))
    run.run_all(jobs, report, parts, {}, 120.0)
    assert verdicts(report) == {
        "breaks": ("failed with exit code 3", False),
        "hangs": ("ran out of its 5 s", False),
        "skips": ("skipped: no Vulkan", None),
        "slow": ("done; 1 of 1 figures miss their target", True),
        "alone": ("not run: model was not written", False),
    }
    assert report.failed == ["breaks", "hangs", "alone"]
    assert [row["value"] for row in report.rows if row["name"] == "hangs: speed"] == [1.0]
    assert json.loads((parts / "report.json").read_text()) == report.rows
    assert all(set(row) == ROW for row in report.rows)
    assert ended((parts / "grandchild").read_text())


def ended(process: str) -> bool:
    """Whether the process is gone, or only its parent has not noticed."""
    for _ in range(50):
        stat = Path("/proc", process, "stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_no_part_starts_when_the_time_is_over(parts: Path) -> None:
    report = Report(None)
    run.run_all([Job("late", 20.0, ["fine"])], report, parts, {}, run.LEAST_S / 2)
    assert verdicts(report) == {"late": ("not run: no time was left", False)}


def test_the_parts_that_are_worth_most_fit_into_8_minutes() -> None:
    assert sum(part.seconds for part in list(PARTS.values())[:6]) < 480
    assert all(callable(PARTS[name].load()) for name in ("tests", "loop10"))
    assert PARTS["ppo"].needs_model


def test_every_file_with_gpu_tests_is_run() -> None:
    assert "tests/rl/policies/openvla/test_on_gpu.py" in gpu_tests.files()


def test_list_and_wrong_names_answer_without_torch() -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(SCRIPTS / "check_gpu")]
    done = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)
    assert set(PARTS) <= set(done.stdout.split())
    done = subprocess.run(
        [*command, "--only", "wings"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown parts: wings; known: tests, padding" in done.stderr


def test_versions_of_the_bundle_are_those_of_the_constraints() -> None:
    lines = "# torch==2.0 is not meant\nPydantic_Core==2.50.4\ncbor2==6.2.1\n"
    assert bundle.pinned(["pydantic-core", "new"], lines) == ["pydantic-core==2.50.4", "new"]


def test_the_bundle_is_split_so_that_each_part_can_be_copied(tmp_path: Path) -> None:
    for name, size in (("a", 50), ("b", 30), ("c", 30), ("d", 10), ("e", 200)):
        (tmp_path / name).write_bytes(bytes(size))
    groups = bundle.split(sorted(tmp_path.iterdir()), 60)
    assert [[path.name for path in group] for group in groups] == [["e"], ["a", "d"], ["b", "c"]]


def test_wheels_and_missing_libraries_reach_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scratch = tmp_path / "1", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    with zipfile.ZipFile(folder / "odd-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("odd_package/__init__.py", "VALUE = 7\n")
    for name in ("libvulkan.so.1", "libEGL.so.1"):
        (folder / name).write_bytes(b"")
    monkeypatch.setattr(bundle, "_loadable", lambda: "libEGL.so.1 (libc6,x86-64)")
    made = bundle.environment({"PATH": "/bin"}, [folder], scratch, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import odd_package; print(odd_package.VALUE)"],
        env=made, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "7\n"
    assert made["LD_LIBRARY_PATH"] == str(scratch / "lib")
    assert [path.name for path in (scratch / "lib").iterdir()] == ["libvulkan.so.1"]


def test_the_padding_part_tells_a_fault_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that shows pads is found, although bfloat16 rounds much."""
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from gpu_check import padding
    from gpu_check.fixture import Fixture, exact

    from crane_x7_vla_rl.policies.openvla.run import evaluate as evaluating

    fixture = Fixture()
    model = fixture.load(torch.device("cpu"), torch.bfloat16)
    pixels = fixture.pixels.bfloat16().float()
    truth = padding.truth_of(exact(model), fixture, fixture.tokens, pixels)
    usual, _ = padding.error(padding.forced(model, pixels, fixture, together=False), truth)
    padded, _ = padding.error(padding.forced(model, pixels, fixture, together=True), truth)
    assert 0 < padded <= padding.MOST * usual
    real = evaluating.pack
    monkeypatch.setattr(evaluating, "pack", lambda *given: _without_pads(real(*given)))
    faulty, _ = padding.error(padding.forced(model, pixels, fixture, together=True), truth)
    assert faulty > padding.MOST * usual


def _without_pads(prompts: Any) -> Any:
    """The same ids, their pads taken for text."""
    from dataclasses import replace

    return replace(prompts, pads=prompts.pads * 0, padded=False)


def test_the_parity_part_finds_a_fault_of_openvla_oft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks attend both ways, see the state and two images, and pads change nothing."""
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from gpu_check import chunks
    from gpu_check.fixture import Fixture
    from sft_bench.figures import Figures

    from crane_x7_vla_rl.policies.openvla.run import oft

    fixture, figures = Fixture(), Figures()
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        chunks.run(figures, fixture, fixture.load(torch.device("cpu"), dtype), name)
    assert len(figures.rows) == 6
    assert all(row["met"] and row["value"] > 0 for row in figures.rows), figures.rows
    policy = chunks.with_heads(fixture.load(torch.device("cpu"), torch.float32))
    exact = chunks.with_heads(fixture.load(torch.device("cpu"), torch.float64))
    case = chunks.cases(fixture)["a batch of unequal prompts"]
    wanted = exact.predict_normalised(*case)
    monkeypatch.setattr(exact, "predict_normalised", lambda *_: wanted)
    assert chunks.difference(policy, exact, case) <= chunks.LIMITS["float32"]
    real = oft.pack
    monkeypatch.setattr(oft, "pack", lambda *given: _without_pads(real(*given)))
    assert chunks.difference(policy, exact, case) > 2 * max(row["value"] for row in figures.rows)


def test_rounding_alone_can_change_most_of_the_fixtures_tokens() -> None:
    """So tokens kept in bfloat16, 38 or 78 %, are no measure of a kernel."""
    pytest.importorskip("torch", reason="needs the train extra")
    from gpu_check import padding
    from gpu_check.fixture import Fixture
    from sft_bench.figures import Figures

    figures = Figures()
    padding.margins(figures, Fixture(), 0.14)
    found = {row["name"]: row["value"] for row in figures.rows}
    assert found["fixture: rows with such a token"] == 3
    assert found["fixture: tokens at or after one, in their row"] == 62.5


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_part_runs_with_small_models(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPTS / "check_gpu"), "--tiny", "--minutes", "38"]
    done = subprocess.run([*command, "--json", str(path)], check=False, timeout=2350)
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert done.returncode == 0, [row for row in rows.values() if row["met"] is False]
    assert {f"part {name}" for name in PARTS} <= set(rows)
    assert "version of torch" in rows
    assert rows["parity: float32, a batch of unequal prompts: tokens kept"]["met"] is True
    assert Options(tmp_path).model == tmp_path / "model"
