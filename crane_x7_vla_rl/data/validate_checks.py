"""Check every episode, image and joint of a data set. `EpisodeSource` → `Problem`s, by episode.

Several threads check one episode each: decoders release Python's lock.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import numpy as np

from crane_x7_vla_rl.data.episode import Array, DataError, Episode
from crane_x7_vla_rl.data.reader_options import IncompleteError, RecordingError
from crane_x7_vla_rl.data.reading import AS_STATED, Reading
from crane_x7_vla_rl.data.source import EpisodeSource, open_source
from crane_x7_vla_rl.robot import ARM_DOF, JOINT_NAMES, LOWER_RAD, UPPER_RAD, VELOCITY_RAD_S

logger = logging.getLogger(__name__)

LIMIT_MARGIN_RAD: Final = 0.1
"""How far a measurement may exceed a joint's limit: play, noise and a soft stop."""
SPEED_MARGIN: Final = 2.0
"""Two frames further apart than at this multiple of the arm's top speed are a problem."""
TARGET_DISTANCE_RAD: Final = 0.5
"""If half of an episode's targets are further than this from the joints, they are not absolute."""
STILL_RAD: Final = 1e-3
"""If the arm moves less, no motion was recorded: the encoders' noise is of this size."""
MOVED_RAD: Final = 0.1
"""If the arm moves more, its camera must show it."""
FIELDS: Final = tuple(entry.name for entry in fields(Episode))


@dataclass(frozen=True)
class Problem:
    """One problem."""

    file: str
    episode: int | None
    """Number in the source; None if the file could not be indexed."""
    field: str
    """Feature, topic or field of `Episode`."""
    what: str


@dataclass
class Contents:
    """Content of a data set, counted while its episodes are checked."""

    episodes: int = 0
    frames: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) → number of images."""
    instructions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[bool | None] = field(default_factory=Counter)
    interventions: int | None = None
    """Frames that are interventions; None: the data set does not say it."""
    intervened: int = 0
    """Episodes with any."""


@dataclass(frozen=True, eq=False)
class _Report:
    """Result of one thread for one episode."""

    problems: list[Problem]
    episode: Episode | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    digest: bytes = b""


def open_tolerantly(
    path: str | Path, instruction: str, reading: Reading = AS_STATED
) -> tuple[EpisodeSource | None, list[Problem]]:
    """Return the readable part of `path`, and a problem for each file that cannot be indexed."""
    try:
        return open_source(path, instruction=instruction, reading=reading, all_cameras=True), []
    except IncompleteError as error:
        return error.source, [_problem(problem, str(path), None) for problem in error.problems]
    except DataError as error:
        return None, [_problem(error, str(path), None)]


def check_episodes(
    source: EpisodeSource,
    *,
    workers: int = 4,
    contents: Contents | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Problem]:
    """Return all problems of the episodes, fields and images of `source`.

    Valid content is counted in `contents`; `progress` is called with the number of checked
    episodes.
    """
    problems: list[Problem] = []
    digests: dict[bytes, int] = {}
    contents = Contents() if contents is None else contents
    with ThreadPoolExecutor(workers) as threads:
        reports = threads.map(lambda index: _check_episode(source, index), range(len(source)))
        for index, report in enumerate(reports):
            problems += report.problems
            if report.episode is not None:
                twin = digests.setdefault(report.digest, index)
                if twin != index:
                    name = report.episode.source
                    problems.append(
                        Problem(name, index, "episode", f"has the same joints as episode {twin}")
                    )
                _count(contents, report)
            progress(index + 1)
    return problems


def _count(contents: Contents, report: _Report) -> None:
    assert report.episode is not None
    contents.episodes += 1
    contents.frames += len(report.episode)
    contents.sizes += report.sizes
    contents.instructions[report.episode.instruction] += 1
    contents.outcomes[report.episode.success] += 1
    marks = report.episode.intervention
    if marks is not None:
        contents.interventions = (contents.interventions or 0) + int(marks.sum())
        contents.intervened += bool(marks.any())


def _check_episode(source: EpisodeSource, index: int) -> _Report:
    where = getattr(source, "where", lambda _: source.name)(index)
    try:
        episode = source[index]
    except DataError as error:
        return _Report([_problem(error, where, index)])
    problems = [
        Problem(episode.source, index, field, what)
        for field, what in (*_facts(source, index, episode), *_motion(episode))
    ]
    seen = [_check_images(view, index) for view in _views(episode)]
    problems += [problem for found, _ in seen for problem in found]
    sizes = seen[0][1]
    joints = episode.state.tobytes() + episode.action.tobytes()
    digest = hashlib.blake2b(joints, digest_size=16).digest()
    return _Report(problems, _without_images(episode), sizes, digest)


def _views(episode: Episode) -> list[Episode]:
    """Return the episode as each of its cameras sees it, the base camera first."""
    return [episode, *(episode.seen_by(name) for name in episode.others)]


def _check_images(episode: Episode, index: int) -> tuple[list[Problem], Counter[tuple[int, int]]]:
    """Return the problems and the sizes of one camera's images."""
    problems: list[Problem] = []
    sizes: Counter[tuple[int, int]] = Counter()
    same, first = True, None
    for t in range(len(episode)):
        try:
            image = episode.image(t)
        except DataError as error:
            problems.append(_problem(error, episode.source, index))
            continue
        sizes[image.shape[1], image.shape[0]] += 1
        first = image if first is None else first
        same = same and np.array_equal(first, image)
    if len(sizes) > 1:
        shown = ", ".join(f"{width}×{height}" for width, height in sizes)
        problems.append(Problem(episode.source, index, "images", f"change size: {shown}"))
    travel = float(np.ptp(episode.state, axis=0).max())
    if same and len(episode) > 1 and travel > MOVED_RAD:
        what = f"are all the same though the arm moved {travel:.2f} rad: the camera was frozen"
        problems.append(Problem(episode.source, index, "images", what))
    return problems, sizes


def _without_images(episode: Episode) -> Episode:
    """Return the episode without its images' bytes, so that reports stay small."""
    blank = np.zeros((1, 1, 3), np.uint8)
    return Episode(
        [blank] * len(episode), episode.state, episode.action, episode.instruction, episode.fps,
        episode.success, episode.source, episode.seed, intervention=episode.intervention,
    )  # fmt: skip


def _facts(source: EpisodeSource, index: int, episode: Episode) -> Iterator[tuple[str, str]]:
    if abs(episode.fps / source.fps - 1) > 0.01:
        yield "fps", f"is {episode.fps:g}, that of the others {source.fps:g}"
    if len(episode) != source.lengths[index]:
        yield (
            "length",
            f"is {len(episode)} frames, expected {source.lengths[index]} as in the index",
        )
    if len(episode) < 2:
        yield "length", "is one frame; expected at least two"


def _motion(episode: Episode) -> Iterator[tuple[str, str]]:
    """Yield motions that a real arm cannot do, as field and text."""
    for name, values in (("state", episode.state), ("action", episode.action)):
        yield from ((name, what) for what in _beyond_limits(values))
    steps = np.abs(np.diff(episode.state[:, :ARM_DOF], axis=0))  # (T − 1, 7)
    reach = SPEED_MARGIN * VELOCITY_RAD_S[:ARM_DOF] / episode.fps
    jumps = np.argwhere(steps > reach)
    if len(jumps):
        t, joint = jumps[0]
        yield (
            "state",
            (
                f"{JOINT_NAMES[joint]} jumps {steps[t, joint]:.2f} rad from frame {t} to {t + 1}"
                f" ({len(jumps)} such jumps), more than the arm can move in 1/{episode.fps:g} s;"
                " were frames lost, or is fps wrong?"
            ),
        )
    distance = np.median(np.abs(episode.action - episode.state), axis=0)  # (8,)
    far = int(np.argmax(distance))
    if distance[far] > TARGET_DISTANCE_RAD:
        yield (
            "action",
            (
                f"{JOINT_NAMES[far]} is usually {distance[far]:.2f} rad from the measured joint;"
                " expected absolute joint targets in rad, not differences or another joint order"
            ),
        )
    if len(episode) > 1 and np.ptp(episode.state, axis=0).max() < STILL_RAD:
        yield (
            "state",
            f"moves less than {STILL_RAD:g} rad in {len(episode)} frames: no motion was recorded",
        )


def _beyond_limits(values: Array) -> Iterator[str]:
    beyond = np.maximum(LOWER_RAD - values, values - UPPER_RAD)  # (T, 8)
    t, joint = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    if beyond[t, joint] > LIMIT_MARGIN_RAD:
        hint = "; is it in degrees?" if np.abs(values).max() > 2 * np.pi else ""
        yield (
            f"{JOINT_NAMES[joint]} is {values[t, joint]:.2f} at frame {t}, expected"
            f" {LOWER_RAD[joint]:.2f} … {UPPER_RAD[joint]:.2f} rad{hint}"
        )


def _problem(error: DataError, where: str, index: int | None) -> Problem:
    """Return the problem in a reader's error, with its file and field if known."""
    if isinstance(error, RecordingError):
        return Problem(error.source, index, error.field, error.what)
    text = str(error)
    rest = text.removeprefix(f"{where}: ")
    name, _, what = rest.partition(" ")
    if rest != text and name in FIELDS:
        return Problem(where, index, name, what)
    return Problem(where, index, "episode" if index is not None else "files", rest)
