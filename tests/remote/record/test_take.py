"""Streams of different rates become frames at a fixed rate, and what cannot be one says why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from record_rig import (
    CAMERA,
    JOINTS,
    LEADER,
    START_S,
    commanded,
    decided,
    measured,
    picture,
    position,
    stream,
)

from crane_x7_remote.record.events import BASE, Commanded, Decided, Event, Measured, Picture
from crane_x7_remote.record.pace import Lost
from crane_x7_remote.record.spool import Spool
from crane_x7_remote.record.take import ActionSource, Take, TakePlan, TakeReport, TooShort
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.types import Array, JointState


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path)
    yield spool
    spool.close()
    assert not list(tmp_path.iterdir())


def taken(
    spool: Spool, events: Iterable[Event], action: ActionSource = "next", **more: object
) -> Take:
    cameras = more.pop("cameras", {BASE: CAMERA})
    take = Take(TakePlan(10.0, cameras, action, JOINTS, LEADER, **more), spool)  # type: ignore[arg-type]
    for event in events:
        match event:
            case Picture():
                take.picture(event)
            case Measured():
                take.measured(event)
            case Commanded():
                take.command(event)
            case Decided():
                take.decided(event)
    return take


def made(take: Take) -> tuple[Episode, TakeReport]:
    return take.episode("a task", "test")


def numbers(episode: Episode) -> list[int]:
    """The numbers in the episode's images."""
    return [round(float(episode.image(t).mean()) / 2) for t in range(len(episode))]


def test_a_frame_is_the_newest_image_with_the_joints_at_its_stamp(spool: Spool) -> None:
    episode, report = made(taken(spool, stream(1.0, camera_hz=30)))
    assert report.low == ()
    found = numbers(episode)
    assert found == list(range(0, 30, 3))
    for t, number in enumerate(found):
        taken_s = START_S + number / 30
        np.testing.assert_allclose(episode.state[t], position(taken_s), atol=1e-5)
        np.testing.assert_allclose(episode.action[t], position(taken_s + 0.1), atol=1e-5)
    assert episode.intervention is not None
    assert not episode.intervention.any()


def test_jitter_at_the_rate_of_the_episode_repeats_no_image(spool: Spool) -> None:
    rng = np.random.default_rng(0)
    events = [measured(START_S - 0.1 + k / 100) for k in range(400)]
    pictures = [picture(START_S + k / 10 + rng.uniform(-0.01, 0.01), k) for k in range(1, 32)]
    events_in_order = sorted([*events, *pictures], key=lambda each: (
        each.frame.stamp_s if isinstance(each, Picture) else each.joints.stamp_s))  # fmt: skip
    episode, report = made(taken(spool, events_in_order))
    assert numbers(episode) == list(range(1, 1 + len(episode)))
    assert report.low == ()


def test_a_slow_camera_and_slow_joints_are_said_with_numbers(spool: Spool) -> None:
    _, report = made(taken(spool, stream(2.0, camera_hz=5, joints_hz=6)))
    assert len(report.low) == 2
    assert report.low[0].startswith("camera base gave 5.")
    assert "images/s, wanted 10:" in report.low[0]
    assert report.low[1].startswith("joints of the robot came at ")


def test_a_leaders_joints_are_the_action_one_period_later(spool: Spool) -> None:
    episode, _ = made(taken(spool, stream(1.0, arms=("robot", "leader")), "leader"))
    np.testing.assert_allclose(episode.action[3], position(START_S + 0.4, 0.2), atol=1e-5)
    np.testing.assert_allclose(episode.state[3], position(START_S + 0.3), atol=1e-5)


def with_commands(commands: Iterable[Commanded]) -> list[Event]:
    ordered: list[tuple[float, Event]] = [
        (each.frame.stamp_s if isinstance(each, Picture) else each.joints.stamp_s, each)
        for each in stream(1.0)
        if isinstance(each, Picture | Measured)
    ]
    ordered += [(each.arrival_s + 900, each) for each in commands]
    return [event for _, event in sorted(ordered, key=lambda pair: pair[0])]


def test_commands_before_the_start_and_during_it_are_the_action(spool: Spool) -> None:
    first, second = np.full(8, 0.3), np.full(8, 0.4)
    events = with_commands([commanded(START_S - 5, first), commanded(START_S + 0.45, second)])
    episode, _ = made(taken(spool, events, "commands"))
    np.testing.assert_allclose(episode.action[:3], np.full((3, 8), 0.3), atol=1e-5)
    np.testing.assert_allclose(episode.action[6:], np.full((len(episode) - 6, 8), 0.4), atol=1e-5)


def test_a_command_without_the_gripper_leaves_it_as_measured(spool: Spool) -> None:
    events = with_commands([commanded(START_S - 1, np.full(8, 0.3), joints=range(7))])
    episode, _ = made(taken(spool, events, "commands"))
    np.testing.assert_allclose(episode.action[2, :7], 0.3, atol=1e-5)
    np.testing.assert_allclose(episode.action[2, 7], position(START_S + 0.3)[7], atol=1e-5)


def test_a_loops_trajectory_counts_once_and_with_its_gripper(spool: Spool) -> None:
    """The loop publishes it on two topics, on the arm's without the gripper."""
    both = [commanded(START_S - 1, np.full(8, 0.3), session="0a1b2c3d", is_prediction=True),
            commanded(START_S - 0.999, np.full(8, 0.3), range(7), session="0a1b2c3d")]  # fmt: skip
    episode, _ = made(taken(spool, with_commands(both), "commands"))
    np.testing.assert_allclose(episode.action[2], np.full(8, 0.3), atol=1e-5)


def test_a_command_without_a_stamp_starts_on_arrival(spool: Spool) -> None:
    target = np.full(8, 0.3)
    unstamped = commanded(START_S + 0.45, target)
    command = unstamped.command
    zero = Commanded(
        type(command)(0.0, command.joints, command.due_s, command.position_rad),
        unstamped.arrival_s, None, False,
    )  # fmt: skip
    take = taken(spool, with_commands([zero]), "commands", ahead_s=900.0)
    episode, _ = made(take)
    np.testing.assert_allclose(episode.action[2], position(START_S + 0.3), atol=1e-5)
    np.testing.assert_allclose(episode.action[6], target, atol=1e-5)


def test_a_policys_targets_and_who_intervened_are_recorded(spool: Spool) -> None:
    events: list[Event] = list(stream(1.0, camera_hz=10))
    events += [decided(START_S + k / 10, np.full(8, k / 100.0)) for k in range(4)]
    events += [decided(START_S + k / 10, None, intervention=True) for k in range(4, 10)]
    episode, _ = made(taken(spool, events, "policy"))
    for t in range(4):
        np.testing.assert_allclose(episode.action[t], np.full(8, t / 100.0), atol=1e-5)
    np.testing.assert_allclose(episode.action[5], position(START_S + 0.6), atol=1e-5)
    assert episode.intervention is not None
    assert episode.intervention.tolist() == [t >= 4 for t in range(len(episode))]


def test_two_cameras_are_recorded_at_the_same_times(spool: Spool) -> None:
    cameras = {BASE: CAMERA, "wrist": "/wrist"}
    take = taken(spool, stream(1.0, cameras=(BASE, "wrist")), cameras=cameras)
    episode, _ = made(take)
    wrist = numbers(episode.seen_by("wrist"))
    assert wrist == numbers(episode)
    assert len(wrist) >= 9


def test_frames_begin_when_the_second_camera_has_sent_an_image(spool: Spool) -> None:
    late = [event for event in stream(1.5, cameras=(BASE, "wrist"))
            if not (isinstance(event, Picture) and event.camera == "wrist"
                    and event.frame.stamp_s < START_S + 0.5)]  # fmt: skip
    episode, _ = made(taken(spool, late, cameras={BASE: CAMERA, "wrist": "/wrist"}))
    first = numbers(episode)[0], numbers(episode.seen_by("wrist"))[0]
    assert first[0] >= 15
    assert abs(first[0] - first[1]) <= 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (picture(START_S + 2, 1), r"camera base \(/camera/compressed\): nothing for 1.03 s"),
        (picture(START_S + 2, 1, arrival_s=START_S - 898.99), "its stamps jumped ahead by 1"),
        (picture(START_S - 3, 1, arrival_s=START_S - 899), "its stamps went back by 3.97 s"),
        (measured(START_S + 5, arrival_s=START_S - 898.7), "/joint_states: its stamps jumped"),
        (measured(START_S + 0.5, arrival_s=START_S - 898.7), "/joint_states: its stamps went"),
        (picture(START_S + 1, 1, size=(64, 48)), "its images are now 64×48 pixels"),
    ],
)
def test_a_stream_that_stops_or_steps_ends_the_episode_which_stays_whole(
    spool: Spool, event: Picture | Measured, message: str
) -> None:
    take = taken(spool, stream(1.0))
    before = take.frames
    with pytest.raises(Lost, match=message):
        (take.picture if isinstance(event, Picture) else take.measured)(event)  # type: ignore[operator]
    episode, _ = made(take)
    assert len(episode) >= before - 1 >= 8


def test_silence_ends_the_episode_after_a_while(spool: Spool) -> None:
    take = taken(spool, stream(1.0))
    last_s = START_S - 900 + 1.0
    take.check(last_s + 1.0)
    with pytest.raises(Lost, match=r"camera base \(/camera/compressed\): nothing since 1.6"):
        take.check(last_s + 1.6)


def test_unreadable_images_are_skipped(spool: Spool) -> None:
    events = list(stream(1.0))
    for at, event in enumerate(events):
        if isinstance(event, Picture) and at % 3 == 0:
            broken = event.frame.image_bytes[:200]
            frame = type(event.frame)(broken, "jpeg", event.frame.stamp_s, event.frame.arrival_s)
            events[at] = Picture(BASE, frame)
    episode, _ = made(taken(spool, events))
    assert len(episode) >= 8
    assert episode.image(4).shape == (24, 32, 3)


def test_without_stamps_arrivals_order_the_frames(spool: Spool) -> None:
    events = [
        picture(event.frame.stamp_s, at, stamp_s=0.0) if isinstance(event, Picture)
        else measured(event.joints.stamp_s, stamp_s=0.0)
        for at, event in enumerate(stream(1.0))
        if isinstance(event, Picture | Measured)
    ]  # fmt: skip
    episode, _ = made(taken(spool, events, is_stamped=False))
    assert len(episode) >= 8
    np.testing.assert_allclose(episode.state[0], position(START_S), atol=1e-3)


def test_nothing_and_one_frame_are_too_short_and_say_what_came(spool: Spool) -> None:
    with pytest.raises(TooShort, match="0 images on /camera/compressed"):
        made(taken(spool, []))
    with pytest.raises(TooShort, match=r"^0 images on|^30 images on"):
        made(taken(spool, (e for e in stream(1.0) if isinstance(e, Picture))))


def test_a_joint_that_is_not_finite_is_left_out(spool: Spool) -> None:
    take = taken(spool, stream(1.0))
    event = measured(START_S + 2)
    values = event.joints.state.position_rad.copy()
    values[3] = np.nan
    state = type(event.joints.state)(values, np.zeros(8))
    take.measured(Measured("robot", type(event.joints)(state, START_S + 1.1, START_S - 898.9)))
    episode, _ = made(take)
    assert np.isfinite(episode.state).all()


def with_hold(
    spool: Spool, reason: str, intervention: bool, still: bool
) -> tuple[Episode, TakeReport]:
    """A second of driving, two of a hold, and a second of driving."""
    events: list[Event] = []
    for k in range(400):
        at_s = START_S + k / 100
        clocked_s = START_S + 1.0 if still and 1.0 <= k / 100 < 3.0 else at_s
        events.append(replace_joints(measured(at_s), position(clocked_s)))
        if k % 10 == 0:
            held = 1.0 <= k / 100 < 3.0
            target = None if held else np.full(8, 0.1)
            is_pause = held and reason == "paused"
            marked = held and intervention
            events.append(Decided(at_s, at_s - 900, target, marked, is_pause))
            events.append(picture(at_s, k // 10))
    return made(taken(spool, events, "policy"))


def replace_joints(event: Measured, position_rad: Array) -> Measured:
    joints = event.joints
    return replace(event, joints=replace(joints, state=JointState(position_rad, np.zeros(8))))


def test_a_pause_is_left_out_so_that_nothing_learns_to_stand_still(spool: Spool) -> None:
    episode, report = with_hold(spool, "paused", intervention=False, still=True)
    assert numbers(episode) == [*range(10), *range(30, len(episode) + 20)]
    assert report.left_out == 20
    assert report.frames == len(episode) == len(episode.state)
    assert (episode.action == np.float32(0.1)).all()
    moving, _ = with_hold(spool, "paused", intervention=False, still=False)
    assert numbers(moving) == numbers(episode), "the braking belongs to the pause"


def test_a_hold_is_left_out_only_where_the_arm_stands(spool: Spool) -> None:
    standing, report = with_hold(spool, "frame_stale", intervention=False, still=True)
    assert 8 <= report.left_out <= 12, "not within STILL_S of a motion"
    _, moving = with_hold(spool, "frame_stale", intervention=False, still=False)
    assert moving.left_out == 0
    assert standing.intervention is not None
    assert not standing.intervention.any()


def test_what_a_person_shows_is_kept_and_waiting_for_one_is_not(spool: Spool) -> None:
    shown, report = with_hold(spool, "paused", intervention=True, still=False)
    assert report.left_out == 0
    assert shown.intervention is not None
    assert shown.intervention.tolist() == [10 <= number < 30 for number in numbers(shown)]
    _, waited = with_hold(spool, "stopped", intervention=True, still=True)
    assert 8 <= waited.left_out <= 12


def test_an_episode_in_which_nobody_moves_the_arm_is_too_short(spool: Spool) -> None:
    events: list[Event] = []
    for k in range(200):
        at_s = START_S + k / 100
        events.append(replace_joints(measured(at_s), position(START_S)))
        if k % 10 == 0:
            events += [decided(at_s, None), picture(at_s, k // 10)]
    take = taken(spool, events, "policy")
    with pytest.raises(TooShort, match=r"nobody moved the arm in 1\d frames"):
        made(take)


def test_the_judgement_is_part_of_the_episode(spool: Spool) -> None:
    take = taken(spool, stream(1.0))
    assert [take.episode("a", "b", success)[0].success for success in (True, False, None)] == [
        True, False, None,
    ]  # fmt: skip
