"""Delay, rate and lost images: which target is executed in which step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.timing import FINE_HZ, Pace, Playback, Timing, pace
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig

REST = -1.0


def chunk(number: int, length: int) -> np.ndarray:
    """(T, 8): chunk 3 holds 30, 31, 32, …"""
    return np.repeat(10.0 * number + np.arange(length), 8).reshape(length, 8)


def played(pace: Pace, length: int, steps: int, seed: int = 0) -> tuple[list[float], list[int]]:
    """Return the target of each step, and the steps whose image the policy sees."""
    playback = Playback(pace, np.full(8, REST), seed)
    targets, seen = [], []
    for step in range(steps):
        if playback.sees(step):
            playback.answer(chunk(len(seen), length), step)
            seen.append(step)
        targets.append(float(playback.target(step)[0]))
    return targets, seen


def test_lockstep_executes_every_target_of_a_chunk_then_looks() -> None:
    assert played(Pace(), 3, 7) == ([0, 1, 2, 10, 11, 12, 20], [0, 3, 6])


def test_some_steps_of_each_chunk_are_executed_and_no_more_than_it_has() -> None:
    assert played(Pace(interval=2), 3, 6) == ([0, 1, 10, 11, 20, 21], [0, 2, 4])
    assert played(Pace(interval=9), 3, 6) == ([0, 1, 2, 10, 11, 12], [0, 3])


def test_a_late_answer_skips_its_steps_whose_time_has_passed() -> None:
    """The arm waits for the first one, and plays the earlier chunk on until the next one comes."""
    targets, seen = played(Pace(delay=2, interval=3), 6, 10)
    assert seen == [0, 3, 6, 9]
    assert targets == [REST, REST, 2, 3, 4, 12, 13, 14, 22, 23]


def test_what_is_later_than_its_chunk_ends_in_its_last_target() -> None:
    targets, seen = played(Pace(delay=5), 3, 12)
    assert seen == [0, 3, 6, 9]
    assert targets == [REST] * 5 + [2, 2, 2, 12, 12, 12, 22]


def test_a_rate_below_the_chunks_stays_at_the_last_target() -> None:
    targets, seen = played(Pace(interval=5, is_rate=True), 2, 10)
    assert seen == [0, 5]
    assert targets == [0, 1, 1, 1, 1, 10, 11, 11, 11, 11]


def test_each_target_lasts_a_period_of_the_policy() -> None:
    assert played(Pace(steps_per_target=3), 2, 8)[0] == [0, 0, 0, 1, 1, 1, 10, 10]


def test_after_a_lost_image_the_arm_plays_on_and_the_next_image_counts() -> None:
    how = Pace(interval=2, is_rate=True, dropped=0.5)
    targets, seen = played(how, 2, 40, seed=3)
    assert set(seen) < set(range(0, 40, 2))
    assert 5 <= len(seen) <= 15
    first = seen[0]
    assert targets[:first] == [REST] * first
    number = 0
    for step in range(first, 40):
        number += step > first and step in seen
        assert targets[step] == 10 * number + min(step - seen[number], 1)
    assert played(how, 2, 40, seed=3) == (targets, seen)
    assert played(how, 2, 40, seed=4) != (targets, seen)


def test_without_a_rate_the_next_image_comes_one_target_after_a_lost_one() -> None:
    _, seen = played(Pace(steps_per_target=2, dropped=0.5), 3, 60, seed=1)
    gaps = set(np.diff(seen).tolist())
    assert min(gaps) == 6
    assert gaps <= {6, 8, 10, 12, 14, 16}
    assert len(gaps) > 1


def test_lost_images_are_counted() -> None:
    playback = Playback(Pace(dropped=1.0), np.zeros(8), 0)
    assert not any(playback.sees(step) for step in range(7))
    assert playback.dropped == 7


@pytest.mark.parametrize(
    ("timing", "policy_hz", "expected"),
    [
        (Timing(), 5, (5, Pace())),
        (Timing(dropped=0.1), 5, (5, Pace(dropped=0.1))),
        (Timing(delay_s=0.15), 5, (20, Pace(4, 3))),
        (Timing(delay_s=0.16), 5, (20, Pace(4, 4))),
        (Timing(delay_s=0.3), 30, (30, Pace(1, 9))),
        (Timing(answers_hz=3), 10, (20, Pace(2, 0, 7, True))),
        (Timing(answers_hz=100), 10, (20, Pace(2, 0, 1, True))),
        (Timing(step_hz=FINE_HZ), 15, (30, Pace(2))),
    ],
)
def test_times_are_rounded_up_to_steps(
    timing: Timing, policy_hz: int, expected: tuple[int, Pace]
) -> None:
    assert pace(timing, policy_hz, None) == expected


def test_steps_to_execute_are_targets_of_the_policy() -> None:
    assert pace(Timing(step_hz=20), 5, 2) == (20, Pace(4, 0, 8))


@pytest.mark.parametrize(
    ("timing", "message"),
    [
        (Timing(delay_s=-0.1), r"timing\.delay_s is -0\.1, expected 0 to 2 s"),
        (Timing(delay_s=math.inf), r"timing\.delay_s is inf, expected 0 to 2 s"),
        (Timing(answers_hz=0), r"timing\.answers_hz is 0, expected above 0, or none"),
        (Timing(dropped=1.1), r"timing\.dropped is 1\.1, expected 0 to 1"),
    ],
)
def test_an_impossible_timing_is_refused(timing: Timing, message: str, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(ModelOptions("a"), tmp_path, timing=timing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--delay-s", "-0.1"], "--delay-s: '-0.1', expected 0 to 2 s"),
        (["--answers-hz", "0"], "--answers-hz: '0', expected above 0"),
        (["--dropped", "10"], "--dropped: '10', expected 0 to 1"),
        (["--cube-size", "0"], "--cube-size: '0', expected 0.5 to 1.6"),
        (["--arm-speed", "2"], "--arm-speed: '2', expected 0.05 to 1"),
        (["--sweep", "dely"], "dely"),
        (["--sweep", "--num-episodes", "0"], "--num-episodes to 1 or more"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["evaluate", "--policy", "color-servo", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr().err
    assert code in (2, 3), said
    assert message in said
    assert "Traceback" not in said
