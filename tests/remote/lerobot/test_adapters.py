"""LoRA adapters that LeRobot trained: loaded, merged, and refused where they do not fit."""

from __future__ import annotations

import json
from typing import Any

import lerobot_rig
import pytest

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case → what came of it, see lerobot_adapters.py."""
    folder = tmp_path_factory.mktemp("adapters")
    lerobot_rig.run(lerobot_rig.RIGS / "lerobot_adapters.py", folder, timeout_s=500)
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return answers


def test_adapters_predict_what_their_definition_says(said: dict[str, Any]) -> None:
    assert said["off_the_definition"] < 1e-4
    assert said["off_the_base"] > 1e-3  # they change something


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("moved", ["the adapters belong to /absent/base", "set base_model_name_or_path"]),
        ("unnamed", ["does not name the weights", "set base_model_name_or_path"]),
        ("keys", ["does not fit the policy", "missing or unexpected"]),
        ("nan", ["NaN"]),
    ],
)
def test_adapters_that_cannot_be_used_are_refused(
    said: dict[str, Any], case: str, words: list[str]
) -> None:
    assert all(word in said[case] for word in words), said[case]
