"""An unknown name is answered with the nearest that exist, and with nothing where none is near."""

from __future__ import annotations

from crane_x7_vla_rl.suggest import did_you_mean, nearest

KNOWN = ["learning_rate", "Lift-CRANE-X7", "gpu", "cpu"]


def test_the_nearest_name_is_found_whatever_its_capitals() -> None:
    assert nearest("learnig_rate", KNOWN) == ["learning_rate"]
    assert nearest("lift-cranex7", KNOWN) == ["Lift-CRANE-X7"]


def test_several_names_may_be_near_and_the_best_is_first() -> None:
    assert did_you_mean("gpuu", KNOWN, cutoff=0.5, most=3) == "; did you mean gpu or cpu?"


def test_nothing_is_said_where_no_name_is_near() -> None:
    assert did_you_mean("xyz", KNOWN) == ""
