"""A bag's joints, commands and frame times. Bag → `Track` on one grid of frames.

The bag is read once; only the stamps of its images are kept, and images are read when the episode
is opened. Frame k is taken at t; its action is the command for t + 1/fps, as a policy's first step
is due one period after its frame.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.data.reader_options import RecordingError
from crane_x7_vla_rl.data.rosbags.align import Array, Command, Indices, commanded, grid, nearest
from crane_x7_vla_rl.data.rosbags.file import Received, read_messages, read_topics
from crane_x7_vla_rl.data.rosbags.messages import (
    COMPRESSED,
    JOINTS,
    RAW,
    TEXT,
    TRAJECTORY,
    command,
    joint_row,
    stamp_ns,
)
from crane_x7_vla_rl.data.rosbags.options import BagOptions
from crane_x7_vla_rl.joint_names import JointsError
from crane_x7_vla_rl.robot import JOINT_NAMES

logger = logging.getLogger(__name__)

CLOCKS_AGREE_S: Final = 0.5
"""With a larger difference, two streams' header stamps count as not synchronised."""


@dataclass(frozen=True, eq=False)
class Track:
    """One bag on its grid of T frames."""

    path: Path
    pictures: Indices
    """(T,) index of each frame's message on the camera's topic, in the order of receipt."""
    state: npt.NDArray[np.float32]
    """(T, 8) rad, or as many columns as joints were named."""
    action: npt.NDArray[np.float32]
    """(T, 8) rad."""
    instruction: str | None
    action_from: str


@dataclass
class _Stream:
    """Stamps of one topic's messages, and their content."""

    topic: str
    header_ns: list[int] = field(default_factory=list)
    received_ns: list[int] = field(default_factory=list)
    contents: list[Any] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why each unusable message was skipped."""

    @property
    def note(self) -> str:
        """End of an error message about the topic."""
        if not self.left_out:
            return ""
        return f"; {len(self.left_out)} messages were skipped, the first {self.left_out[0]}"

    def add(self, received: Received, content: object) -> None:
        self.header_ns.append(stamp_ns(received.message))
        self.received_ns.append(received.time_ns)
        self.contents.append(content)


def read_track(path: Path, options: BagOptions, joint_names: Sequence[str] = JOINT_NAMES) -> Track:
    """Return the bag at `path` on its grid; raises RecordingError naming bag and topic.

    `joint_names` are the columns of state and action: another robot's, where actions come from its
    joints (`leader`, `next_state`).
    """
    topics = read_topics(path)
    source = _action_source(topics, options)
    kinds = {options.camera_topic: (COMPRESSED, RAW), options.joint_states_topic: (JOINTS,)}
    if source != "next_state":
        kinds[options.action_topics[source]] = (JOINTS,) if source == "leader" else (TRAJECTORY,)
    for topic, expected in kinds.items():
        _expect(path, topics, topic, expected)
    if topics.get(options.instruction_topic) == TEXT:
        kinds[options.instruction_topic] = (TEXT,)
    streams = {topic: _Stream(topic) for topic in kinds}
    for received in read_messages(path, kinds):
        stream = streams[received.topic]
        try:
            stream.add(received, _content(received, topics[received.topic], f"{path}", joint_names))
        except JointsError as error:
            stream.left_out.append(str(error))
    for stream in streams.values():
        if stream.left_out and stream.contents:
            logger.warning("%s: %s has %d usable messages%s", path, stream.topic,
                           len(stream.contents), stream.note)  # fmt: skip
    return _align(path, streams, source, options)


def _action_source(topics: dict[str, str], options: BagOptions) -> str:
    if options.action_from != "auto":
        return options.action_from
    known = options.action_topics
    return next((source for source, topic in known.items() if topic in topics), "next_state")


def _expect(path: Path, topics: dict[str, str], topic: str, kinds: Sequence[str]) -> None:
    if topic in topics and topics[topic] in kinds:
        return
    fitting = [name for name, kind in sorted(topics.items()) if kind in kinds]
    hint = f"topics of this type: {', '.join(fitting) or 'none'}; name one in reader.yaml"
    what = f"is {topics[topic]}" if topic in topics else "is missing from the bag"
    raise RecordingError(str(path), topic, f"{what}, expected {' or '.join(kinds)}; {hint}")


def _content(received: Received, kind: str, where: str, joint_names: Sequence[str]) -> Any:
    if kind == JOINTS:
        return joint_row(received.message, joint_names)
    if kind == TRAJECTORY:
        return command(received.message, 0.0, where, received.topic)
    return received.message.data if kind == TEXT else None


def _align(path: Path, streams: dict[str, _Stream], source: str, options: BagOptions) -> Track:
    camera, joints = streams[options.camera_topic], streams[options.joint_states_topic]
    leader = streams[options.leader_topic] if source == "leader" else None
    measured = [stream for stream in (camera, joints, leader) if stream is not None]
    for stream in measured:
        if not stream.contents:
            raise RecordingError(str(path), stream.topic, f"holds no usable message{stream.note}")
    base_ns, offset_ns = _clock(measured)
    camera_s, camera_order = _sorted(camera, base_ns, offset_ns)
    joints_s, joints_order = _sorted(joints, base_ns, offset_ns)
    positions = np.array(joints.contents)[joints_order]  # (N, 8)
    period = 1 / options.fps
    last = [camera_s[-1], joints_s[-1] - period]
    if leader is not None:
        leader_s, leader_order = _sorted(leader, base_ns, offset_ns)
        last.append(leader_s[-1] - period)
    from_joints = camera_s[camera_s >= joints_s[0] - options.max_gap_s]
    times = grid(from_joints[0], min(last), options.fps) if len(from_joints) else np.empty(0)
    if len(times) < 2:
        raise RecordingError(
            str(path), camera.topic, f"({camera_s[0]:.2f} … {camera_s[-1]:.2f} s) and"
            f" {joints.topic} ({joints_s[0]:.2f} … {joints_s[-1]:.2f} s) overlap by less than two"
            f" frames{joints.note}",
        )  # fmt: skip
    pictures = nearest(camera_s, times)
    _check_pictures(path, camera, camera_s, times, options)
    _check_gap(path, joints, joints_s, np.append(times, times[-1] + period), options)
    state = positions[nearest(joints_s, times)]
    action = positions[nearest(joints_s, times + period)]
    if leader is not None:
        _check_gap(path, leader, leader_s, times + period, options)
        action = np.array(leader.contents)[leader_order][nearest(leader_s, times + period)]
    elif source != "next_state":
        commands = _commands(streams[options.action_topics[source]], base_ns, offset_ns)
        action = commanded(commands, times + period, action, joints_s, positions)
    return Track(
        path=path,
        pictures=camera_order[pictures],
        state=state.astype(np.float32),
        action=action.astype(np.float32),
        instruction=_instruction(path, streams.get(options.instruction_topic)),
        action_from=source,
    )


def _clock(streams: Sequence[_Stream]) -> tuple[int, int | None]:
    """Return the zero of time in ns, and how far header stamps are ahead of the recorder.

    None: not every message has a stamp, or their clocks are not synchronised, so the recorder's
    times are used.
    """
    ahead = [
        int(np.median(np.subtract(stream.header_ns, stream.received_ns))) for stream in streams
    ]
    stamped = all(all(stream.header_ns) for stream in streams)
    if not stamped or max(ahead) - min(ahead) > CLOCKS_AGREE_S * 1e9:
        return min(streams[0].received_ns), None
    return min(streams[0].header_ns), ahead[0]


def _sorted(stream: _Stream, base_ns: int, offset_ns: int | None) -> tuple[Array, Indices]:
    """Return (N,) times in s, increasing, and the index of each one's message."""
    stamps = np.array(stream.received_ns if offset_ns is None else stream.header_ns, np.int64)
    order = np.argsort(stamps, kind="stable")
    return (stamps[order] - base_ns) / 1e9, order


def _commands(stream: _Stream, base_ns: int, offset_ns: int | None) -> list[Command]:
    """Return the trajectories by their start; one without a stamp starts at its receipt."""
    found = []
    for header, received, content in zip(
        stream.header_ns, stream.received_ns, stream.contents, strict=True
    ):
        stamp = received if offset_ns is None else header or received + offset_ns
        found.append(replace(content, time_s=(stamp - base_ns) / 1e9))
    return sorted(found, key=lambda command: command.time_s)


def _check_pictures(
    path: Path, camera: _Stream, stamps_s: Array, times_s: Array, options: BagOptions
) -> None:
    _check_gap(path, camera, stamps_s, times_s, options)
    distinct = len(np.unique(nearest(stamps_s, times_s)))
    if distinct < 0.9 * len(times_s):
        rate = distinct / (times_s[-1] - times_s[0])
        raise RecordingError(
            str(path), camera.topic, f"has {distinct} images for {len(times_s)} frames: its rate"
 f" was {rate:.1f} per second; set fps in reader.yaml to at most that, not"
 f" {options.fps:g}",
        )  # fmt: skip


def _check_gap(
    path: Path, stream: _Stream, stamps_s: Array, times_s: Array, options: BagOptions
) -> None:
    gaps = np.abs(stamps_s[nearest(stamps_s, times_s)] - times_s)
    worst = int(np.argmax(gaps))
    if gaps[worst] > options.max_gap_s:
        raise RecordingError(
            str(path), stream.topic, f"has no message within {options.max_gap_s:g} s of"
            f" {times_s[worst]:.2f} s; the nearest is {gaps[worst]:.2f} s away (max_gap_s in"
            f" reader.yaml){stream.note}",
        )  # fmt: skip


def _instruction(path: Path, stream: _Stream | None) -> str | None:
    """Return the operator's instruction, None without one; one bag, one task."""
    texts = list(dict.fromkeys(text.strip() for text in stream.contents)) if stream else []
    texts = [text for text in texts if text]
    if stream and len(texts) > 1:
        raise RecordingError(
            str(path), stream.topic, f'changes from "{texts[0]}" to "{texts[1]}", expected one per'
            " bag; record each task into a separate bag",
        )  # fmt: skip
    return texts[0] if texts else None
