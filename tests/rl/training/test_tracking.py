"""Figures of every update reach whoever looks at them."""

from __future__ import annotations

import io
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from crane_x7_vla_rl.training.config.sections import LoggingConfig
from crane_x7_vla_rl.training.run_log import RunLog
from crane_x7_vla_rl.training.sft.config import OutputConfig, SftConfig
from crane_x7_vla_rl.training.tracking import (
    Figures,
    Formatters,
    MetricsFile,
    StepRange,
    TerminalBar,
    below,
    line,
    open_tracker,
    short,
)

FIGURES = Figures(
    step=200, samples=3200, epoch=0.642, loss=1.8731, grad_norm=2.1141, learning_rate=4.8e-4,
    data_s=0.0061, update_s=0.4123,
)  # fmt: skip


def test_the_line_has_the_words_that_users_know() -> None:
    assert line(FIGURES, frames_per_episode=20) == (
        "step:200 smpl:3.2K ep:160 epch:0.64 loss:1.873 grdn:2.114 lr:4.8e-04 updt_s:0.412"
        " data_s:0.006"
    )


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (1000, "1K"), (6400, "6.4K"), (2.5e6, "2.5M")]
)
def test_large_numbers_are_short(number: float, said: str) -> None:
    assert short(number) == said


def test_the_bar_shows_what_matters() -> None:
    stream = io.StringIO()
    bar = TerminalBar(400, 100, Console(file=stream), below)
    bar.log(FIGURES)
    bar.close()
    shown = stream.getvalue()
    for text in ("200/400", "loss 1.873", "grad 2.11", "lr 4.8e-04", "data 0.006 s",
                 "update 0.412 s", "3.2K samples", "epoch 0.64"):  # fmt: skip
        assert text in " ".join(shown.split()), shown


def test_a_terminal_that_cannot_redraw_a_line_gets_log_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    formatters = Formatters(lambda figures: f"step:{figures.step}", below)
    config = SftConfig(
        "openvla", output=OutputConfig(dir=str(tmp_path)), logging=LoggingConfig(1, False)
    )
    with (
        caplog.at_level(logging.INFO),
        open_tracker(config, StepRange(0, 400), formatters, None, RunLog()) as tracker,
    ):
        tracker.log(FIGURES)
    assert "step:200" in caplog.messages


def test_what_a_resumed_run_repeats_is_cut_off_and_so_is_a_torn_line(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, 0)
    for step in range(1, 6):
        first.log(replace(FIGURES, step=step))
    first.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    second = MetricsFile(tmp_path, 3)
    second.log(replace(FIGURES, step=4, loss=9.0))
    second.close()
    found = [json.loads(text) for text in path.read_text().splitlines()]
    assert [figures["step"] for figures in found] == [1, 2, 3, 4]
    assert found[-1]["loss"] == 9.0
