"""`evaluate --sweep`: its conditions, its sheet, and how it continues after a kill."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("torch", "mani_skill"):
    pytest.importorskip(package, reason="needs the sim extra")

from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.reserved import SWEEPS
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import EVALUATION_SEED, Variation, WorldConfig
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.timing import Timing, pace
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate import scene_worker, sweep, sweep_report
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.report import wilson
from crane_x7_vla_rl.training.evaluate.rollout import roll_out
from crane_x7_vla_rl.training.evaluate.scene_worker import Act, Begin, EvalWorker
from crane_x7_vla_rl.training.evaluate.sweep_report import Row
from crane_x7_vla_rl.types import ActionChunk, Observation

WORLD = WorldConfig(control_hz=10, image_size=(32, 24), colours=("red",), episode_s=2.0)


class Stay:
    """Stays where it is, and remembers when it looked."""

    period_s = 0.1
    may_answer_alike = True

    def __init__(self) -> None:
        self.looked_s: list[float] = []

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.looked_s += [round(seen.time_s, 3) for seen in observations]
        return [ActionChunk(seen.joints.position_rad[None], 0.1) for seen in observations]

    def reset(self) -> None:
        """Nothing to forget."""


def config(output: Path, **options: Any) -> EvaluateConfig:
    settings = {
        "model": ModelOptions(), "output": output, "policy": "color-servo", "world": WORLD,
        "num_episodes": 1, "videos": 0, "sweep": ("delay", "dropped"),
    }  # fmt: skip
    return EvaluateConfig(**(settings | options))


class FakeSimulation:
    """In place of `simulate`: 8 of 10 succeed at the baseline, fewer with delay. Counts calls."""

    def __init__(self, dies_at: str = "") -> None:
        self.measured: list[str] = []
        self.dies_at = dies_at

    def __call__(
        self, candidate: Candidate, config: EvaluateConfig, ranks: Ranks = ALONE
    ) -> dict[str, Any]:
        del candidate, ranks
        if config.output.name == self.dies_at:
            raise KeyboardInterrupt
        self.measured.append(config.output.name)
        good = 8 - round(20 * config.timing.delay_s)
        low, high = wilson(good, 10)
        success = {"rate": good / 10, "low": low, "high": high, "successes": good, "episodes": 10}
        return {"success": success, "world": config.world.as_dict() | {"control_hz": 20}}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSimulation:
    simulation = FakeSimulation()
    monkeypatch.setattr(sweep, "simulate", simulation)
    return simulation


def run(settings: EvaluateConfig) -> tuple[Row, ...]:
    return sweep.run(Candidate(Stay(), 0.1), settings)


# --- conditions ----------------------------------------------------------------------------------


def test_each_condition_changes_one_option_and_no_two_have_one_name(tmp_path: Path) -> None:
    everything = config(tmp_path, sweep=tuple(each.name for each in SWEEPS))
    baseline, *others = sweep.conditions(everything)
    assert baseline.config.world.variation == Variation()
    assert len(others) == sum(len(each.values) for each in SWEEPS)
    assert len({each.name for each in others}) == len(others)
    default = {"timing": baseline.config.timing, "variation": Variation()}
    for each in others:
        assert each.sweep is not None
        section, _, name = each.sweep.option.partition(".")
        found = {"timing": each.config.timing, "variation": each.config.world.variation}
        assert getattr(found[section], name) == each.value
        assert (
            replace(found[section], **{name: getattr(default[section], name)}) == default[section]
        )
        other = "variation" if section == "timing" else "timing"
        assert found[other] == default[other]
        assert each.config.first_seed == EVALUATION_SEED


def test_the_issues_targets_are_among_the_conditions() -> None:
    targets = {each.name: each.targets for each in SWEEPS if each.targets}
    assert targets == {"delay": ((0.15, 0.9),), "dropped": ((0.1, 0.9),)}
    for each in SWEEPS:
        assert {value for value, _ in each.targets} <= set(each.values)
        assert list(each.values) == sorted(set(each.values))


def test_the_users_own_conditions_are_the_baselines(tmp_path: Path) -> None:
    settings = config(
        tmp_path,
        timing=Timing(answers_hz=5),
        world=replace(WORLD, variation=Variation(arm_speed=0.5)),
        sweep=("light",),
    )
    for each in sweep.conditions(settings):
        assert each.config.timing == Timing(answers_hz=5, step_hz=20)
        assert each.config.world.variation.arm_speed == 0.5


def test_a_sweep_without_episodes_is_refused(tmp_path: Path) -> None:
    for options in ({"num_episodes": 0}, {"data_root": "data"}):
        with pytest.raises(ConfigError, match=r"--sweep measures episodes in simulation"):
            config(tmp_path, **options)


# --- the sheet -----------------------------------------------------------------------------------


def test_rows_hold_rate_interval_ratio_and_target(fake: FakeSimulation, tmp_path: Path) -> None:
    rows = run(config(tmp_path))
    found = {(row.name, row.value): row for row in rows}
    assert fake.measured[0] == "baseline"
    assert found["baseline", None].ratio == 1
    late = found["delay", 0.15]
    assert (late.rate, late.baseline, late.target, late.met) == (0.5, 0.8, 0.9, False)
    assert late.ratio == pytest.approx(0.5 / 0.8)
    assert (late.low, late.high) == wilson(5, 10)
    assert found["dropped", 0.1].met is True
    assert found["delay", 0.05].target is None
    assert found["delay", 0.05].met is None
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert [Row(**row) for row in written] == list(rows)
    assert {"name", "value", "unit", "baseline", "ratio", "target", "met"} <= set(written[0])


def test_a_baseline_of_nothing_has_no_ratio_and_meets_no_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> dict[str, Any]:
        low, high = wilson(0, 5)
        success = {"rate": 0.0, "low": low, "high": high, "successes": 0, "episodes": 5}
        return {"success": success, "world": {"control_hz": 20}}

    monkeypatch.setattr(sweep, "simulate", fails)
    rows = run(config(tmp_path))
    assert {row.ratio for row in rows} == {None}
    assert [row.met for row in rows if row.target is not None] == [False, False]


@pytest.mark.usefixtures("fake")
def test_the_sheet_is_a_markdown_table_with_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(config(tmp_path, num_episodes=10))
    sheet = (tmp_path / "sweep.md").read_text()
    lines = [line for line in sheet.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    late = next(line for line in lines if "0.15 s" in line)
    assert re.sub(r"\s+", " ", late) == (
        "| delay from image to arm | 0.15 s | 50.0 % | 23.7 to 76.3 % | 0.62 | ≥ 0.90, missed |"
    )
    assert "10 unseen scenes per row" in sheet
    assert "(sweep.png)" in sheet
    sweep_report.show(rows)
    said = capsys.readouterr().out
    assert said.count("delay from image to arm") == 6  # five values, and one that is missed
    assert "missed: delay from image to arm 0.15 s" in said


@pytest.mark.usefixtures("fake")
def test_the_plot_has_a_panel_per_condition(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    rows = run(config(tmp_path, sweep=("delay", "rate", "dropped")))
    png = (tmp_path / "sweep.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    figure = sweep_report.figure(rows)
    assert isinstance(figure, Figure)
    panels = [axis for axis in figure.axes if axis.axison]
    assert [panel.get_title() for panel in panels] == [
        "delay from image to arm", "answers per second", "share of images lost",
    ]  # fmt: skip
    line = next(line for line in panels[0].get_lines() if len(line.get_xdata()) == 5)
    assert list(line.get_xdata()) == [0.05, 0.1, 0.15, 0.2, 0.3]
    assert list(line.get_ydata()) == pytest.approx([70, 60, 50, 40, 20])
    (bars,) = panels[0].containers
    assert bars.has_yerr


# --- continuing ----------------------------------------------------------------------------------


def test_a_killed_sweep_continues_with_what_is_missing(
    fake: FakeSimulation, tmp_path: Path
) -> None:
    fake.dies_at = "delay-0.2"
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))
    before = list(fake.measured)
    assert before == ["baseline", "delay-0.05", "delay-0.1", "delay-0.15"]
    assert len(json.loads((tmp_path / "sweep.json").read_text())) == 4
    fake.dies_at = ""
    rows = run(config(tmp_path))
    assert fake.measured[: len(before)] == before
    assert not set(before) & set(fake.measured[len(before) :])
    assert len(rows) == 9
    assert run(config(tmp_path)) == rows
    assert len(fake.measured) == 9


def test_other_settings_or_weights_are_measured_again(fake: FakeSimulation, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"first")
    settings = config(tmp_path / "out", model=ModelOptions(str(checkpoint)), sweep=("dropped",))
    run(settings)
    assert len(fake.measured) == 4
    run(replace(settings, model=replace(settings.model, device="cuda", token="t")))
    assert len(fake.measured) == 4
    run(replace(settings, num_episodes=2))
    assert len(fake.measured) == 8
    run(settings)
    assert len(fake.measured) == 12
    os.utime(checkpoint / "model.safetensors", (1, 1))
    run(settings)
    assert len(fake.measured) == 16


def test_a_damaged_result_is_measured_again(
    fake: FakeSimulation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config(tmp_path))
    (tmp_path / "conditions/delay-0.1/results.json").write_text("{")
    run(config(tmp_path))
    assert fake.measured[9:] == ["delay-0.1"]
    assert "delay-0.1/results.json: cannot be read" in caplog.text


# --- in the real simulation ----------------------------------------------------------------------


def test_a_late_answer_moves_the_simulated_arm_later(monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[float] = []

    class Recording(World):
        def step(self, target_rad: Any) -> None:
            executed.append(round(float(np.asarray(target_rad)[0]), 3))
            super().step(target_rad)

    monkeypatch.setattr(scene_worker, "World", Recording)
    step_hz, how = pace(Timing(delay_s=0.15), 10, None)
    worker = EvalWorker(replace(WORLD, control_hz=step_hz, home_noise_rad=0.0), False, how)
    look = worker({0: Begin(EVALUATION_SEED)})[0]
    assert look.steps == 0
    for first in (0.1, 0.5):
        targets = np.tile(HOME_RAD, (4, 1))
        targets[:, 0] = first + 0.01 * np.arange(4)
        look = worker({0: Act(targets)})[0]
    assert look.steps == 16
    waited, one, two = [0.0] * 3, [0.11, 0.12, 0.12, 0.13, 0.13], [0.51, 0.52, 0.52, 0.53, 0.53]
    assert executed == [*waited, *one, *[0.13] * 3, *two]
    worker._worlds[0].close()


def test_rate_and_lost_images_decide_when_the_policy_looks() -> None:
    def looked(timing: Timing) -> tuple[list[float], int]:
        step_hz, how = pace(timing, 10, None)
        worker = EvalWorker(replace(WORLD, control_hz=step_hz), False, how)
        times_s, look = [], worker({0: Begin(EVALUATION_SEED)})[0]
        while look.observation is not None:
            times_s.append(look.observation.time_s)
            look = worker({0: Act(look.observation.joints.position_rad[None])})[0]
        assert look.steps == round(2.0 * step_hz)
        worker._worlds[0].close()
        return times_s, look.dropped

    assert looked(Timing()) == (pytest.approx([0.1 * step for step in range(20)]), 0)
    assert looked(Timing(answers_hz=4)) == (pytest.approx([0.25 * step for step in range(8)]), 0)
    seen, lost = looked(Timing(answers_hz=4, dropped=0.5))
    assert {4 * time_s for time_s in seen} < {*range(8)}
    assert len(seen) + lost == 8


def test_an_evaluation_keeps_its_timing(tmp_path: Path) -> None:
    policy, timing = Stay(), Timing(answers_hz=4, dropped=0.3)
    rollouts = roll_out(Candidate(policy, 0.1), config(tmp_path, sweep=(), timing=timing))
    (result,) = rollouts.results
    assert rollouts.control_hz == 20
    assert len(policy.looked_s) + result.dropped == 8


def test_an_arm_whose_step_is_out_of_reach_stays_and_the_others_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Reaching(Stay):
        def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            if any("red" in seen.instruction for seen in observations):
                raise UnreachableError("too far")
            return super().predict(observations)

    policy = Reaching()
    world = replace(WORLD, colours=("red", "blue"))
    settings = config(tmp_path, sweep=(), world=world, num_episodes=6, slots=6, processes=1)
    rollouts = roll_out(Candidate(policy, 0.1, batched=True), settings)
    assert len(rollouts.results) == 6
    named = {result.named for result in rollouts.results}
    assert "red" in named
    assert len(named) > 1
    assert policy.looked_s, "the others were asked"
    assert "an arm stays where it is: too far" in caplog.text


def test_scenes_that_vary_are_not_swept_by_what_varies(tmp_path: Path) -> None:
    varied = replace(WORLD, vary=1.0)
    with pytest.raises(ConfigError, match="leave out --vary, or --sweep camera size"):
        config(tmp_path, world=varied, sweep=("delay", "camera", "size"))
    with pytest.raises(ConfigError, match="leave out --vary"):
        config(tmp_path, world=replace(varied, variation=Variation(light=0.5)), sweep=())
    assert config(tmp_path, world=varied, sweep=("delay",)).sweep == ("delay",)


@pytest.mark.slow
@pytest.mark.timeout(400)  # minutes where a training uses the cores
def test_color_servo_is_swept_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--policy", "color-servo", "--sweep", "dropped", "--num-episodes", "1"]
    words += ["--output", str(tmp_path), "--colours", "red", "blue", "--image-size", "320x240"]
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sweep"]
    assert [row["value"] for row in rows] == [None, 0.1, 0.2, 0.4]
    assert rows[0]["episodes"] == 1
    assert rows[0]["rate"] == 1
    lost = json.loads((tmp_path / "conditions/dropped-0.4/results.json").read_text())
    assert sum(each["dropped"] for each in lost["episodes"]) > 0
    assert (tmp_path / "sweep.png").exists()
    assert cli.main(words) == 0
    assert "share of images lost" in capsys.readouterr().out
