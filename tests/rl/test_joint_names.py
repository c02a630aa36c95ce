"""Joints are told by their names, whoever wrote them and in whatever order."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla_rl.joint_names import JointsError, places_of_joints
from crane_x7_vla_rl.robot import JOINT_NAMES


def test_places_put_any_order_into_ours_and_pass_over_other_joints() -> None:
    names = ["wheel", *reversed(JOINT_NAMES), 7, None]
    places = places_of_joints(names, len(names))
    assert [names[place] for place in places] == list(JOINT_NAMES)


def test_values_that_are_missing_behind_our_joints_do_not_matter() -> None:
    assert places_of_joints([*JOINT_NAMES, "wheel"], 8) == np.arange(8).tolist()


@pytest.mark.parametrize(
    ("names", "count", "said"),
    [
        ([], 0, f"lacks {', '.join(JOINT_NAMES)}"),
        (JOINT_NAMES[1:], 7, f"lacks {JOINT_NAMES[0]}"),
        ([*JOINT_NAMES, JOINT_NAMES[2]], 9, f"names {JOINT_NAMES[2]} more than once"),
        (JOINT_NAMES, 7, "has 8 names and 7 positions"),
    ],
)
def test_joints_that_are_not_ours_are_refused(names: list[str], count: int, said: str) -> None:
    with pytest.raises(JointsError, match=said):
        places_of_joints(names, count)
