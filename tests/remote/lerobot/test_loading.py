"""What LeRobot's process refuses, or mends, in a checkpoint and in a request."""

from __future__ import annotations

import json

import lerobot_rig
import pytest

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case → what our loader or the policy answered, see lerobot_damaged.py."""
    folder = tmp_path_factory.mktemp("damaged")
    lerobot_rig.run(lerobot_rig.RIGS / "lerobot_damaged.py", folder, timeout_s=500)
    answers: dict[str, str] = json.loads((folder / "answers.json").read_text())
    return answers


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("act_truncated", ["truncated", "expected", "copy the checkpoint again"]),
        ("act_empty", ["not a safetensors file (0 bytes)"]),
        ("act_zero_bytes", ["not a safetensors file"]),
        ("act_zero_weights", ["weights are zero"]),
        ("act_nan", ["NaN"]),
        ("act_other_shape", ["size mismatch"]),
    ],
)
def test_damaged_weights_are_refused(said: dict[str, str], case: str, words: list[str]) -> None:
    assert all(word in said[case] for word in words), said[case]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("act_renamed_keys", ["missing", "unexpected"]),
        ("act_missing_keys", ["2 missing (model.action_head.bias, model.action_head.weight)"]),
        ("pi0_renamed_keys", ["missing", "unexpected"]),
    ],
)
def test_keys_of_another_version_are_errors(
    said: dict[str, str], case: str, words: list[str]
) -> None:
    """LeRobot prints a warning, and drives on random weights."""
    assert all(word in said[case] for word in [*words, "transformers"]), said[case]


def test_a_configuration_of_another_version_is_named(said: dict[str, str]) -> None:
    assert "from_the_future" in said["act_other_config"]
    assert "does not fit LeRobot" in said["act_other_config"]


def test_of_output_layer_and_embedding_the_embedding_counts(said: dict[str, str]) -> None:
    assert said["pi0_head_and_embedding"] == "embedding"


def test_a_camera_of_another_size_is_refused_with_both_sizes(said: dict[str, str]) -> None:
    assert "64x48" in said["act_other_size"]
    assert "96x64" in said["act_other_size"]


def test_a_request_without_an_image_is_refused(said: dict[str, str]) -> None:
    """LeRobot's π0 fills a missing camera with black, masked: the policy would drive blind."""
    assert "has no image observation.images.base" in said["pi0_image_missing"]


def test_the_image_changes_the_prediction(said: dict[str, str]) -> None:
    assert said["pi0_image_matters"] == "True"


@pytest.mark.parametrize("case", ["act_state_nan", "act_state_shape", "smolvla_wrong_rest"])
def test_numbers_that_the_policy_was_not_trained_with_are_refused(
    said: dict[str, str], case: str
) -> None:
    assert said[case].startswith(("observation.state", "rtc/previous")), said[case]


def test_missing_statistics_are_an_error(said: dict[str, str]) -> None:
    assert "statistics of action lack std" in said["act_no_statistics"]


def test_a_joint_that_never_moved_in_training_gives_no_huge_numbers(said: dict[str, str]) -> None:
    found = json.loads(said["pi05_still_joint"])
    assert abs(found["normalized"]) <= 1
    assert found["finite"]
    assert found["off"] < 1e-6  # its target is training's


def test_real_time_chunking_follows_the_rest_of_the_previous_chunk(said: dict[str, str]) -> None:
    free_rad, guided_rad = json.loads(said["smolvla_guided"])
    assert guided_rad < free_rad / 10
