"""Bags of any arm → a LeRobotDataset v3. A folder of bags → the folder that LeRobot trains on.

Each bag is one episode on a grid of `data.fps` frames. State: the joints nearest to a frame.
Action: the joints one frame later, or how far they move until then. Joints are found by name;
without `data.joints` they are those of the first bag, in their messages' order. A killed conversion
resumes after its last complete episode; a finished one is used as it is, unless bags or options
have changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from crane_x7_vla_rl.data.episode import DataError, Episode, decode_image
from crane_x7_vla_rl.data.files import read_json, write_json
from crane_x7_vla_rl.data.lerobot import LeRobotWriter, layout
from crane_x7_vla_rl.data.reader_options import RecordingError
from crane_x7_vla_rl.data.rosbags.file import find_bags, read_messages, read_topics
from crane_x7_vla_rl.data.rosbags.messages import COMPRESSED, RAW
from crane_x7_vla_rl.data.rosbags.options import BagOptions
from crane_x7_vla_rl.data.rosbags.source import pictures_of
from crane_x7_vla_rl.data.rosbags.track import read_track
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.training.osmo.config import DataSection
from crane_x7_vla_rl.types import Image

logger = logging.getLogger(__name__)

MADE_OF: Final = "made-of.json"
"""In the data set's folder: what it was made of, and whether it is whole."""
SEEN: Final = 50
"""Joint messages of a bag that decide which joints it has."""
ROBOT: Final = "other"


def prepare(section: DataSection, folder: Path) -> Path:
    """Return the folder of the data set, converted if it is not there yet.

    Several processes may call this for one folder: the first converts, the others wait for it.
    Raises DataError that names bag and topic.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        place = Path(section.path).expanduser()
        if not place.exists():
            raise DataError(
                f"data.path: {place} does not exist; name the folder with the bags (metadata.yaml"
                " and .db3, or .mcap)"
            )
        bags = find_bags(place)
        wanted = _made_of(section, place, bags)
        if (folder / layout.INFO).exists() or (folder / layout.STAGING).exists():
            made = read_json(folder / MADE_OF) if (folder / MADE_OF).exists() else {}
            if made == {**wanted, "whole": True}:
                return folder
            if {**made, "whole": False} != {**wanted, "whole": False}:
                logger.warning("%s was made of other bags or options; converting again", folder)
                shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        write_json(folder / MADE_OF, {**wanted, "whole": False})
        convert(section, bags, folder)
        write_json(folder / MADE_OF, {**wanted, "whole": True})
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a conversion; another process of this machine waits until it is free."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made_of(section: DataSection, place: Path, bags: Sequence[Path]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for bag in bags:
        for file in sorted(bag.iterdir()) if bag.is_dir() else [bag]:
            digest.update(f"{file.relative_to(place.parent)} {file.stat().st_size}\n".encode())
    options = {name: value for name, value in vars(section).items() if name != "path"}
    return {"options": json.loads(json.dumps(options)), "bags": digest.hexdigest()}


def convert(section: DataSection, bags: Sequence[Path], folder: Path) -> int:
    """Write the bags as episodes into `folder`, after those that it holds; return their number."""
    options = _options(section, bags[0])
    joints = section.joints or found_joints(bags[0], section.joint_states_topic)
    logger.info("%d bags, %d joints: %s", len(bags), len(joints), ", ".join(joints))
    first = episode(bags[0], options, joints, section)
    height, width, _ = first.image(0).shape
    robot = layout.Extras().robot_type if set(joints) == {*JOINT_NAMES} else ROBOT
    extras = layout.Extras(joints=tuple(joints), robot_type=robot)
    with LeRobotWriter(folder, section.fps, (width, height), resume=True, extras=extras) as writer:
        for number in range(len(writer), len(bags)):
            bag = bags[number]
            writer.add(first if number == 0 else episode(bag, options, joints, section))
            logger.info("%d of %d bags: %s", number + 1, len(bags), bag.name)
        return len(writer)


def _options(section: DataSection, bag: Path) -> BagOptions:
    return BagOptions(
        fps=section.fps,
        camera_topic=section.camera_topic or found_camera(bag),
        joint_states_topic=section.joint_states_topic,
        action_from="next_state",
        max_gap_s=section.max_gap_s,
    )


def found_camera(bag: Path) -> str:
    """Return the only topic of images in a bag; raises RecordingError otherwise."""
    topics = read_topics(bag)
    found = sorted(topic for topic, kind in topics.items() if kind in (COMPRESSED, RAW))
    if len(found) != 1:
        listed = ", ".join(found) or f"none among {', '.join(sorted(topics))}"
        raise RecordingError(
            str(bag), "images", f"are on {len(found)} topics ({listed}), expected one; name it in"
            " data.camera_topic",
        )  # fmt: skip
    return found[0]


def found_joints(bag: Path, topic: str) -> tuple[str, ...]:
    """Return the joints of a bag: the names that most of its first messages have.

    Of a CRANE-X7 its eight joints in their usual order, which its policies need; its messages also
    have the gripper's second finger.
    """
    counted: Counter[tuple[str, ...]] = Counter()
    for at, received in enumerate(read_messages_until(bag, topic)):
        if at >= SEEN:
            break
        counted[tuple(map(str, received.message.name))] += 1
    if not counted or not any(counted):
        raise RecordingError(
            str(bag), topic, "holds no joint state; name the topic in data.joint_states_topic"
        )
    names, _ = max(counted.items(), key=lambda item: (item[1], len(item[0])))
    return JOINT_NAMES if {*JOINT_NAMES} <= {*names} else names


def read_messages_until(bag: Path, topic: str) -> Iterator[Any]:
    """Yield the messages of a topic; the reader is closed when the caller stops."""
    stream = read_messages(bag, [topic])
    try:
        yield from stream
    finally:
        stream.close()  # type: ignore[attr-defined]


def episode(bag: Path, options: BagOptions, joints: Sequence[str], section: DataSection) -> Episode:
    """Return one bag as an episode; raises RecordingError that names bag and topic."""
    track = read_track(bag, options, joints)
    images = pictures_of(track, options.camera_topic)
    if section.image_size is not None:
        images = [_resized(each, section.image_size) for each in images]
    moved = track.action - track.state
    return Episode(
        images=images,
        state=track.state,
        action=track.action if section.action == "position" else moved,
        instruction=section.task,
        fps=section.fps,
        success=None,
        source=str(bag),
        joints=tuple(joints),
    )


def _resized(picture: bytes | Image, size: tuple[int, int]) -> Image:
    image = decode_image(picture) if isinstance(picture, bytes) else picture
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
