"""The only socket of the control path: a rosbridge client on its own thread.

Socket → slots of an `Inbox`, which keep only the newest. Bundles of operations → socket, one at a
time, without a queue: a bundle that cannot be sent now is dropped and counted. Pings watch the
link; when it dies, the client reconnects and subscribes again.

Threads: the network thread runs the methods below its heading; the public methods may be called
from any other thread, and never block, except for the two named `wait_…`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from crane_x7_remote.errors import LinkFailedError, PeerUnreachableError
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.config import ClientConfig, LinkStatus, Subscription
from crane_x7_remote.rosbridge.connection import close_link, explain, open_link, pause_s, watch
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.inbox import Callback, Inbox, IncomingTopics
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport
from crane_x7_remote.rosbridge.silence import Change, describe
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

STEADY_S = 5.0
"""A connection that lasted this long resets the pauses between attempts; one that broke earlier,
for example because its first message was refused, does not."""


class RosbridgeClient:
    """A context manager; stays connected from `start` to `close`, with reconnects."""

    def __init__(self, config: ClientConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._config = config
        self._clock = clock
        self._changed = threading.Condition()
        self._inbox = Inbox(
            IncomingTopics(
                config.camera_topic,
                config.joint_states_topic,
                config.instruction_topic,
                config.wrist_camera_topic,
            ),
            config.max_message_bytes,
            adapts_throttle=config.camera_throttle_ms is None,
            on_throttle=self._ask_for_throttle,
        )
        self._subscriptions: dict[str, Subscription] = {}
        self._link: ClientConnection | None = None
        self._connected = False
        self._since_s = clock()
        self._connections = 0
        self._rtt_s: float | None = None
        self._last_error: str | None = None
        self._failure: BaseException | None = None
        """The error that ended the network thread before `close`."""
        self._sending = threading.Lock()
        self._in_flight = False
        self._telling = False
        self._dropped = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="rosbridge", daemon=True)
        self._subscribe_to_the_robot()

    def _subscribe_to_the_robot(self) -> None:
        config = self._config
        throttle_ms = config.camera_throttle_ms or 0
        wanted: list[tuple[str | None, str, protocol.Compression, int]] = [
            (config.camera_topic, "sensor_msgs/CompressedImage", "cbor", throttle_ms),
            (config.wrist_camera_topic, "sensor_msgs/CompressedImage", "cbor", throttle_ms),
            # A released ROS 1 server cannot encode JointState's string[] as CBOR: it sends nothing.
            (config.joint_states_topic, "sensor_msgs/JointState", "none", 0),
            (config.instruction_topic, "std_msgs/String", "none", 0),
        ]
        for topic, kind, compression, throttle in wanted:
            if topic:
                subscription = Subscription(f"vla:{topic}", kind, compression, throttle)
                self._subscriptions[topic] = subscription

    # --- from any thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Start to connect; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Send the pending bundle, close, and end the thread; safe to call more than once."""
        if self._thread.ident is None:
            if not self._loop.is_closed():
                self._loop.close()
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    def __enter__(self) -> RosbridgeClient:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def link(self) -> LinkStatus:
        """The current state of the connection."""
        return LinkStatus(
            connected=self._connected,
            since_s=self._since_s,
            reconnects=max(0, self._connections - 1),
            rtt_s=self._rtt_s,
            throttle_rate_ms=self._camera_throttle_ms(),
            dropped_publishes=self._dropped,
            refused_messages=self._inbox.refused,
            last_error=self._last_error,
            ros_version=self._inbox.ros_version,
            ros_version_doubt=self._inbox.ros_version_doubt,
            no_frame_because=self._because(self._config.camera_topic),
            no_wrist_frame_because=self._because(self._config.wrist_camera_topic),
            no_joints_because=self._because(self._config.joint_states_topic),
            unknown_operations=self._inbox.unknown_to_server,
        )

    def _because(self, topic: str | None) -> str | None:
        """Return why nothing usable arrives on a topic, if that is known."""
        if topic is None:
            return None
        refusal = self._inbox.refusal(topic)
        silence = self._describe_silence(topic) if self._inbox.silence.is_silent(topic) else None
        return "; ".join(text for text in (refusal, silence) if text) or None

    def _describe_silence(self, topic: str) -> str:
        return describe(topic, self._subscriptions[topic].type_name, self._inbox.ros_version)

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until the server answers; raises PeerUnreachableError with the cause.

        Raises LinkFailedError at once if the network thread has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._failure, timeout_s)
        self.check()
        if self._connected:
            return
        host, port = self._config.host, self._config.port
        waited = replace(self._config.link, open_timeout_s=timeout_s)
        cause = self._last_error or explain(TimeoutError(), waited)
        raise PeerUnreachableError(f"rosbridge at {host}:{port}: {cause}")

    def check(self) -> None:
        """Raise LinkFailedError if the network thread has failed: there will be no link."""
        if self._failure is not None:
            raise LinkFailedError(f"rosbridge: {self._last_error}") from self._failure

    def latest_frame(self) -> EncodedFrame | None:
        """Return the newest frame, used or not."""
        return self._inbox.frame

    def wrist_frame(self) -> EncodedFrame | None:
        """Return the newest frame of the wrist camera since the link came up."""
        return self._inbox.wrist_frame

    def wait_frame(self, newer_than: EncodedFrame | None, timeout_s: float) -> EncodedFrame | None:
        """Wait for a frame other than `newer_than`; None after the timeout.

        Raises LinkFailedError if the network thread has failed.
        """
        self.check()
        return self._inbox.wait_frame(newer_than, timeout_s)

    def joints(self) -> StampedJoints | None:
        """Return the newest valid joint state."""
        return self._inbox.joints

    def recent_joints(self) -> tuple[StampedJoints, ...]:
        """Return the valid joint states of the last moments, the newest last."""
        return self._inbox.recent_joints

    def take_instruction(self) -> str | None:
        """Return the newest instruction if it has not been taken yet.

        Raises LinkFailedError if the network thread has failed.
        """
        self.check()
        return self._inbox.take_instruction()

    def frame_age_s(self, frame: EncodedFrame, now: float) -> float:
        """Return a frame's age, the larger one of its ages by arrival and by the robot's stamp."""
        by_arrival = now - frame.arrival_s
        if frame.stamp_s == 0:
            return by_arrival
        return max(by_arrival, self._inbox.age_s(frame.stamp_s, now))

    def robot_time(self, now: float) -> float | None:
        """Return the clock of the joint states at our `now`; None before the first stamped one."""
        return self._inbox.robot_time(now)

    def clocks(self, now: float) -> ClockReport:
        """Return the state of the robot's clocks at our `now`."""
        return self._inbox.clocks(now)

    def joint_fault(self, now: float) -> JointFault | None:
        """Return why joint states are not trusted at our `now`, or None."""
        return self._inbox.joint_fault(now)

    def subscribe(self, topic: str, type_name: str, callback: Callback) -> None:
        """Call `callback` with each message of `topic`, on the network thread."""
        self.subscribe_throttled(topic, type_name, callback)

    def subscribe_throttled(
        self,
        topic: str,
        type_name: str,
        callback: Callback,
        throttle_ms: int = 0,
        compression: protocol.Compression = "none",
    ) -> None:
        """As `subscribe`, with at most one message per `throttle_ms`."""
        subscription = Subscription(f"vla:{topic}", type_name, compression, throttle_ms)
        self._inbox.listen(topic, callback)
        self._inbox.silence.expect(topic, compression, self._clock())
        payload = protocol.encode_json(subscription.request(topic, throttle_ms))
        with self._changed:  # see _greet: it is either among these, or the link is up
            self._subscriptions[topic] = subscription
            self._request(payload)

    def hear_results(self, callback: Callback) -> None:
        """Call `callback` with each `action_result` of the server, on the network thread."""
        self._inbox.hear_results(callback)

    def advertise(self, topic: str, type_name: str) -> None:
        """Advertise a topic on this connection; a reconnect does not repeat it."""
        operation = protocol.advertise(topic, type_name, id=f"vla:advertise:{topic}")
        self._request(protocol.encode_json(operation))

    def publish(
        self,
        operations: Sequence[Mapping[str, Any]],
        leave_by_s: float | None = None,
        dropped: Callable[[], None] | None = None,
    ) -> bool:
        """Send the operations as one bundle now, or drop them: False means dropped and counted.

        True means that the bundle was passed to the network thread, not that it arrived. If that
        thread gets to it after `leave_by_s`, on our monotonic clock, or the link fails, it is also
        dropped, and that thread calls `dropped` before the next bundle is accepted.
        """
        with self._sending:
            if not self._connected or self._in_flight:
                self._dropped += 1
                return False
            self._in_flight = True
        try:
            payloads = [protocol.encode_json(operation) for operation in operations]
            self._loop.call_soon_threadsafe(self._start_sending, payloads, leave_by_s, dropped)
        except BaseException:
            self._in_flight = False
            raise
        return True

    def tell(self, operation: Mapping[str, Any]) -> bool:
        """Send one operation separately from the bundles, which it never delays.

        False means dropped: the link is down, or the previous one is still being sent.
        """
        with self._sending:
            if not self._connected or self._telling:
                return False
            self._telling = True
        payload = protocol.encode_json(operation)
        try:
            self._loop.call_soon_threadsafe(self._start_telling, payload)
        except RuntimeError:  # the network thread has ended
            return False
        return True

    # --- network thread: the connection ----------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._connect_until_stopped())
        except BaseException as error:  # waiting threads must see any error
            self._note_failure(error)
        finally:
            self._end_tasks()
            self._loop.close()

    def _end_tasks(self) -> None:
        """Cancel the tasks that an error has left, so that none is destroyed while pending."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=1.0))

    def _note_failure(self, error: BaseException) -> None:
        """Report the failure to all waiting threads; the traceback is logged for debugging."""
        logger.debug("the network thread failed", exc_info=error)
        host, port = self._config.host, self._config.port
        text = f"{type(error).__name__}: {shown(error)}"
        with self._changed:
            self._connected = False
            self._since_s = self._clock()
            self._last_error = f"cannot connect to {host}:{port} any more ({text})"
            self._failure = error
            self._changed.notify_all()
        logger.error("%s", self._last_error)

    async def _connect_until_stopped(self) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        failures = 0
        while not self._stop.is_set():
            attempt = asyncio.ensure_future(self._connect_once())
            await asyncio.wait({attempt, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                attempt.cancel()
            try:
                held = await attempt
            except asyncio.CancelledError:
                break
            failures = 0 if held else failures + 1
            await asyncio.wait({stopping}, timeout=pause_s(failures, random.random()))

    async def _connect_once(self) -> bool:
        """Keep one connection until it ends; True if it lasted for a while."""
        link: ClientConnection | None = None
        started_s = self._clock()
        try:
            link = await open_link(self._config.link)
            await self._greet(link)
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch(link, self._config.link, self._note_rtt))
                await self._receive(link)
                watching.cancel()
            self._note_down(ConnectionError("closed by the server"))
        except (OSError, WebSocketException, ExceptionGroup) as error:
            self._note_down(error)
        finally:
            self._connected = False
            self._link = None
            if link is not None:
                await self._finish_sending()
                await close_link(link)
        return link is not None and self._clock() - started_s > STEADY_S

    async def _finish_sending(self) -> None:
        """Wait briefly for the pending bundle, so that a loop's last trajectory is sent."""
        deadline_s = self._clock() + 0.5
        while self._stop.is_set() and self._in_flight and self._clock() < deadline_s:
            await asyncio.sleep(0.005)

    async def _greet(self, link: ClientConnection) -> None:
        """Advertise and subscribe on a new connection, then report that it is up."""
        self._inbox.link_came_up()
        for topic, kind in self._config.advertise.items():
            await link.send(
                protocol.encode_json(protocol.advertise(topic, kind, id=f"vla:advertise:{topic}"))
            )
        asked: dict[str, Subscription] = {}
        while not self._come_up(link, asked):
            for topic, subscription in list(self._subscriptions.items()):
                if asked.get(topic) is subscription:
                    continue
                asked[topic] = subscription
                throttle_ms = self._throttle_ms(topic, subscription)
                await link.send(protocol.encode_json(subscription.request(topic, throttle_ms)))
                self._inbox.silence.expect(topic, subscription.compression, self._clock())
        logger.info("connected to rosbridge at %s:%d", self._config.host, self._config.port)

    def _come_up(self, link: ClientConnection, asked: Mapping[str, Subscription]) -> bool:
        """Report that the link is up, if all subscriptions were requested; from then on
        `subscribe_throttled` requests its own."""
        with self._changed:
            if any(asked.get(topic) is not each for topic, each in self._subscriptions.items()):
                return False
            self._link = link
            self._connections += 1
            self._since_s = self._clock()
            with self._sending:
                self._in_flight = self._telling = False
            self._connected = True
            self._changed.notify_all()
        return True

    def _note_down(self, error: BaseException) -> None:
        text = explain(error, self._config.link)
        if self._connected:
            self._since_s = self._clock()
            logger.warning("link to rosbridge is down: %s", text)
        elif text != self._last_error:
            logger.warning(
                "cannot reach rosbridge at %s:%d yet: %s",
                self._config.host,
                self._config.port,
                text,
            )
        self._last_error = text

    def _note_rtt(self, seconds: float) -> None:
        """Look for silent topics when a ping was answered, about once a second: the link is up."""
        self._rtt_s = seconds
        now_s = self._clock()
        self._inbox.expire(now_s)
        for change in self._inbox.silence.look(now_s):
            self._follow_silence(change)

    def _follow_silence(self, change: Change) -> None:
        topic = change.topic
        if change.compression is not None:
            self._subscribe_anew(topic, change.compression)
        is_required = topic in (*self._cameras, self._config.joint_states_topic)
        if change.kind == "cbor_failed":
            logger.warning("%s arrives only without cbor: this rosbridge cannot encode it", topic)
        elif change.is_news and (is_required or change.compression is not None):
            again = "; subscribed again without cbor" if change.compression else ""
            logger.warning("%s%s", self._describe_silence(topic), again)

    def _subscribe_anew(self, topic: str, compression: protocol.Compression) -> None:
        """Subscribe again from scratch: in some servers an error ended the old subscription."""
        subscription = self._subscriptions[topic]
        throttle_ms = self._throttle_ms(topic, subscription)
        for operation in (
            protocol.unsubscribe(topic, id=subscription.id),
            subscription.request(topic, throttle_ms, compression),
        ):
            self._request(protocol.encode_json(operation))

    async def _receive(self, link: ClientConnection) -> None:
        """Receive messages until the server closes in order; a broken link raises."""
        try:
            while True:
                payload = await link.recv()
                if self._inbox.take(payload, self._clock()):
                    link.transport.abort()
                    raise ConnectionError(
                        "all frames were old for seconds: a backlog at the server, or the"
                        " camera's clock was set back while it sent nothing"
                    )
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1000:
                raise

    # --- network thread: out ---------------------------------------------------------------------

    def _start_sending(
        self, payloads: list[str], leave_by_s: float | None, dropped: Callable[[], None] | None
    ) -> None:
        def ended(task: asyncio.Task[bool]) -> None:
            if task.cancelled() or task.exception() is not None or not task.result():
                self._dropped += 1
                if dropped is not None:
                    dropped()
            self._in_flight = False

        self._loop.create_task(self._send(payloads, leave_by_s)).add_done_callback(ended)

    async def _send(self, payloads: list[str], leave_by_s: float | None) -> bool:
        """Return whether the bundle was sent, and not too late for that."""
        link = self._link
        if link is None or (leave_by_s is not None and self._clock() > leave_by_s):
            return False
        for payload in payloads:
            await link.send(payload)
        return True

    def _request(self, payload: str) -> None:
        """Send an operation; after a reconnect the caller sends it again."""
        if self._connected:
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._try(payload)))

    def _start_telling(self, payload: str) -> None:
        def told(_: asyncio.Task[None]) -> None:
            self._telling = False

        self._loop.create_task(self._try(payload)).add_done_callback(told)

    async def _try(self, payload: str) -> None:
        link = self._link
        if link is not None:
            with contextlib.suppress(OSError, WebSocketException):
                await link.send(payload)

    def _ask_for_throttle(self, rate_ms: int) -> None:
        for topic in self._cameras:
            subscription = self._subscriptions[topic]
            compression = self._inbox.silence.compression(topic, subscription.compression)
            operation = subscription.request(topic, rate_ms, compression)
            self._request(protocol.encode_json(operation))

    def _throttle_ms(self, topic: str, subscription: Subscription) -> int:
        if topic in self._cameras:
            return self._camera_throttle_ms()
        return subscription.throttle_ms

    @property
    def _cameras(self) -> tuple[str, ...]:
        topics = self._config.camera_topic, self._config.wrist_camera_topic
        return tuple(topic for topic in topics if topic)

    def _camera_throttle_ms(self) -> int:
        fixed = self._config.camera_throttle_ms
        return self._inbox.throttle_ms if fixed is None else fixed
