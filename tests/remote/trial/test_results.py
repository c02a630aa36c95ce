"""Rates, intervals, trial.json and failures.html."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from crane_x7_remote.errors import OutputError, SettingsError
from crane_x7_remote.trial import page, results
from crane_x7_remote.trial.results import Episode, Intervention, Rate, TrialPlan

PLAN = TrialPlan("pick up the red cube", "color-servo", None, 60.0, "keys", 20)
EVIL = "<script>alert(1)</script>\x1b[2J & \u202e"


def episode(number: int, result: str = "success", **more: object) -> Episode:
    values = {"reason": "key", "seconds": 3.0, "total_s": 4.0, "started": "2026-11-28T05:00:00"}
    return Episode(number, result, **{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("successes", "counted", "lower", "upper"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (15, 20, 0.5313, 0.8881),
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_interval_is_that_of_wilson(
    successes: int, counted: int, lower: float, upper: float
) -> None:
    found = Rate(successes, counted).interval()
    assert found == pytest.approx((lower, upper), abs=5e-4)


def test_a_success_with_help_is_no_success_of_the_policy() -> None:
    helped = episode(2, interventions=(Intervention("hand", 1.0, 2.0),))
    found = results.rate([episode(1), helped, episode(3, "skipped"), episode(4, "failure")])
    assert (found.successes, found.counted) == (1, 3)
    assert found.in_words() == "1 of 3 succeeded, 33% (95 % interval 6% to 79%)"


def test_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    episodes = [
        episode(1, holds={"frame_stale": 3}, interventions=(Intervention("leader", 1.5, 2.5),)),
        episode(2, "failure", reason="timeout of 60 s", notes=("stopped by a person",), frames=4),
    ]
    results.save(tmp_path, PLAN, episodes)
    assert results.load(tmp_path) == (PLAN, episodes)
    content = json.loads((tmp_path / "trial.json").read_text())
    assert content["summary"]["with_help"] == 1
    assert content["summary"]["is_complete"] is False
    assert [each.name for each in tmp_path.iterdir()] == ["trial.json"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "expected an object"),
        ('{"format": 2}', "format is 2, expected 1"),
        ('{"format": 1, "plan": {}, "episodes": []}', "not a trial"),
        (None, "expected the folder of a trial"),
    ],
)
def test_what_is_no_trial_is_refused(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / "trial.json").write_text(content)
    with pytest.raises(SettingsError, match=part) as caught:
        results.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_episodes_that_are_not_numbered_are_refused(tmp_path: Path) -> None:
    results.save(tmp_path, PLAN, [episode(1), episode(3)])
    with pytest.raises(SettingsError, match="not numbered"):
        results.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(OutputError, match=r"trial\.json cannot be written"):
        results.save(tmp_path / "a-file", PLAN, [])


def test_another_task_is_another_trial() -> None:
    assert PLAN.differences(replace(PLAN, episodes=5)) == []
    (line,) = PLAN.differences(replace(PLAN, task="place it"))
    assert line == "task is 'pick up the red cube', expected 'place it'"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_contains_its_images_and_nothing_that_runs(tmp_path: Path) -> None:
    plan = replace(PLAN, task=EVIL, model=EVIL)
    failed = episode(2, "failure", notes=(EVIL,), holds={EVIL: 1}, frames=2)
    page.save_frames(tmp_path, 2, [b"\xff\xd8one", b"\xff\xd8two"])
    page.write(tmp_path, plan, [episode(1), failed])
    text = (tmp_path / "failures.html").read_text()
    found = Tags()
    found.feed(text)
    assert "script" not in found.tags
    assert found.tags.count("img") == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "Episode 2" in text
    assert "Episode 1<" not in text


def test_images_of_an_earlier_attempt_do_not_stay(tmp_path: Path) -> None:
    page.save_frames(tmp_path, 1, [b"a", b"b", b"c"])
    page.save_frames(tmp_path, 1, [b"d"])
    assert [path.read_bytes() for path in (tmp_path / "frames" / "001").iterdir()] == [b"d"]


def test_a_trial_of_before_keeps_its_one_scene(tmp_path: Path) -> None:
    """trial.json without seeds is read; the scenes of a new one follow each other."""
    results.save(tmp_path, PLAN, [episode(1)])
    path = tmp_path / "trial.json"
    content = json.loads(path.read_text())
    del content["plan"]["first_seed"], content["episodes"][0]["seed"]
    path.write_text(json.dumps(content))
    plan, (first,) = results.load(tmp_path)
    assert plan.seed(4) is first.seed is None
    assert [replace(PLAN, first_seed=7).seed(number) for number in (1, 2, 3)] == [7, 8, 9]
    (difference,) = replace(PLAN, first_seed=7).differences(plan)
    assert difference == "first_seed is 7, expected None"
