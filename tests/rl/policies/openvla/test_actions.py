"""Tokens, bins, normalised values and radians; statistics; the prompt."""

from __future__ import annotations

import numpy as np
import openvla_rig as rig
import pytest

from crane_x7_vla_rl.actions import (
    CENTRES,
    Statistics,
    StatisticsError,
    find_statistics,
    normalised_to_tokens,
    tokens_to_normalised,
)
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.prompt import prompt

ENTRY = {"action": {"q01": [-2.0, 0.0], "q99": [2.0, 4.0], "mask": [True, False]}}


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return rig.load()


@pytest.mark.parametrize(("key", "dimensions"), rig.KEYS)
def test_actions_equal_the_originals(model: OpenVLA, key: str, dimensions: int) -> None:
    actions = model.decode_actions(rig.tokens(key), key)
    theirs = np.stack([rig.expected()[f"action.{key}.{i}"].numpy() for i in range(rig.COUNT)])
    assert actions.shape == (rig.COUNT, dimensions)
    assert actions.dtype == np.float64
    assert np.array_equal(actions, theirs)


def test_the_lowest_token_is_the_highest_value_and_two_tokens_share_it() -> None:
    values = tokens_to_normalised([31999, 31745, 31744])
    assert values.tolist() == [CENTRES[0], CENTRES[-1], CENTRES[-1]]


def test_tokens_beyond_the_bins_take_the_nearest() -> None:
    assert tokens_to_normalised([32063, 0]).tolist() == [CENTRES[0], CENTRES[-1]]


def test_every_bin_survives_the_way_to_tokens_and_back() -> None:
    assert np.array_equal(tokens_to_normalised(normalised_to_tokens(CENTRES)), CENTRES)


def test_values_outside_become_the_ends() -> None:
    assert normalised_to_tokens([-9.0, -1.0, 1.0, np.inf]).tolist() == [31999, 31999, 31744, 31744]


def test_nan_is_no_action() -> None:
    with pytest.raises(ValueError, match="NaN"):
        normalised_to_tokens([0.0, np.nan])


def test_masked_dimensions_are_left_as_they_are() -> None:
    statistics = find_statistics({"robot": ENTRY}, "robot")
    assert statistics.unnormalise([[1.0, 0.25]]).tolist() == [[2.0, 0.25]]
    assert statistics.normalise([[2.0, 0.25]]).tolist() == [[1.0, 0.25]]


def test_a_span_of_nothing_normalises_to_the_middle() -> None:
    still = Statistics.from_dict({"q01": [0.3], "q99": [0.3]}, "test")
    assert still.normalise([0.3]).tolist() == [0.0]
    assert still.unnormalise([0.7]).tolist() == [0.3]


def test_an_unknown_key_lists_the_known_ones(model: OpenVLA) -> None:
    said = "key 'crane_x8' is unknown; did you mean 'crane_x7'.* known: bridge_orig, crane_x7"
    with pytest.raises(StatisticsError, match=said):
        model.decode_actions(rig.tokens("crane_x7"), "crane_x8")


def test_statistics_of_another_robot_do_not_scale_this_one(model: OpenVLA) -> None:
    with pytest.raises(StatisticsError, match=r"shape \(4, 8\), but the statistics have 7"):
        model.decode_actions(rig.tokens("crane_x7"), "bridge_orig")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "robot has no 'action' statistics"),
        ({"action": {"q01": [0.0]}}, "robot.action: q99 is null, expected a list"),
        ({"action": {"q01": [0.0], "q99": ["a"]}}, r'q99 is \["a"\], expected a list of numbers'),
        ({"action": {"q01": [0.0], "q99": [1.0, 2.0]}}, "three lists of one length"),
        ({"action": {"q01": [0.0], "q99": [1.0], "mask": [1]}}, "mask holds int64"),
        ({"action": {"q01": [0.0], "q99": [1.0], "mask": [True, [True]]}}, "mask is .*expected a"),
        ({"action": {"q01": [10**400], "q99": [1.0]}}, "q01 is .*expected a list of numbers"),
        ({"action": {"q01": [0.0], "q99": [float("nan")]}}, "expected finite q01 ≤ q99"),
        ({"action": {"q01": [2.0], "q99": [1.0]}}, "expected finite q01 ≤ q99"),
    ],
)
def test_malformed_statistics_are_refused(entry: dict[str, object], said: str) -> None:
    with pytest.raises(StatisticsError, match=said):
        find_statistics({"robot": entry}, "robot")


def test_the_prompt_is_in_lower_case() -> None:
    assert prompt(" Pick up the RED cube ") == (
        "In: What action should the robot take to pick up the red cube?\nOut:"
    )


def test_a_blank_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="expected words"):
        prompt(" \n")
