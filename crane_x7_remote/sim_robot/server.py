"""A rosbridge v2 server on `websockets`: brings messages from robot to clients and back.

Clients' bytes enter and leave through WebSockets; the robot behind it (a `Robot`) is called on the
server's event loop and hands its own messages in with `publish_threadsafe` from any thread. What an
operation means is decided in `session`; here are sockets, topics and their types.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.messages import same_type
from crane_x7_remote.sim_robot.outbox import Outbox
from crane_x7_remote.sim_robot.session import (
    GoalKey,
    Operation,
    OperationError,
    Publication,
    Session,
)

logger = logging.getLogger(__name__)
handshakes = logging.getLogger(__name__ + ".handshakes")
handshakes.setLevel(logging.CRITICAL)  # Port checks that say nothing are no errors of ours.

KNOWN_TYPES = (
    "actionlib_msgs/GoalStatusArray",
    "control_msgs/JointTrajectoryControllerState",
    "diagnostic_msgs/DiagnosticArray",
    "geometry_msgs/PoseStamped",
    "geometry_msgs/TransformStamped",
    "geometry_msgs/Twist",
    "rosgraph_msgs/Clock",
    "sensor_msgs/CameraInfo",
    "sensor_msgs/CompressedImage",
    "sensor_msgs/Image",
    "sensor_msgs/JointState",
    "std_msgs/Bool",
    "std_msgs/Empty",
    "std_msgs/Float32",
    "std_msgs/Float32MultiArray",
    "std_msgs/Float64",
    "std_msgs/Float64MultiArray",
    "std_msgs/Header",
    "std_msgs/Int32",
    "std_msgs/String",
    "tf2_msgs/TFMessage",
    "trajectory_msgs/JointTrajectory",
)
"""Message types that this robot has "installed"; any other is refused as rosbridge refuses it."""

CLOSE_TIMEOUT_S = 1.0
FLOODED_PAUSE_S = 0.05


@dataclass(frozen=True)
class ServerConfig:
    """Where and how the server listens."""

    host: str = "127.0.0.1"
    port: int = 9090
    """0 picks a free one."""
    backlog: int | None = 64
    """Topic messages that may wait for a slow client; None: without bound, as real rosbridge."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES


class Robot(Protocol):
    """What the server serves; its methods are called on the server's event loop."""

    @property
    def topics(self) -> Mapping[str, str]:
        """Topic → type name, for the topics that the robot itself publishes or listens to."""

    def receive(self, topic: str, message: Operation) -> None:
        """Take a message that a client published on `topic`; raise RemoteError if malformed."""

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """Start an action goal; raise RemoteError if the action or its arguments are wrong."""

    def cancel_goal(self, key: GoalKey) -> None:
        """Give a goal up, if it is still running."""


class RosbridgeServer:
    """Serves one robot to many clients. Call everything but `*_threadsafe` on its event loop."""

    def __init__(
        self,
        robot: Robot,
        config: ServerConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._robot = robot
        self._config = config
        self._clock = clock
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count(1)
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen; raises OSError when the address cannot be had."""
        self._loop = asyncio.get_running_loop()
        self._server = await serve(
            self._serve_client,
            self._config.host,
            self._config.port,
            compression=None,
            logger=handshakes,
            max_size=self._config.max_message_bytes,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port that is listened on, also when 0 was asked for."""
        if self._server is None:
            raise RuntimeError("the server is not started, so it has no port yet")
        return int(self._server.sockets[0].getsockname()[1])

    def is_wanted(self, topic: str, within_s: float = math.inf) -> bool:
        """Whether anybody would be sent a message of `topic` that is ready `within_s` from now.

        May be asked from any thread, to save work that every client's throttle would drop.
        """
        then_s = self._clock() + within_s
        sessions = tuple(self._sessions.values())
        subscriptions = (session.subscriptions.get(topic) for session in sessions)
        return any(each is not None and each.is_due(then_s) for each in subscriptions)

    def publish_threadsafe(self, topic: str, message: Operation) -> None:
        """Send the robot's own message to the topic's subscribers; call it from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.broadcast, topic, message)

    def finish_goal_threadsafe(
        self, key: GoalKey, values: Operation, status: int, result: bool = True
    ) -> None:
        """Answer a goal's sender, if it is still connected; call it from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            operation = protocol.action_result(
                key.goal_id, key.action, dict(values), status, result
            )
            self._loop.call_soon_threadsafe(self._reply, key.client, operation)

    def broadcast(self, topic: str, message: Operation) -> None:
        """Offer a message to every subscriber of `topic`.

        Raises OperationError, after the rest is served, if it cannot be encoded for some of them.
        """
        publication = Publication(topic, message)
        problem: OperationError | None = None
        for session in self._sessions.values():
            try:
                session.offer(publication)
            except OperationError as error:
                problem = error
        if problem is not None:
            raise problem

    def establish(self, topic: str, type_name: str | None) -> None:
        """See session.Hub."""
        established = self._type_of(topic)
        if type_name is None and established is None:
            raise OperationError(f"topic {topic} has no type yet and none was given; advertise it")
        if type_name is None:
            return
        if not any(same_type(type_name, known) for known in KNOWN_TYPES):
            raise OperationError(
                f"topic {topic}: unable to load type {type_name!r}; known: {', '.join(KNOWN_TYPES)}"
            )
        if established is not None and not same_type(type_name, established):
            raise OperationError(
                f"topic {topic}: type is {type_name!r} but it is already established as"
                f" {established!r}"
            )

    def publish(self, topic: str, message: Operation) -> None:
        """See session.Hub: the robot gets the message first, then every subscriber."""
        self._robot.receive(topic, message)
        self.broadcast(topic, message)

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """See session.Hub."""
        self._robot.start_goal(key, action_type, args)

    def cancel_goal(self, key: GoalKey) -> None:
        """See session.Hub."""
        self._robot.cancel_goal(key)

    def _type_of(self, topic: str) -> str | None:
        if topic in self._robot.topics:
            return self._robot.topics[topic]
        for session in self._sessions.values():
            subscription = session.subscriptions.get(topic)
            if topic in session.advertised:
                return session.advertised[topic]
            if subscription is not None and subscription.type_name is not None:
                return subscription.type_name
        return None

    def _reply(self, client: int, operation: dict[str, Any]) -> None:
        session = self._sessions.get(client)
        if session is not None:
            session.reply(operation)

    async def _serve_client(self, connection: ServerConnection) -> None:
        waiting = asyncio.Event()
        outbox = Outbox(self._config.backlog, waiting.set)
        session = Session(next(self._numbers), self, outbox, self._clock)
        self._sessions[session.number] = session
        logger.info("client %d connected from %s", session.number, connection.remote_address)
        sender = asyncio.create_task(_send_waiting(connection, outbox, waiting))
        try:
            async for payload in connection:
                session.receive(payload, self._config.max_message_bytes)
                while outbox.is_flooded and not sender.done():
                    await asyncio.sleep(FLOODED_PAUSE_S)
        except ConnectionClosed as error:
            logger.debug("client %d: %s", session.number, error)
        finally:
            del self._sessions[session.number]
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            logger.info("client %d left, %d messages dropped", session.number, outbox.dropped)


async def _send_waiting(
    connection: ServerConnection, outbox: Outbox, waiting: asyncio.Event
) -> None:
    """Send what waits for one client, as fast as its socket takes it."""
    while True:
        await waiting.wait()
        waiting.clear()
        while (payload := outbox.take()) is not None:
            try:
                await connection.send(payload)
            except ConnectionClosed:
                return
