"""Whatever link, clocks and processes do, the arm's controller executes no step: in simulated time.

scripts/bench_safety runs the same world for longer and prints the table; here each fault is met
alone and in pairs. The loop, the guard's core and the controller are the real ones.
"""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
from safety_bench.world import Case, Result, World

SECONDS = 14.0
STALLS = {"stall_s": (0.05, 1.0), "stalls_per_minute": 40.0}
FAULTS: dict[str, dict[str, object]] = {
    "link stalls": STALLS | {"stalled": ("link",)},
    "robot stopped": STALLS | {"stalled": ("robot",)},
    "guard stopped": STALLS | {"stalled": ("guard",)},
    "loop stopped": STALLS | {"stalled": ("loop",)},
    "clock forward": {"clock_steps_s": (0.3, 20.0)},
    "clock back": {"clock_steps_s": (-0.2, -0.45)},
    "loss": {"loss": 0.2},
    "delay": {"delay_s": 0.15, "jitter_s": 0.04, "validity_s": 1.0},
    "starts outside": {"start_outside_rad": 0.06},
    "slow joints": {"joints_hz": 10.0, "camera_hz": 7.0},
}
DEFAULT = Case("")


def _case(*names: str) -> Case:
    """Return a case with these faults together; what stops is all that any of them names."""
    changes: dict[str, object] = {}
    for name in names:
        fault = dict(FAULTS[name])
        if "stalled" in changes and "stalled" in fault:
            fault["stalled"] = (*changes["stalled"], *fault["stalled"])  # type: ignore[misc]
        changes |= fault
    known = {field.name for field in fields(Case)}
    assert set(changes) <= known
    return replace(DEFAULT, name=" + ".join(names), seconds=SECONDS, **changes)  # type: ignore[arg-type]


def _assert_smooth(result: Result) -> None:
    assert result.velocity_violations == 0, result
    assert result.acceleration_violations == 0, result
    assert result.steps == 0, result
    assert result.expired_accepted == 0, result


@pytest.mark.parametrize("name", FAULTS)
def test_behind_the_guard_a_fault_makes_no_step(name: str) -> None:
    result = World(replace(_case(name), guard=True), seed=1).run()
    _assert_smooth(result)
    assert result.trajectories > 20, result
    assert result.slowest_return_s <= 2.0, result


NEIGHBOURS = set(itertools.pairwise([*FAULTS, next(iter(FAULTS))]))
"""Pairs in which each fault meets two others; all pairs take a minute."""
PAIRS = [
    pytest.param(
        pair, id=" + ".join(pair), marks=() if {pair, pair[::-1]} & NEIGHBOURS else pytest.mark.slow
    )
    for pair in itertools.combinations(FAULTS, 2)
]


@pytest.mark.parametrize("names", PAIRS)
def test_behind_the_guard_two_faults_at_once_make_no_step(names: tuple[str, str]) -> None:
    """A late picture of a slow link may keep the arm still for all of the time, but never steps."""
    _assert_smooth(World(replace(_case(*names), guard=True), seed=2).run())


def test_alone_the_loop_learns_how_slow_the_link_is() -> None:
    """Stalls up to 150 ms: no step above 0.002 rad after the first minute; before, dozens."""
    case = replace(DEFAULT, seconds=100.0, stall_s=(0.05, 0.15))
    alone = World(replace(case, settle_s=60.0)).run()
    assert alone.steps_2mrad == 0, alone
    assert alone.trajectories > 900
    before = World(replace(case, seconds=40.0, fixed_lead=True)).run()
    assert before.steps_2mrad > 2, before


def test_what_the_guard_takes_care_of_would_be_steps_without_it() -> None:
    case = _case("link stalls", "robot stopped")
    without = World(replace(case, fixed_lead=True), seed=1).run()
    assert without.steps > 0
    assert without.velocity_violations > 0
    assert without.acceleration_violations > 0


def test_a_clean_link_is_driven_the_same_behind_the_guard() -> None:
    alone, guarded = (World(replace(DEFAULT, seconds=20.0, guard=g)).run() for g in (False, True))
    for result in (alone, guarded):
        _assert_smooth(result)
        assert result.trajectories >= 190
    report = guarded.guard_report
    assert report["passed"] + report["retimed"] >= 190
    assert sum(report["refused"].values()) <= 1, report


def test_a_stop_in_mid_motion_brakes_within_limits_and_holds() -> None:
    world = World(replace(DEFAULT, seconds=8.0, guard=True))
    guard = world.guard
    assert guard is not None
    rest: list[object] = []
    controller = world.robot.controller
    world.timeline.at(
        world.timeline.now_s + 4.0,
        lambda: guard.carry_out(guard.core.stop("pressed", world.timeline.now_s)),
    )
    for after_s in (4.6, 7.5):
        world.timeline.at(
            world.timeline.now_s + after_s,
            lambda: rest.append(controller.update(world.robot.steady_s()).tolist()),
        )
    result = world.run()
    _assert_smooth(result)
    assert rest[0] == rest[1]
    assert result.holds.get("stopped", 0) > 15
