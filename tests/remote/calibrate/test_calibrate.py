"""`calibrate`: pictures of the board through a known lens give back that lens and pose; pictures
that cannot are refused with what to do."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from board_rig import LENS, Scene, camera_at, facing, placed, views_around

from crane_x7_remote import cli
from crane_x7_remote.calibrate import lens_fit, pose_fit, sheet
from crane_x7_remote.calibrate.board import COLUMNS, ROWS, Board, Placement
from crane_x7_remote.calibrate.images import read_folder, save_picture
from crane_x7_remote.calibrate.views import UnusableError, View, look
from crane_x7_remote.errors import CalibrationError, ExitCode
from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.types import Image

SCENE = Scene()
BOARD = SCENE.board
PLACEMENT = Placement((0.15, 0.09, 0.004), np.radians(10.0))
CAMERA = camera_at(np.array([0.75, 0.2, 0.55]), np.array([0.25, 0.0, 0.0]))
PLACE_FLAGS = ["--origin-m", "0.15", "0.09", "0.004", "--yaw-deg", "10"]


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    return [SCENE.picture(frame, seed) for seed, frame in enumerate(views_around(BOARD))]


@pytest.fixture(scope="module")
def views(pictures: list[Image]) -> list[View]:
    return [look(BOARD, image, f"view-{index:02d}") for index, image in enumerate(pictures)]


@pytest.fixture(scope="module")
def placed_picture() -> Image:
    return SCENE.picture(placed(PLACEMENT, CAMERA), 99)


@pytest.fixture
def folder(tmp_path: Path, pictures: list[Image], placed_picture: Image) -> Path:
    for index, image in enumerate(pictures):
        save_picture(tmp_path / f"view-{index:02d}.png", image)
    save_picture(tmp_path / "placed-00.png", placed_picture)
    return tmp_path


def _exact(frame: np.ndarray, seed: int = 0, noise_px: float = 0.05) -> View:
    """Return the whole board as seen through the lens, without a picture."""
    corners = np.asarray(BOARD.charuco.getChessboardCorners(), dtype=np.float64)
    pixels, _ = cv2.projectPoints(
        corners, cv2.Rodrigues(frame[:3, :3])[0], frame[:3, 3],
        LENS.matrix(640, 480), np.array(LENS.distortion),
    )  # fmt: skip
    shaken = pixels[:, 0] + np.random.default_rng(seed).normal(0, noise_px, (35, 2))
    return View(f"exact-{seed}", (640, 480), np.arange(35, dtype=np.int32), corners, shaken, 2.0)


PLACES = [(x, y, 0.4) for x in (-0.14, 0.0, 0.14) for y in (-0.1, 0.0, 0.1)] + [(0.05, 0.05, 0.4)]


def _angle_deg(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(one.T @ other) - 1) / 2, -1, 1))))


# --- what it finds -------------------------------------------------------------------------------


def test_the_lens_is_found_within_a_percent(views: list[View]) -> None:
    fit = lens_fit.fit(views)
    assert fit.lens.focal_px == pytest.approx(LENS.focal_px, rel=0.01)
    assert fit.lens.centre_px == pytest.approx(LENS.centre_px, abs=3)
    assert fit.lens.distortion[:2] == pytest.approx(LENS.distortion[:2], abs=0.03)
    assert fit.error_px < 0.3
    assert fit.views == len(views) >= 15
    assert abs(fit.lens.focal_px[0] - LENS.focal_px[0]) < 4 * fit.focal_error_px


def test_the_pose_is_found_within_5_mm_and_half_a_degree(
    views: list[View], placed_picture: Image
) -> None:
    lens = lens_fit.fit(views).lens
    fit = pose_fit.fit([look(BOARD, placed_picture, "placed")], lens, PLACEMENT)
    apart_m = np.linalg.norm(np.subtract(fit.pose.position_m, CAMERA[:3, 3]))
    assert apart_m < 0.005
    assert apart_m < 4 * fit.position_error_m
    assert _angle_deg(fit.pose.camera(640, 480).rotation, CAMERA[:3, :3]) < 0.5


@pytest.mark.parametrize("yaw_deg", [0.0, 90.0, -135.0])
@pytest.mark.parametrize("target_m", [(0.25, 0.0, 0.0), (0.3, 0.3, 0.1)])
def test_the_board_may_lie_in_any_direction(
    yaw_deg: float, target_m: tuple[float, float, float]
) -> None:
    """Exact corners: no picture, so that only the geometry counts."""
    placement = Placement((0.1, -0.05, 0.01), float(np.radians(yaw_deg)))
    camera = camera_at(np.array([0.6, -0.4, 0.7]), np.array(target_m))
    frame = placed(placement, camera)
    view = _exact(frame, noise_px=0.0)
    fit = pose_fit.fit([view], LENS, placement)
    np.testing.assert_allclose(fit.pose.position_m, camera[:3, 3], atol=1e-5)
    assert _angle_deg(fit.pose.camera(640, 480).rotation, camera[:3, :3]) < 0.01


def test_a_folder_becomes_a_file_that_color_servo_uses(
    folder: Path, placed_picture: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "camera.yaml"
    words = ["calibrate", "run", "--images", str(folder), *PLACE_FLAGS, "-o", str(output)]
    assert cli.main(words) == ExitCode.OK
    told = capsys.readouterr().out
    assert f"--camera-pose {output}" in told
    pose = camera_pose.read(str(output))
    assert pose.lens is not None
    assert pose.size_px == (640, 480)
    np.testing.assert_allclose(pose.position_m, CAMERA[:3, 3], atol=0.005)
    # Rectified, the board's ORIGIN is where the pinhole camera projects its place.
    straight = pose.rectified(placed_picture)
    corners = look(BOARD, straight, "straight")
    base_from_board = PLACEMENT.base_from_charuco()
    places = corners.board_m @ base_from_board[:3, :3].T + base_from_board[:3, 3]
    drawn = pose.camera(640, 480).project(places, 640, 480)
    assert np.linalg.norm(drawn - (corners.pixels + 0.5), axis=1).max() < 1.0
    crooked = look(BOARD, placed_picture, "crooked").pixels
    assert np.linalg.norm(crooked[0] - corners.pixels[0]) > 3.0
    assert (folder / "camera.check.png").stat().st_size > 1000

    assert cli.main(words) == ExitCode.OUTPUT  # never replaced unasked
    assert "add --force" in capsys.readouterr().err
    moved = [*words[:-1], str(folder / "moved.yaml"), "--lens-from", str(output)]
    assert cli.main(moved) == ExitCode.OK
    assert camera_pose.read(str(folder / "moved.yaml")).lens == pose.lens


# --- what it refuses -----------------------------------------------------------------------------


def test_too_few_views_are_refused(views: list[View]) -> None:
    with pytest.raises(CalibrationError, match="6 usable views of the board, expected 10 or more"):
        lens_fit.fit(views[:6])
    with pytest.raises(CalibrationError, match="0 usable views"):
        lens_fit.fit([])


def test_views_from_one_angle_are_refused() -> None:
    straight = [_exact(facing(BOARD, at_m, (0.0, 0.0)), seed) for seed, at_m in enumerate(PLACES)]
    with pytest.raises(CalibrationError, match=r"(?s)0 views are tilted.*tilt the board about"):
        lens_fit.fit(straight)


def test_tilts_about_one_axis_are_refused() -> None:
    leaning = [
        _exact(facing(BOARD, at_m, (0.5 - 0.1 * seed, 0.0)), seed)
        for seed, at_m in enumerate(PLACES)
    ]
    with pytest.raises(CalibrationError, match=r"in directions up to .* expected 4 views and 60"):
        lens_fit.fit(leaning)


def test_an_image_seen_in_its_middle_only_is_refused(views: list[View]) -> None:
    middle = [replace(view, pixels=(view.pixels - (320, 240)) / 3 + (320, 240)) for view in views]
    with pytest.raises(CalibrationError, match="far left"):
        lens_fit.fit(middle)


def test_images_of_several_sizes_are_refused(views: list[View]) -> None:
    with pytest.raises(CalibrationError, match="640x480, 1280x720; expected one size"):
        lens_fit.fit([*views[1:], replace(views[0], size_px=(1280, 720))])
    other = replace(views[0], name="placed-00.png", size_px=(1280, 720))
    with pytest.raises(CalibrationError, match=r"placed-00\.png is 1280x720, but the lens"):
        pose_fit.fit([other], LENS, PLACEMENT)


def test_paper_that_is_not_flat_is_refused(views: list[View]) -> None:
    rng = np.random.default_rng(0)
    wavy = [
        replace(view, pixels=view.pixels + rng.normal(0, 3, view.pixels.shape)) for view in views
    ]
    with pytest.raises(CalibrationError, match="the paper is not flat"):
        lens_fit.fit(wavy)


def test_one_bad_view_is_left_out_and_named(
    views: list[View], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    bad = replace(views[3], pixels=views[3].pixels + rng.normal(0, 6, views[3].pixels.shape))
    fit = lens_fit.fit([*views[:3], bad, *views[4:]])
    assert fit.views == len(views) - 1
    assert fit.lens.focal_px == pytest.approx(LENS.focal_px, rel=0.01)
    assert "left out, as they do not agree with the others: view-03" in caplog.text


def test_a_blurred_picture_is_refused() -> None:
    blurred = cv2.GaussianBlur(SCENE.picture(facing(BOARD, (0, 0, 0.22), (0.1, 0))), (0, 0), 2.0)
    with pytest.raises(UnusableError, match="is blurred: an edge takes"):
        look(BOARD, blurred, "x")


def test_a_picture_without_the_board_is_refused(pictures: list[Image]) -> None:
    with pytest.raises(UnusableError, match="shows no marker of the board"):
        look(BOARD, np.full((480, 640, 3), 90, np.uint8), "x")
    other = cv2.aruco.CharucoBoard(
        (8, 6), 0.03, 0.02, cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    )
    drawn = np.repeat(other.generateImage((640, 480), marginSize=20)[:, :, None], 3, axis=2)
    with pytest.raises(UnusableError, match="the board that `calibrate board` prints"):
        look(BOARD, np.ascontiguousarray(drawn), "x")
    half = pictures[4].copy()
    half[:, 300:] = 120
    with pytest.raises(UnusableError, match="corners of the board are visible"):
        look(BOARD, half, "x")


def test_another_board_with_the_same_markers_is_refused() -> None:
    """Its markers are found, but its corners agree with no lens, or are not there."""
    other = cv2.aruco.CharucoBoard(
        (5, 9), 0.03, 0.0216, cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_100)
    )
    drawn = other.generateImage((400, 720), marginSize=20)
    wide = np.full((760, 1000), 255, np.uint8)
    wide[20:740, 300:700] = drawn
    image = np.ascontiguousarray(np.repeat(wide[:, :, None], 3, axis=2))

    def calibrate() -> lens_fit.LensFit:
        return lens_fit.fit([look(BOARD, image, "x")] * 12)

    with pytest.raises((UnusableError, CalibrationError)):
        calibrate()


def test_a_placed_board_that_moved_or_is_too_far_is_refused(placed_picture: Image) -> None:
    view = look(BOARD, placed_picture, "placed")
    moved = replace(view, pixels=view.pixels + np.array([12.0, 0.0]))
    with pytest.raises(CalibrationError, match="moved between the images"):
        pose_fit.fit([view, moved], LENS, PLACEMENT)
    with pytest.raises(CalibrationError, match="no usable image shows the board at its place"):
        pose_fit.fit([], LENS, PLACEMENT)
    far = camera_at(np.array([2.9, 0.2, 1.9]), np.array([0.25, 0.0, 0.0]))
    tiny = _exact(placed(PLACEMENT, far), 1, noise_px=0.4)
    with pytest.raises(CalibrationError, match=r"closer to the camera"):
        pose_fit.fit([tiny], LENS, PLACEMENT)


def test_a_sheet_that_lies_face_down_is_refused(placed_picture: Image) -> None:
    mirrored = look(BOARD, placed_picture, "placed")
    below = replace(mirrored, board_m=mirrored.board_m * (1, -1, 1))
    with pytest.raises(CalibrationError, match="below the board: the sheet lies face down"):
        pose_fit.fit([below], LENS, PLACEMENT)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0broken"])
def test_a_broken_picture_is_skipped_and_named(
    tmp_path: Path, pictures: list[Image], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    save_picture(tmp_path / "view-00.png", pictures[4])
    (tmp_path / "view-99.jpg").write_bytes(content)
    assert [view.name for view in read_folder(BOARD, tmp_path).anywhere] == ["view-00.png"]
    assert "view-99.jpg: " in caplog.text


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", *PLACE_FLAGS, "--images", "nowhere"], 15, "nowhere cannot be read"),
        (["run", *PLACE_FLAGS, "--images", "."], 15, "holds 0 pictures"),
        (["run", *PLACE_FLAGS, "-o", "no/camera.yaml"], 8, "folder no does not exist"),
        (["run", *PLACE_FLAGS], 15, "stdin is no terminal"),
        (["run", *PLACE_FLAGS, "--lens-from", "nothing.yaml"], 3, "--lens-from: nothing.yaml"),
        (["run"], 2, "--origin-m"),
        (["run", "--origin-m", "150", "90", "0"], 2, "-3 to 3 m"),
        (["run", *PLACE_FLAGS, "--square-mm", "0.03"], 2, "5 to 200 mm"),
        (["board", "board.jpeg"], 15, "ends with .pdf or .png"),
        (["board", "no/board.pdf"], 8, "cannot be written"),
        (["board", "board.pdf", "--square-mm", "40"], 15, "use --square-mm 30 or less"),
        ([], 2, "STEP"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_wrong_call_says_what_to_do(
    words: list[str], code: int, told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        ended = cli.main(["calibrate", *words])
    except SystemExit as usage:
        ended = int(usage.code or 0)
    assert ended == code
    assert told in capsys.readouterr().err


# --- the sheet -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "square_mm"), [("a4", 30.0), ("letter", 30.0), ("a3", 44.0)])
def test_the_pdf_has_the_exact_size_and_holds_the_board(paper: str, square_mm: float) -> None:
    board = Board(square_mm / 1e3)
    content = sheet.pdf(sheet.Sheet(board, paper))
    page = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    drawn = re.search(rb"q ([\d.]+) 0 0 ([\d.]+) ([\d.]+) ([\d.]+) cm /Board Do", content)
    assert page is not None
    assert drawn is not None
    mm_per_pt = 25.4 / 72
    size_mm = [mm_per_pt * float(value) for value in page.groups()]
    assert size_mm == pytest.approx(sheet.PAPERS_MM[paper], abs=0.01)
    across, down, left, bottom = (mm_per_pt * float(value) for value in drawn.groups())
    assert (across, down) == pytest.approx((COLUMNS * square_mm, ROWS * square_mm), abs=0.01)
    assert left >= 8
    assert bottom + down + 8 <= size_mm[1]
    stream = re.search(rb"/Width (\d+) /Height (\d+).*?stream\n(.*)\nendstream", content, re.S)
    assert stream is not None
    columns, rows = int(stream[1]), int(stream[2])
    bits = np.unpackbits(
        np.frombuffer(zlib.decompressobj().decompress(stream[3]), np.uint8).reshape(rows, -1),
        axis=1,
    )
    image = cv2.copyMakeBorder(
        255 * bits[:, :columns], 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=255
    )
    seen = look(board, np.repeat(image[:, :, None], 3, axis=2), "sheet")
    assert len(seen.ids) == (COLUMNS - 1) * (ROWS - 1)
    per_square = columns / COLUMNS
    expected = seen.board_m[:, :2] / board.square_m * per_square + 60 - 0.5
    np.testing.assert_allclose(seen.pixels, expected, atol=0.3)
    offsets = [int(place) for place in re.findall(rb"\n(\d{10}) 00000 n", content)]
    assert [content[place : place + 7] for place in offsets] == [
        b"%d 0 obj" % number for number in range(1, len(offsets) + 1)
    ]


def test_the_png_states_its_resolution(tmp_path: Path) -> None:
    path = tmp_path / "board.png"
    assert cli.main(["calibrate", "board", str(path)]) == ExitCode.OK
    content = path.read_bytes()
    at = content.index(b"pHYs")
    dots_per_m = int.from_bytes(content[at + 4 : at + 8], "big")
    assert zlib.crc32(content[at : at + 13]) == int.from_bytes(content[at + 13 : at + 17], "big")
    image = cv2.imread(str(path))
    seen = look(BOARD, np.ascontiguousarray(image[:, :, ::-1]), "sheet")
    side_px = np.linalg.norm(seen.pixels[1] - seen.pixels[0])
    assert side_px / dots_per_m == pytest.approx(0.03, abs=1e-4)
    assert image.shape[1] / dots_per_m == pytest.approx(0.297, abs=1e-3)
