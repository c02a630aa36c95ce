"""Episodes for the Rerun viewer. `Episode` → one recording in an .rrd file.

rerun-sdk (tested: 0.41.0) is no dependency of this project: it is large, and only for people who
use its viewer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crane_x7_remote.errors import OutputError, RecordError
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.robot import JOINT_NAMES, PREFIX


class RerunFile:
    """Appends episodes to a file, one after another on one time line."""

    def __init__(self, path: Path) -> None:
        """Raises RecordError without rerun-sdk, OutputError if the file cannot be written."""
        try:
            import rerun
        except ModuleNotFoundError as error:
            raise RecordError(
                "--rerun needs the package rerun-sdk: pip install rerun-sdk"
            ) from error
        try:
            path.touch()
        except OSError as error:
            raise OutputError(f"--rerun {path}: {why(error)}") from error
        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream("crane_x7")
        self._stream.save(str(path))
        self._begun_s = 0.0

    def add(self, number: int, episode: Episode) -> None:
        """Append an episode; its images are logged as they were received."""
        rerun, stream = self._rerun, self._stream
        views = {"base": episode} | {name: episode.seen_by(name) for name in episode.others}
        stream.set_time("time", duration=self._begun_s)
        stream.log("episode", rerun.TextLog(f"episode {number}: {episode.instruction}"))
        for t in range(len(episode)):
            stream.set_time("time", duration=self._begun_s + t / episode.fps)
            for name, view in views.items():
                content = view.images[t]
                is_encoded = isinstance(content, bytes)
                image = rerun.EncodedImage(contents=content) if is_encoded else rerun.Image(content)
                stream.log(f"camera/{name}", image)
            for kind, rows in (("state", episode.state), ("action", episode.action)):
                for joint, value in zip(JOINT_NAMES, rows[t], strict=True):
                    path = f"{kind}/{joint.removeprefix(PREFIX)}"
                    stream.log(path, rerun.Scalars(np.float64(value)))
        stream.flush()
        self._begun_s += len(episode) / episode.fps
