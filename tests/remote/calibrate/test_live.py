"""`calibrate run` with the camera of a robot behind rosbridge, and a person who moves the board."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from board_rig import Scene, camera_at, placed, views_around
from loop_rig import FaultyRobot

from crane_x7_remote import cli
from crane_x7_remote.calibrate import command, images
from crane_x7_remote.calibrate.board import Placement
from crane_x7_remote.errors import ExitCode
from crane_x7_vla_rl import camera_pose

SCENE = Scene()
CAMERA = camera_at(np.array([0.6, 0.2, 0.45]), np.array([0.25, 0.0, 0.0]))
PLACEMENT = Placement((0.15, 0.09, 0.0))
WANTED = 12
"""Fewer than a person is shown, for a test that need not be that exact."""
WORDS = ["calibrate", "run", "--origin-m", "0.15", "0.09", "0", "--rosbridge-host", "127.0.0.1"]


def _jpeg(image: np.ndarray) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95)
    return encoded


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyRobot]:
    """A robot whose camera sees the board held in one place after another: the person moves on when
    told so, or after a while."""
    places = views_around(SCENE.board, WANTED + 4)
    views = [_jpeg(SCENE.picture(frame, seed)) for seed, frame in enumerate(places)]
    lying = _jpeg(SCENE.picture(placed(PLACEMENT, CAMERA), 99))
    shown = itertools.cycle(views)

    class Watched(FaultyRobot):
        lies = False
        held, frames = next(shown), 0

        def move_on(self) -> None:
            self.held, self.frames = next(shown), 0

        @property
        def picture(self) -> bytes:
            self.frames += 1
            if self.frames > 300:
                self.move_on()
            return lying if self.lies else self.held

        @picture.setter
        def picture(self, value: bytes) -> None:
            del value

    def lay_down(prompt: str) -> str:
        assert "press Enter" in prompt
        robot.lies = True
        return ""

    def hear(text: str) -> None:
        print(text)
        robot.move_on()

    monkeypatch.setattr(command, "_say", hear)
    monkeypatch.setattr(images, "WANTED_VIEWS", WANTED)
    with Watched() as robot:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lay_down)
        yield robot


@pytest.mark.timeout(300)
def test_a_person_with_a_board_gets_a_file_and_pictures_to_solve_again(
    robot: FaultyRobot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, kept = tmp_path / "camera.yaml", tmp_path / "again.yaml", tmp_path / "kept"
    link = ["--rosbridge-port", str(robot.port), "--peer-wait-timeout", "20"]
    words = [*WORDS, *link, "--save", str(kept), "--timeout", "200", "-o", str(first)]
    assert cli.main(words) == ExitCode.OK, capsys.readouterr().err
    told = capsys.readouterr().out
    assert f"view {WANTED} of {WANTED}: move and tilt the board" in told
    pose = camera_pose.read(str(first))
    assert np.linalg.norm(np.subtract(pose.position_m, CAMERA[:3, 3])) < 0.005
    assert pose.lens is not None
    assert pose.lens.focal_px == pytest.approx(SCENE.lens.focal_px, rel=0.01)
    assert len(list(kept.glob("placed-*.jpg"))) == 10
    solved = [*WORDS, "--images", str(kept), "-o", str(again)]
    assert cli.main(solved) == ExitCode.OK
    second = camera_pose.read(str(again))
    np.testing.assert_allclose(second.position_m, pose.position_m, atol=1e-6)


def test_a_camera_that_sends_nothing_is_named(
    robot: FaultyRobot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot.camera_runs = False
    link = ["--rosbridge-port", str(robot.port), "--peer-wait-timeout", "20"]
    words = [*WORDS, *link, "-o", str(tmp_path / "camera.yaml")]
    assert cli.main(words) == ExitCode.CALIBRATION
    assert "no camera frame within 5 s" in capsys.readouterr().err
    assert not list(tmp_path.glob("camera*"))


def test_no_robot_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    words = [*WORDS, "--rosbridge-port", "9", "--peer-wait-timeout", "1"]
    assert cli.main([*words, "-o", str(tmp_path / "a.yaml")]) == ExitCode.PEER_UNREACHABLE
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_folder_with_files_is_not_mixed_with_new_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    (tmp_path / "view-00.jpg").write_bytes(b"")
    words = [*WORDS, "--save", str(tmp_path), "-o", str(tmp_path / "a.yaml")]
    assert cli.main(words) == ExitCode.OUTPUT
    assert "holds files already; name another folder" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_too_few_views_are_named_before_the_board_is_laid_down(
    robot: FaultyRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(images, "WANTED_VIEWS", 3)
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail(prompt))
    link = ["--rosbridge-port", str(robot.port), "--peer-wait-timeout", "20"]
    code = cli.main([*WORDS, *link, "-o", str(tmp_path / "camera.yaml")])
    assert code == ExitCode.CALIBRATION
    assert "3 usable views of the board, expected 10 or more" in capsys.readouterr().err
