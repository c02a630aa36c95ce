"""When an episode begins and ends, what is kept of it, and what the operator is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from record_rig import (
    CAMERA,
    JOINTS,
    LEADER,
    SIZE,
    START_S,
    TASK,
    decided,
    measured,
    options,
    picture,
    stream,
)

from crane_x7_remote.record import recorder as recorder_module
from crane_x7_remote.record.events import Event, Measured, Ordered, Picture, Told
from crane_x7_remote.record.recorder import Recorder
from crane_x7_remote.record.writing import EpisodeWriter
from crane_x7_vla_rl.data.lerobot import open_lerobot


@dataclass
class Rig:
    """A recorder into a folder, and what it says."""

    folder: Path
    more: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = EpisodeWriter(self.folder, resume=False, kept=0, observe=None)
        self.recorder = Recorder(options(self.folder, **self.more), self.writer, self.said.append)

    def feed(self, events: Iterable[Event]) -> None:
        for event in events:
            self.recorder.handle(event)

    def order(self, word: Any) -> None:
        self.recorder.handle(Ordered(word, "a test"))

    def episodes(self) -> list[int]:
        """The lengths of what was kept, after the end."""
        self.recorder.end()
        self.writer.close()
        if not (self.folder / "meta/info.json").exists():
            return []
        return open_lerobot(self.folder).lengths.tolist()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    rigs: list[Rig] = []

    def make(**more: Any) -> Rig:
        rigs.append(Rig(tmp_path / f"data{len(rigs)}", more))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.recorder.end()
        rig.writer.close_waiting()


def lived(rig: Rig) -> Rig:
    """The rig after a second in which every stream has sent."""
    rig.feed(stream(1.0, START_S - 2))
    return rig


def test_start_and_stop_keep_what_is_between(made: Any) -> None:
    rig = lived(made())
    rig.order("start")
    assert rig.recorder.status().recording
    rig.feed(stream(1.0))
    status = rig.recorder.status()
    assert status.frames in (9, 10)
    assert status.seconds == pytest.approx(status.frames / 10)
    rig.order("stop")
    rig.feed(stream(1.0, START_S + 3))
    assert rig.episodes() == [status.frames]
    assert rig.recorder.status().kept == 1
    assert rig.said == [
        "recording episode 0, started by a test",
        f"{status.frames} frames, {status.seconds:.1f} s; stopped by a test",
    ]


def test_a_discarded_episode_leaves_nothing(made: Any) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(1.0))
    rig.order("discard")
    rig.order("stop")
    assert rig.episodes() == []
    assert rig.recorder.discarded == 1
    assert rig.said[1:] == ["discarded: by a test", "not recording"]
    assert [path.name for path in rig.folder.iterdir()] in ([], [".staging"])


def test_orders_that_do_not_fit_are_answered(made: Any) -> None:
    rig = lived(made())
    for word in ("stop", "discard", "start", "start"):
        rig.order(word)
    assert rig.said == [
        "not recording", "nothing to discard", "recording episode 0, started by a test",
        "already recording",
    ]  # fmt: skip


def test_without_instruction_or_topics_it_does_not_start_and_says_why(made: Any) -> None:
    rig = made(instruction=None)
    rig.order("start")
    rig.feed(stream(1.0, START_S - 2))
    rig.order("start")
    rig.recorder.handle(Told(TASK))
    rig.order("start")
    assert rig.said[0] == f"cannot start: nothing yet on {CAMERA}, {JOINTS}"
    assert rig.said[1].startswith("cannot start: no instruction; give --instruction, or crane-x7-")
    assert rig.said[2:] == [f"instruction: {TASK}", "recording episode 0, started by a test"]


def test_the_leader_is_waited_for_too(made: Any) -> None:
    rig = lived(made(action="leader"))
    assert rig.recorder.missing() == [LEADER]
    rig.order("start")
    assert rig.said == [f"cannot start: nothing yet on {LEADER}"]


def test_a_new_instruction_ends_the_episode_which_keeps_its_own(made: Any) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(1.0))
    rig.recorder.handle(Told(TASK))
    assert rig.recorder.is_recording
    rig.recorder.handle(Told("push the blue cube"))
    assert not rig.recorder.is_recording
    rig.order("start")
    rig.feed(stream(1.0, START_S + 2))
    assert len(rig.episodes()) == 2
    source = open_lerobot(rig.folder)
    assert [source[k].instruction for k in range(2)] == [TASK, "push the blue cube"]


@pytest.mark.parametrize(("keeps", "kept"), [(True, 1), (False, 0)])
def test_a_camera_that_stops_ends_the_episode_kept_up_to_there_or_not(
    made: Any, keeps: bool, kept: int
) -> None:
    rig = lived(made(keeps_cut=keeps))
    rig.order("start")
    rig.feed(stream(1.0))
    now_s = START_S - 900 + 1.2
    for _ in range(40):
        now_s += 0.05
        rig.recorder.handle(measured(now_s + 900))
        rig.recorder.tick(now_s)
    assert not rig.recorder.is_recording
    assert "camera base (/camera/compressed): nothing since 1.5" in rig.said[-1]
    lengths = rig.episodes()
    assert len(lengths) == kept
    assert lengths in ([], [9], [10])
    assert (rig.recorder.cut, rig.recorder.discarded) == (1, 1 - kept)


@pytest.mark.parametrize("step_s", [-30.0, 30.0, 3600.0])
def test_a_step_of_the_clock_ends_the_episode_and_the_next_is_whole(
    made: Any, step_s: float
) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(1.0))
    later = []
    for event in stream(1.0, START_S + 1.0):
        if isinstance(event, Picture):
            at_s = event.frame.stamp_s
            later.append(picture(at_s, 1, stamp_s=at_s + step_s))
        elif isinstance(event, Measured):
            at_s = event.joints.stamp_s
            later.append(measured(at_s, stamp_s=at_s + step_s))
    rig.feed([event for event in later if isinstance(event, Picture | Measured)])
    assert not rig.recorder.is_recording
    assert "the clock was stepped" in rig.said[-1]
    rig.order("start")
    rig.feed(stream(1.0, START_S + step_s + 10))
    lengths = rig.episodes()
    assert len(lengths) == 2
    assert all(length >= 8 for length in lengths)


def test_an_episode_ends_at_its_longest_length(made: Any) -> None:
    rig = lived(made(longest_s=0.5))
    rig.order("start")
    for event in stream(1.0):
        rig.recorder.handle(event)
        rig.recorder.tick(START_S - 900)
    assert rig.episodes() == [5]
    assert rig.said[-1].endswith("0.5 s are over (--longest)")


def test_a_low_rate_is_said_at_the_end_of_the_episode(made: Any) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(2.0, camera_hz=4))
    rig.order("stop")
    assert rig.said[-2].startswith("rate not kept: camera base gave 3.9 images/s")
    assert rig.recorder.low == 1
    assert len(rig.episodes()) == 1


def test_clocks_that_differ_and_missing_stamps_are_said_and_arrivals_used(made: Any) -> None:
    rig = made()
    for begin_s in (START_S - 2, START_S):
        if begin_s == START_S:
            rig.order("start")
        for event in stream(1.0, begin_s):
            is_picture = isinstance(event, Picture)
            rig.recorder.handle(
                picture(event.frame.stamp_s, 3, stamp_s=event.frame.stamp_s + 40)
                if is_picture else event
            )  # fmt: skip
    assert rig.said[0] == (
        "the streams' clocks differ by 40.0 s: frames are ordered by their arrival here"
    )
    assert len(rig.episodes()) == 1


def test_following_a_policy_each_task_is_an_episode_without_an_order(made: Any) -> None:
    rig = made(action="policy", follows_policy=True)
    for begin_s, task in ((START_S, TASK), (START_S + 5, "push the blue cube")):
        rig.recorder.handle(Told(task))
        for event in stream(1.0, begin_s):
            if isinstance(event, Picture):
                rig.recorder.handle(decided(event.frame.stamp_s, None, intervention=True))
            rig.recorder.handle(event)
    assert len(rig.episodes()) == 2
    table = open_lerobot(rig.folder)
    assert [table[k].instruction for k in range(2)] == [TASK, "push the blue cube"]


def test_following_a_policy_stop_waits_for_start(made: Any) -> None:
    rig = made(action="policy", follows_policy=True)
    rig.feed(stream(1.0))
    rig.order("stop")
    rig.feed(stream(1.0, START_S + 2))
    assert not rig.recorder.is_recording
    rig.order("start")
    rig.feed(stream(1.0, START_S + 4))
    assert rig.recorder.is_recording
    assert len(rig.episodes()) == 2


def test_images_of_another_size_than_the_data_set_are_refused_and_said(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(1.0))
    rig.order("stop")
    larger = [
        picture(event.frame.stamp_s, 1, size=(2 * SIZE[0], 2 * SIZE[1]))
        if isinstance(event, Picture) else event
        for event in stream(1.0, START_S + 3)
    ]  # fmt: skip
    rig.order("start")
    rig.feed(larger)
    assert len(rig.episodes()) == 1
    assert rig.writer.refused == 1
    assert "episode discarded: recording" in caplog.text


def test_a_disk_that_is_full_while_images_come_ends_the_episode(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = lived(made())
    rig.order("start")
    rig.feed(stream(1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder_module.Spool, "put", full)
    rig.feed(stream(1.0, START_S + 1.3))
    assert not rig.recorder.is_recording
    assert "an episode cannot be written (No space left on device)" in (rig.recorder.failure or "")
    assert len(rig.episodes()) == 1


def test_the_state_is_what_the_guard_lets_pass(made: Any) -> None:
    from crane_x7_remote.rosbridge import record_status

    status = lived(made()).recorder.status()
    assert record_status.read(status.message()) == status
    assert json.loads(status.message()["data"])["recording"] is False
