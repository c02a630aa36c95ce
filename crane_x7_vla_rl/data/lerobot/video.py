"""The videos of a data set. Frames (T, H, W, 3) uint8 RGB → H.264 → single frames in any order.

Videos are joined without re-encoding. Every frame is a key frame and colours are not
subsampled: a loader reads frames in random order, and on small images 4:2:0 moves the colour of a
cube's edge by up to 80 of 255 levels (4:4:4 at this quality: 20) for a fifth of a kilobyte.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, overload

import av

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.mp4 import rate, write_mp4
from crane_x7_vla_rl.types import Image

PIXELS: Final = "yuv444p"
CRF: Final = 10
"""Quality: 48 dB on 64×64 frames of the simulation, 0.7 kB per frame; 18 gives 42 dB, 0.5 kB."""
OPTIONS: Final = {"crf": str(CRF), "g": "1", "bf": "0", "preset": "fast", "threads": "1"}
INFO: Final = {
    "video.codec": "h264",
    "video.pix_fmt": PIXELS,
    "video.g": 1,
    "video.crf": CRF,
    "video.preset": "fast",
}
"""Description of the encoding in info.json."""
OPEN_VIDEOS: Final = 8
"""Files that one thread keeps open; each costs a few MB."""
RUN_ON: Final = 4
"""A frame at most this far ahead is reached by decoding further, not by seeking."""


def encode(episode: Episode) -> bytes:
    """Return the episode's frames as MP4; raises EpisodeError if frames differ in size."""
    buffer = io.BytesIO()
    write_mp4(buffer, _of_one_size(episode), episode.fps, OPTIONS, pixels=PIXELS)
    return buffer.getvalue()


def _of_one_size(episode: Episode) -> Iterator[Image]:
    shape = episode.image(0).shape
    for t in range(len(episode)):
        image = episode.image(t)
        if image.shape != shape:
            raise episode.error("images", f"frame {t} is {image.shape}, frame 0 {shape}")
        yield image


def join(videos: Sequence[Path], fps: float, target: Path) -> None:
    """Concatenate the frames of `videos`; raises DataError if one does not fit."""
    period = 1 / rate(fps)
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as joined:
        stream, first, begun = None, b"", 0
        for path in videos:
            with av.open(str(path)) as part:
                template = part.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(template)
                    stream.time_base = template.time_base
                    first = bytes(template.codec_context.extradata)
                if bytes(template.codec_context.extradata) != first:
                    raise DataError(
                        f"{path}: its encoding differs from that of {videos[0]}; delete it"
                    )
                count = 0
                for packet in part.demux(template):
                    if packet.dts is None:
                        continue  # the demuxer's last packet, without content
                    offset = int(begun * period / template.time_base)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    joined.mux(packet)
                    count += 1
                begun += count


def frame_count(path: Path) -> int:
    """Return the number of frames in the file's header; raises DataError that names the file."""
    try:
        with av.open(str(path)) as container:
            return int(container.streams.video[0].frames)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path}: the video is broken ({error})") from error


@dataclass(frozen=True)
class _Open:
    """An open file of one thread."""

    container: Any
    stream: Any
    frames: Iterator[Any]
    last: Fraction | None
    """Time of the last decoded frame; None right after opening."""


class Videos(threading.local):
    """Open video files of one thread; the least recently used is closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Open] = OrderedDict()

    def frame(self, path: Path, time: Fraction, tolerance: Fraction) -> Image:
        """Return the frame at `time` s, (H, W, 3); raises DataError that names the file."""
        try:
            video = self._open.pop(path, None) or _open(path)
            video, image = _read(video, time, tolerance)
        except (av.FFmpegError, OSError, StopIteration) as error:
            what = "ends before" if isinstance(error, EOFError | StopIteration) else "is broken at"
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: the video {what} {float(time):.3f} s ({why})") from error
        self._open[path] = video
        if len(self._open) > OPEN_VIDEOS:
            self._open.popitem(last=False)[1].container.close()
        return image


def _open(path: Path) -> _Open:
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: contains no video")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # many threads read many files
    stream.codec_context.options = {"err_detect": "explode"}
    return _Open(container, stream, iter(()), None)


def _read(video: _Open, time: Fraction, tolerance: Fraction) -> tuple[_Open, Image]:
    base, frames = video.stream.time_base, video.frames
    period = 2 * tolerance
    near = video.last is not None and 0 < time - video.last <= RUN_ON * period
    if not near:
        video.container.seek(int(time / base), stream=video.stream, backward=True)
        frames = video.container.decode(video.stream)
    for frame in frames:
        at = frame.pts * base
        if at < time - tolerance:
            continue
        if at > time + tolerance or frame.is_corrupt:
            break
        image: Image = frame.to_ndarray(format="rgb24")
        return _Open(video.container, video.stream, frames, at), image
    raise StopIteration(f"no frame within {float(tolerance):.4f} s")


@dataclass(frozen=True)
class VideoFrames(Sequence[Image]):
    """The frames of one episode in a video file; each is decoded when it is read."""

    videos: Videos
    path: Path
    start: Fraction
    """Time of the first frame in the file, s."""
    fps: Fraction
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, t: int) -> Image: ...
    @overload
    def __getitem__(self, t: slice) -> Sequence[Image]: ...

    def __getitem__(self, t: int | slice) -> Image | Sequence[Image]:
        if isinstance(t, slice):
            return [self[k] for k in range(*t.indices(self.length))]
        if not -self.length <= t < self.length:
            raise IndexError(f"frame {t} of {self.length}")
        time = self.start + (t % self.length) / self.fps
        return self.videos.frame(self.path, time, 1 / (2 * self.fps))
