"""`infer --record` keeps what a policy saw and did; `record`, `sft` and `demo` are one circle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import training_rig
from guard_rig import Caller, move_arm
from record_rig import START_S, TASK, decided, drain, options, position, stream
from sim_robot_rig import started

from crane_x7_remote.errors import ExitCode, RecordError
from crane_x7_remote.inference import feed
from crane_x7_remote.record import feed_input
from crane_x7_remote.record.events import (
    Decided,
    Ended,
    Event,
    Measured,
    Ordered,
    Picture,
    Told,
)
from crane_x7_remote.record.recorder import Recorder
from crane_x7_remote.record.writing import EpisodeWriter
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.data.loader.batches import Batch, Batches
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import TINY, load_policy
from crane_x7_vla_rl.robot import HOME_RAD

pytestmark = pytest.mark.timeout(900)

PORTS = re.compile(r"port (\d+), guard on port (\d+)")
WRIST_TOPIC = "/wrist/image_raw/compressed"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "crane_x7_remote", *words]


def at(port: int) -> tuple[str, ...]:
    return "--rosbridge-host=127.0.0.1", f"--rosbridge-port={port}"


def test_a_loop_of_two_cameras_is_recorded_with_interventions_and_trains_a_model(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    wrist = f"--wrist-camera-topic={WRIST_TOPIC}"
    flags = ("--arm", "kinematic", "--port", "0", "--guard", "0", wrist)
    with started(*flags, stderr=subprocess.DEVNULL) as robot:
        assert robot.stdout is not None
        found = PORTS.search(robot.stdout.readline())
        assert found is not None
        loop = subprocess.Popen(
            command("infer", *at(int(found[2])), "--policy", "color-servo", "--camera-pose", "sim",
                    "--vla-task-instruction", TASK, "--record", str(folder), wrist),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert loop.stderr is not None
            lines = []
            for line in loop.stderr:
                lines.append(line)
                if "recording episode 0" in line:
                    break
            else:
                raise AssertionError("".join(lines))
            time.sleep(4)
            with Caller(int(found[2]), "/stop") as caller:
                caller.publish("/vla/stop", {"data": True})
                time.sleep(1.5)
                move_arm(int(found[1]), 2.0)
            loop.send_signal(signal.SIGINT)
            _, errors = loop.communicate(timeout=120)
        finally:
            loop.kill()
            loop.communicate()
    assert loop.returncode == ExitCode.OK, errors
    source = open_lerobot(folder, all_cameras=True)
    assert int(source.lengths.sum()) >= 20
    episode = source[0]
    assert episode.instruction == TASK
    assert episode.success is None, "nobody has judged it"
    assert episode.seen_by("wrist").image(0).shape == (480, 640, 3)
    marks = source.interventions()
    assert marks is not None
    assert 10 <= marks.sum() < len(marks)
    assert not marks[5:10].any()
    moved = np.concatenate([source[number].state[:, 0] for number in range(len(source))])[marks]
    assert np.ptp(moved) > 0.2, "the person's motion is in the marked frames"
    assert "more left out: the loop held and nobody moved the arm" in "".join(lines) + errors
    training_rig.again(
        *training_rig.flags(tmp_path / "run", "--data-root", str(folder), "--max-steps", "1")
    )
    load_policy("openvla", ModelOptions(path=str(tmp_path / "run" / "last")))


def tick(**more: object) -> dict[str, object]:
    values: dict[str, object] = {
        "kind": "tick", "number": 1, "at_s": 5.0, "wall_s": 0.0, "robot_s": 100.0,
        "instruction": TASK, "jpeg": b"\xff\xd8", "frame_stamp_s": 99.9, "frame_used": True,
        "position_rad": HOME_RAD.tolist(), "velocity_rad_s": [0.0] * 8, "joints_stamp_s": 99.95,
        "target_rad": (HOME_RAD + 0.1).tolist(), "path": None, "hold": None, "intervention": False,
        "frame_arrival_s": 4.98, "joints_arrival_s": 4.99, "joints_between": [],
    }  # fmt: skip
    return values | more


def read(message: dict[str, object]) -> Iterator[Event]:
    return feed_input.TickReader().read(message)


def test_a_tick_becomes_events_in_the_order_that_an_episode_needs() -> None:
    events = list(read(tick()))
    assert [type(event) for event in events] == [Told, Measured, Decided, Picture]
    decided = events[2]
    assert isinstance(decided, Decided)
    assert decided.stamp_s == 99.9
    np.testing.assert_allclose(decided.target_rad, HOME_RAD + 0.1)
    assert not decided.intervention
    assert not decided.is_pause
    assert list(read({"kind": "second"})) == []


def test_both_images_of_a_tick_become_one_pair_whatever_the_wrist_cameras_stamp() -> None:
    """The pair that the policy saw stays one frame; an image that is not new comes once."""
    events = list(read(tick(wrist_jpeg=b"\xff\xd8w", wrist_stamp_s=99.6)))
    pictures = [event for event in events if isinstance(event, Picture)]
    assert [picture.camera for picture in pictures] == ["wrist", "base"]
    assert {picture.frame.stamp_s for picture in pictures} == {99.9}
    assert {picture.frame.arrival_s for picture in pictures} == {4.98}
    again = list(read(tick(wrist_jpeg=None, wrist_stamp_s=99.6)))
    assert [event.camera for event in again if isinstance(event, Picture)] == ["base"]


def test_a_wrist_image_of_another_moment_is_left_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = feed_input.TickReader()
    for wrist_s in (98.0, 98.0, float("nan"), 99.9, 102.0):
        events = list(reader.read(tick(wrist_jpeg=b"w", wrist_stamp_s=wrist_s)))
        seen = [event.camera for event in events if isinstance(event, Picture)]
        assert seen == (["wrist", "base"] if wrist_s == 99.9 else ["base"])
    assert caplog.text.count("both cameras must be stamped by one clock") == 2
    assert "stamped -1.90 s from the base camera's, expected within 0.5 s" in caplog.text


def test_every_joint_state_between_two_ticks_is_recorded() -> None:
    between = [[99.93 + k / 100, 4.97 + k / 100, *(HOME_RAD + k).tolist()] for k in range(2)]
    events = list(read(tick(joints_between=between)))
    joints = [event.joints for event in events if isinstance(event, Measured)]
    assert [each.stamp_s for each in joints] == pytest.approx([99.93, 99.94, 99.95])
    assert [each.arrival_s for each in joints] == pytest.approx([4.97, 4.98, 4.99])
    np.testing.assert_allclose(joints[1].state.position_rad, HOME_RAD + 1)


def test_a_stop_carries_the_judgement() -> None:
    for success in (True, False, None):
        (ordered,) = read({"kind": "record", "word": "stop", "success": success})
        assert isinstance(ordered, Ordered)
        assert (ordered.word, ordered.success) == ("stop", success)


def test_a_pause_is_one_and_a_takeover_by_hand_is_an_intervention() -> None:
    for by_hand in (False, True):
        hold = {"reason": "paused", "detail": ""}
        *_, decided = read(tick(target_rad=None, hold=hold, jpeg=None, intervention=by_hand))
        assert isinstance(decided, Decided)
        assert (decided.is_pause, decided.intervention) == (True, by_hand)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stopped", True), ("other_loop", True), ("listening", True), ("frame_stale", False)],
)
def test_holds_in_which_others_may_move_the_arm_are_interventions(
    reason: str, expected: bool
) -> None:
    held = tick(target_rad=None, hold={"reason": reason, "detail": ""}, jpeg=None)
    *_, decided = read(held)
    assert isinstance(decided, Decided)
    assert decided.target_rad is None
    assert decided.intervention is expected


def test_a_feed_that_ends_in_any_way_ends_the_recorder(tmp_path: Path) -> None:
    import queue

    for name, content, failed in (
        ("bye", feed.pack({"kind": "bye"}), False),
        ("nothing", b"", True),
        ("half", feed.pack(tick())[:40], True),
        ("odd", feed.pack(tick(position_rad=["x"] * 8)), True),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with path.open("rb") as stream:
            feed_input.follow(feed.read_messages(stream), events).join(10)
        last = drain(events)[-1]
        assert isinstance(last, Ended)
        assert (last.failure is not None) is failed, name


def test_an_input_that_is_no_feed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    for content in (b"", b"hello, world", feed.pack({"kind": "bye"})):
        path.write_bytes(content)
        with path.open("rb") as stream, pytest.raises(RecordError, match="--from-feed: "):
            feed_input.open_feed(stream)


def recorded_run(folder: Path) -> Path:
    """Record two tasks of a loop; a person shows the middle of each."""
    writer = EpisodeWriter(folder, resume=False, kept=0, observe=None)
    chosen = options(folder, "policy", follows_policy=True)
    recorder = Recorder(chosen, writer, lambda _: None)
    for number in range(2):
        begin_s = START_S + 10 * number
        recorder.handle(Told(f"task {number}"))
        for event in stream(3.0, begin_s, camera_hz=10):
            if isinstance(event, Picture):
                at_s = event.frame.stamp_s
                shows = 1.0 <= at_s - begin_s < 2.0
                recorder.handle(decided(at_s, None if shows else position(at_s), shows))
            recorder.handle(event)
    recorder.end()
    writer.close()
    return folder


@pytest.mark.parametrize("choice", ["only", pytest.param("without", marks=pytest.mark.slow)])
def test_fine_tuning_uses_exactly_the_recorded_interventions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, choice: str
) -> None:
    folder = recorded_run(tmp_path / "data")
    source = open_lerobot(folder)
    marks = [source[number].intervention for number in range(2)]
    assert all(each is not None and each.sum() == 10 for each in marks)
    used: set[tuple[int, int]] = set()
    following = Batches.__next__

    def noted(batches: Batches) -> Batch:
        batch = following(batches)
        used.update(zip(batch.episodes.tolist(), batch.frames.tolist(), strict=True))
        return batch

    monkeypatch.setattr(Batches, "__next__", noted)
    caplog.set_level("INFO")
    training_rig.train(
        tmp_path / "run", "--data-root", str(folder), "--interventions", choice,
        "--max-steps", "8", "--batch-size", "10", "--save-steps", "100",
    )  # fmt: skip
    wanted = choice == "only"
    expected = {
        (number, t) for number in range(2) for t in range(len(source[number]))
        if bool(marks[number][t]) is wanted  # type: ignore[index]
    }  # fmt: skip
    assert used == expected
    said = f"an epoch has {len(expected)} samples of {source.lengths.sum()} recorded frames"
    assert said in caplog.text


@pytest.mark.slow  # by default, what a loop recorded trains a model, above
def test_what_is_recorded_trains_a_model_that_drives_in_the_demo(tmp_path: Path) -> None:
    """record → sft → demo, every file real; one episode teaches nothing, the demo may fail."""
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "demo"
    robot_flags = ("--task", "Lift-CRANE-X7", "--port", "0", "--guard", "0", "--seed", "1")
    with started(*robot_flags, stderr=subprocess.DEVNULL) as robot:
        assert robot.stdout is not None
        found = PORTS.search(robot.stdout.readline())
        assert found is not None
        driver = subprocess.Popen(
            command("infer", *at(int(found[2])), "--policy", "color-servo",
                    "--vla-task-instruction", TASK),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            recorded = subprocess.run(
                command("record", str(data), *at(int(found[2])), "--instruction", TASK,
                        "--fps", "5", "--start", "--longest", "8", "--episodes", "1"),
                capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
        robot.send_signal(signal.SIGTERM)
        robot.wait(60)
    assert recorded.returncode == ExitCode.OK, recorded.stdout + recorded.stderr
    assert np.ptp(open_lerobot(data)[0].action, axis=0).max() > 0.2
    trained = subprocess.run(
        [sys.executable, "-m", "crane_x7_vla_rl.training.cli", "sft", "--backend", "openvla",
         "--model", str(TINY), "--data-root", str(data), "--output-dir", str(run),
         "--max-steps", "2", "--image-size", "96x96", "--batch-size", "2", "--device", "cpu"],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    shown = subprocess.run(
        command("demo", "--policy", str(run / "last"),
                "--no-record", "--output-dir", str(out), "--timeout", "8", "8"),
        capture_output=True, text=True, timeout=400, env=os.environ | {"PEER_WAIT_TIMEOUT": "120"},
    )  # fmt: skip
    assert shown.returncode in (ExitCode.OK, ExitCode.DEMO_TASK), shown.stderr[-3000:]
    (report,) = out.glob("*/report.json")
    assert json.loads(report.read_text())
