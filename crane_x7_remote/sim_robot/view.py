"""`sim-robot --view`: a page on 127.0.0.1 that shows the simulated arm.

A rosbridge client of the robot → camera image, joints, the loop's status → HTTP.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from crane_x7_remote.errors import SimulationError
from crane_x7_remote.rosbridge import loop_status
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.topics import STATUS_TOPIC, STRING
from crane_x7_remote.settings import Settings
from crane_x7_remote.sim_robot.view_page import PAGE
from crane_x7_vla_rl.robot import JOINT_NAMES

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PICTURE_MS = 100
MOVING_RAD_S = 0.02
FORGET_S = 3.0
"""A loop without a status for this long has ended."""
REQUEST_S = 5.0
"""A browser that sends nothing for this long is disconnected."""


class View:
    """The page's server; a context manager. It listens from the beginning."""

    def __init__(self, port: int) -> None:
        """Raises SimulationError if the port is in use; 0 picks a free one."""
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise SimulationError(
                f"--view {port}: {HOST}:{port} cannot be used: {error.strerror}; give another port,"
                " or 0 for a free one"
            ) from error
        self._server.state = self.state
        self._server.picture = self.picture
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._client: RosbridgeClient | None = None
        self._statuses: dict[str, tuple[float, LoopStatus]] = {}

    @property
    def url(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self._server.server_port}"

    def watch(self, host: str, port: int, topics: Settings) -> None:
        """Show the robot at `host`:`port`."""
        client = RosbridgeClient(
            ClientConfig(
                host,
                port,
                camera_topic=topics.camera_topic,
                joint_states_topic=topics.joint_states_topic,
                instruction_topic=None,
                camera_throttle_ms=PICTURE_MS,
            )
        )
        client.subscribe(STATUS_TOPIC, STRING, self._hear)
        client.start()
        self._client = client

    def unwatch(self) -> None:
        """Disconnect from the robot, before it ends."""
        if self._client is not None:
            self._client.close()

    def picture(self) -> bytes | None:
        """Return the newest camera image as JPEG; None before the first one."""
        frame = None if self._client is None else self._client.latest_frame()
        return None if frame is None else frame.image_bytes

    def state(self) -> dict[str, Any]:
        """Return the page's state, ready for JSON."""
        status = self._newest()
        joints = None if self._client is None else self._client.joints()
        degrees, arm = [], "starting"
        if joints is not None:
            degrees = np.degrees(joints.state.position_rad).tolist()
            speed = np.nan_to_num(np.abs(joints.state.velocity_rad_s)).max()
            arm = "moving" if speed > MOVING_RAD_S else "at rest"
        return {
            "task": None if status is None else status.task,
            "loop": _in_words(status),
            "arm": arm,
            "joints": [
                {"name": name, "deg": value}
                for name, value in zip(JOINT_NAMES, degrees, strict=False)
            ],
        }

    def __enter__(self) -> View:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.unwatch()

    def _hear(self, message: Mapping[str, Any]) -> None:
        status = loop_status.read(message)
        now_s = time.monotonic()
        heard = {**self._statuses, status.session: (now_s, status)}
        self._statuses = {
            session: entry for session, entry in heard.items() if now_s - entry[0] < FORGET_S
        }

    def _newest(self) -> LoopStatus | None:
        """Return the status of the loop that drives, else the newest status."""
        now_s = time.monotonic()
        heard = [each for each in self._statuses.values() if now_s - each[0] < FORGET_S]
        newest = max(heard, key=lambda each: (each[1].hold is None, each[0]), default=None)
        return None if newest is None else newest[1]


def _in_words(status: LoopStatus | None) -> str:
    if status is None:
        return "none connected; start one: crane-x7-remote infer"
    dry = " (dry run)" if status.dry_run else ""
    if status.task_state == "refused":
        return f"{status.session}{dry} refuses the task: {status.reason}"
    if status.hold is not None:
        return f"{status.session}{dry} holds: {status.hold}"
    rate = "" if status.rate_hz is None else f" at {status.rate_hz:.1f} Hz"
    latency = "" if status.latency_ms is None else f", latency {status.latency_ms:.0f} ms"
    return f"{status.session}{dry} drives{rate}{latency}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    state: Any
    picture: Any


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S

    def do_GET(self) -> None:
        """Answer with the page, the image or the state."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer("text/html; charset=utf-8", PAGE.encode())
        elif path == "/state.json":
            self._answer("application/json", json.dumps(self.server.state()).encode())
        elif path == "/camera.jpg":
            picture = self.server.picture()
            if picture is None:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "no image yet")
            else:
                self._answer("image/jpeg", picture)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request at debug level."""
        logger.debug(format, *args)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the browser disconnected")
