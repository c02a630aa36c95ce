"""A rosbridge v2 server on `websockets`: clients' messages → robot, robot's messages → clients.

The robot (a `Robot`) is called on the server's event loop, and publishes from any thread through
`publish_threadsafe`. `session` implements the operations; this file has sockets, topics and types.
"""

from __future__ import annotations

import asyncio
import http
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.messages import RosVersion, same_type
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.sim_robot import ros_types
from crane_x7_remote.sim_robot.outbox import ClientOutbox
from crane_x7_remote.sim_robot.session import (
    ClientSession,
    GoalKey,
    Operation,
    OperationError,
    Publication,
)

logger = logging.getLogger(__name__)
handshakes = logging.getLogger(__name__ + ".handshakes")
handshakes.setLevel(logging.CRITICAL)  # A port check that sends nothing is not an error.

CLOSE_TIMEOUT_S = 1.0
FLOODED_PAUSE_S = 0.05
MOST_CLIENTS = 512
"""Further clients get 503; a process may usually open 1024 files."""
MOST_WAITING_MESSAGES = 1
"""Messages of a client that are read but not yet handled: 16, websockets' default, are 128 MB."""
LOGGED_TOPICS = 100
"""Topics for which a message that could not be sent is logged."""


@dataclass(frozen=True)
class ServerConfig:
    """Where and how the server listens."""

    host: str = "127.0.0.1"
    port: int = 9090
    """0 picks a free port."""
    backlog: int | None = 64
    """Topic messages that may wait for a slow client; None: no limit, like real rosbridge."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES


class Robot(Protocol):
    """The robot that is served; its methods are called on the server's event loop."""

    @property
    def topics(self) -> Mapping[str, str]:
        """Topic → type name, for the topics that the robot itself publishes or listens to."""

    def time_s(self) -> float:
        """Return the time on the robot's clock."""

    def receive(self, topic: str, message: Operation) -> None:
        """Handle a message that a client published on `topic`, of the topic's type; raise
        RemoteError if it is unusable."""

    def refuse(self, topic: str) -> None:
        """Record that a message for `topic` does not fit the topic's type."""

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """Start an action goal; raise RemoteError if the action or its arguments are wrong."""

    def cancel_goal(self, key: GoalKey) -> None:
        """Cancel a goal, if it is still running."""


class RosbridgeServer:
    """Serves one robot to many clients. Call everything but `*_threadsafe` on its event loop."""

    def __init__(
        self,
        robot: Robot,
        config: ServerConfig,
        clock: Callable[[], float] = time.monotonic,
        ros_version: RosVersion = 2,
    ) -> None:
        self._robot = robot
        self._config = config
        self._clock = clock
        self._version = ros_version
        self._sequences = dict.fromkeys(robot.topics, 0)
        self._unsent: set[str] = set()
        self._sessions: dict[int, ClientSession] = {}
        self._latched: dict[str, Operation] = {}
        self._numbers = itertools.count(1)
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen; raises OSError if the address is not available."""
        self._loop = asyncio.get_running_loop()
        self._server = await serve(
            self._serve_client,
            self._config.host,
            self._config.port,
            compression=None,
            logger=handshakes,
            process_request=self._turn_away,
            max_size=self._config.max_message_bytes,
            max_queue=MOST_WAITING_MESSAGES,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port in use, also if the configured one is 0."""
        if self._server is None:
            raise RuntimeError("the server is not started, so it has no port yet")
        return int(self._server.sockets[0].getsockname()[1])

    def latch(self, topic: str, message: Operation) -> None:
        """Send this message to whoever subscribes `topic` from now on; call it before `start`."""
        self._latched[topic] = message

    def is_wanted(self, topic: str, within_s: float = math.inf) -> bool:
        """Whether a client would be sent a message of `topic` that is ready `within_s` from now.

        Call it from any thread, to avoid work that every client's throttle would drop.
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

        A message that cannot be encoded for some of them is logged once per topic; as with a real
        server, clients are not notified.
        """
        numbered = self._numbered(topic, message)
        publication = Publication(topic, numbered, self._type_of(topic), self._version)
        for session in self._sessions.values():
            try:
                session.offer(publication)
            except OperationError as error:
                if topic not in self._unsent and len(self._unsent) < LOGGED_TOPICS:
                    self._unsent.add(topic)
                    logger.error("%s", error)

    def _numbered(self, topic: str, message: Operation) -> Operation:
        """Return the message with the next header.seq, which ROS 1's publishers count."""
        header = message.get("header")
        if self._version == 2 or not isinstance(header, Mapping) or topic not in self._sequences:
            return message
        self._sequences[topic] += 1
        sequence = self._sequences[topic] % 2**32
        return {**message, "header": {**header, "seq": sequence}}

    def establish(self, topic: str, type_name: str | None) -> None:
        """See session.SessionHost."""
        established = self._type_of(topic)
        if type_name is None and established is None:
            raise OperationError(f"topic {topic} has no type yet and none was given; advertise it")
        if type_name is None:
            return
        if ros_types.fields_of(type_name, self._version) is None:
            raise OperationError(
                f"topic {topic}: unable to load type {brief(type_name)} on ROS {self._version};"
                f" known: {ros_types.alternatives(type_name, self._version)}"
            )
        if established is not None and not same_type(type_name, established):
            raise OperationError(
                f"topic {topic}: type is {type_name!r} but it is already established as"
                f" {established!r}"
            )

    def publish(self, topic: str, message: Operation) -> None:
        """See session.SessionHost: the robot gets the message first, then every subscriber, as in
        ROS with all fields of its type."""
        type_name = self._type_of(topic)
        if type_name is None:
            raise OperationError(f"topic {topic} has no type yet; advertise it")
        try:
            now_s = self._robot.time_s()
            whole = ros_types.convert(type_name, message, self._version, now_s)
        except ros_types.FieldError:
            self._robot.refuse(topic)
            raise
        self._robot.receive(topic, whole)
        self.broadcast(topic, whole)

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """See session.SessionHost."""
        self._robot.start_goal(key, action_type, args)

    def cancel_goal(self, key: GoalKey) -> None:
        """See session.SessionHost."""
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

    def _send_latched(self, session: ClientSession, greeted: set[str]) -> set[str]:
        """Send the latched topics that a client has newly subscribed; return all that it has
        received.

        `greeted` are those that it had received before.
        """
        subscribed = self._latched.keys() & session.subscriptions.keys()
        for topic in subscribed - greeted:
            kind = self._type_of(topic)
            session.offer(Publication(topic, self._latched[topic], kind, self._version))
        return subscribed

    def _turn_away(self, connection: ServerConnection, request: Request) -> Response | None:
        del request
        if len(self._sessions) < MOST_CLIENTS:
            return None
        return connection.respond(
            http.HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CLIENTS} clients are already connected\n"
        )

    async def _serve_client(self, connection: ServerConnection) -> None:
        waiting = asyncio.Event()
        outbox = ClientOutbox(self._config.backlog, waiting.set)
        session = ClientSession(next(self._numbers), self, outbox, self._clock, self._version)
        self._sessions[session.number] = session
        address = ":".join(map(str, (connection.remote_address or ())[:2]))
        logger.info("client %d connected from %s", session.number, address)
        sender = asyncio.create_task(_send_waiting(connection, outbox, waiting))
        greeted: set[str] = set()
        try:
            async for payload in connection:
                session.receive(payload, self._config.max_message_bytes)
                greeted = self._send_latched(session, greeted)
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
    connection: ServerConnection, outbox: ClientOutbox, waiting: asyncio.Event
) -> None:
    """Send the waiting payloads of one client, as fast as its socket accepts them."""
    while True:
        await waiting.wait()
        waiting.clear()
        while (payload := outbox.take()) is not None:
            try:
                await connection.send(payload)
            except ConnectionClosed:
                return
