"""The guard as a server. Clients' messages → rules → core → rosbridge, on one event loop.

Only the core decides about the arm; what passes is exactly what the core or the rules built.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.guard.clients import Client
from crane_x7_remote.guard.core import GuardCore, Output, Send, Tell
from crane_x7_remote.guard.door import STOP_PATH, Door, DoorConfig
from crane_x7_remote.guard.limits import CountedConnection
from crane_x7_remote.guard.requests import (
    Drive,
    Follow,
    Forward,
    GripperGoal,
    Nothing,
    Refused,
    Request,
    Say,
    Stop,
)
from crane_x7_remote.guard.rules import MAX_BYTES, STATE_TOPIC, STOP_TOPIC, AllowList
from crane_x7_remote.guard.uplink import Uplink, UplinkConfig
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.connection import LinkConfig

logger = logging.getLogger(__name__)
handshakes = logging.getLogger(__name__ + ".handshakes")
handshakes.setLevel(logging.CRITICAL)  # Connections of port scanners are not errors.

OPEN_TIMEOUT_S = 3.0
STATE_PERIOD_S = 1.0
END_S = 1.0
"""Longest wait for the arm to come to rest when the guard ends."""


@dataclass(frozen=True)
class GateConfig:
    """Where rosbridge is, who may connect, and which topics the core watches."""

    upstream: LinkConfig
    joint_states_topic: str
    arm_topic: str
    door: DoorConfig = field(default_factory=DoorConfig)


@dataclass
class Tally:
    """Counters of the gate, in addition to the core's."""

    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by kind, of clients that have disconnected."""
    clients: int = 0
    dropped_to_clients: int = 0
    faults: int = 0
    unreadable: int = 0


class Gate:
    """Guards one robot; call all methods on its event loop."""

    def __init__(self, config: GateConfig, rules: AllowList, core: GuardCore) -> None:
        self._config = config
        self._rules = rules
        self._core = core
        self._clock = asyncio.get_running_loop().time
        self._clients: dict[int, Client] = {}
        self._numbers = itertools.count(1)
        self._servers: list[Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._wake_s: float | None = None
        self._stopped: str | None = None
        self._heard_stop: bool | None = None
        """Newest Bool on /vla/stop on the robot's side, since the link to rosbridge came up."""
        self._stopped_by_topic = False
        """Whether a `true` there alone keeps everything stopped; a `false` there may end that."""
        self._complaints: set[str] = set()
        self.tally = Tally()
        subscribed = {
            topic: rules.subscribed[topic]
            for topic in (config.joint_states_topic, config.arm_topic)
            if topic
        }
        self.uplink = Uplink(
            UplinkConfig(
                config.upstream,
                subscribed | {STOP_TOPIC: "std_msgs/Bool"},
                rules.advertised,
                frozenset({STATE_TOPIC}),
            ),
            self._hear,
            self._on_upstream,
        )
        self._door = Door(config.door, self.uplink)

    # --- begin and end ---------------------------------------------------------------------------

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Serve on bound sockets, and connect to rosbridge."""
        for listener in listeners:
            server = await serve(
                self._serve_client,
                sock=listener,
                create_connection=self._door.connection_class,
                compression=None,
                logger=handshakes,
                max_size=MAX_BYTES,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=1.0,
                ping_interval=None,  # see clients.Client
                process_request=self._door.admit,
                server_header=None,
                write_limit=4096,
            )
            self._servers.append(server)
        for job in (self.uplink.run(), self._tell_state_regularly()):
            self._tasks.append(asyncio.get_running_loop().create_task(job))

    async def end(self, why: str) -> None:
        """Brake, wait until the arm is at rest, and close everything."""
        self.stop(why)
        until_s = self._clock() + END_S
        while (wait_s := min(self._moves_s(), until_s - self._clock())) > 0:
            logger.info("ending in %.2f s, with the arm at rest", wait_s)
            await asyncio.sleep(wait_s)  # meanwhile, the brake may be taken back and sent again
        self._tell_state()
        await asyncio.sleep(0.02)  # so that the last state is sent
        if self._wake is not None:
            self._wake.cancel()
        for server in self._servers:
            server.close(code=1001, reason=f"guard: {why}")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    def _moves_s(self) -> float:
        """Return how long the arm still moves, as far as the guard can wait for it."""
        ends_s = self._report().get("ends_s")
        if not isinstance(ends_s, int | float) or not self.uplink.is_up:
            return 0.0
        return float(ends_s) if math.isfinite(ends_s) else END_S

    # --- stop and resume -------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Brake, and pass nothing until `resume`."""
        self._stopped_by_topic = False
        self._ask(lambda now_s: self._core.stop(why, now_s))

    def resume(self, who: str) -> None:
        """Let trajectories pass again."""
        logger.info("resumed by %s", who)
        self._stopped_by_topic = False
        self._ask(self._core.resume)

    # --- clients ----------------------------------------------------------------------------------

    async def _serve_client(self, connection: ServerConnection) -> None:
        assert isinstance(connection, CountedConnection)
        is_driver = self._door.is_driver(connection)
        number = next(self._numbers)
        upstream = self._config.upstream if is_driver else None
        client = Client(number, connection, upstream, self._handle)
        client.may_resume = self._door.may_resume(connection)
        self._clients[number] = client
        self.tally.clients += 1
        host = str(connection.remote_address[0]) if connection.remote_address else "?"
        what = "" if is_driver else " to stop or resume"
        logger.info("client %d connected from %s%s", number, host, what)
        try:
            await client.serve()
        finally:
            del self._clients[number]
            self.tally.refused += client.refused
            self.tally.dropped_to_clients += client.dropped
            reason = connection.flooded or _why_closed(connection)
            logger.info("client %d disconnected (%s)", number, reason)
            if is_driver:
                clean = _is_clean(connection)
                self._ask(lambda now_s: self._core.client_left(number, now_s, clean))

    # --- what clients send -----------------------------------------------------------------------

    def _handle(self, client: Client, payload: str | bytes) -> None:
        """Carry out one message; every error is counted and answered."""
        try:
            request = self._rules.read(payload)
            if client.upstream is None and not isinstance(request, Stop | Follow | Nothing):
                raise Refused("place", f"{STOP_PATH} accepts {STOP_TOPIC} and {STATE_TOPIC} only")
            self._do(client, request)
        except Refused as refusal:
            client.refuse(refusal)
        except RemoteError as error:
            client.refuse(Refused("message", str(error)))
        except Exception as error:
            self._note_fault(error)

    def _do(self, client: Client, request: Request) -> None:
        if isinstance(request, Drive):
            take = self._core.take_trajectory
            if request.is_prediction:
                take = self._core.take_prediction
            message = request.message
            self._carry_out(lambda now_s: take(client.number, message, now_s))
        elif isinstance(request, Forward):
            client.forward(request)
        elif isinstance(request, GripperGoal):
            self._take_goal(client, request)
        elif isinstance(request, Say):
            self._say(request)
        elif isinstance(request, Stop):
            self._take_stop(client, request)
        elif isinstance(request, Follow):
            self._follow(client, request)

    def _take_goal(self, client: Client, goal: GripperGoal) -> None:
        why = self._core.take_goal(client.number, goal.position_rad, self._clock())
        if why is not None:
            raise Refused("goal", f"gripper goal: {why}", goal.operation_id, goal.action)
        for operation in goal.operations:
            client.forward(Forward(operation))

    def _say(self, request: Say) -> None:
        is_command = self._rules.published[request.topic] == "std_msgs/Float32MultiArray"
        if is_command and self._core.stopped is not None:
            raise Refused("stopped", f"{request.topic}: stopped: {self._core.stopped}")
        self.uplink.publish(request.topic, request.message)

    def _take_stop(self, client: Client, request: Stop) -> None:
        who = f"client {client.number}"
        reason = f": {request.reason}" if request.reason else ""
        if request.wanted:
            self.stop(f"{STOP_TOPIC} from {who}{reason}")
        elif client.may_resume:
            self.resume(f"{who}{reason}")
        else:
            client.send(self._state_operation(client.number))
            raise Refused("token", "resuming needs the token; set ROSBRIDGE_TOKEN or --token")
        client.send(self._state_operation(client.number))

    def _follow(self, client: Client, request: Follow) -> None:
        if not request.wanted:
            client.follows.discard(request.topic)
            return
        client.follows.add(request.topic)
        if request.topic == STATE_TOPIC:
            client.send(self._state_operation(client.number))
        else:
            client.send(self._stop_operation())

    # --- what the robot says ---------------------------------------------------------------------

    def _hear(self, topic: str, message: Mapping[str, Any]) -> None:
        try:
            if topic == self._config.joint_states_topic:
                self._carry_out(lambda now_s: self._core.hear_joints(message, now_s))
            elif topic == self._config.arm_topic:
                self._carry_out(lambda now_s: self._core.hear_echo(message, now_s))
            elif topic == STOP_TOPIC:
                self._hear_stop(message.get("data"))
        except RemoteError as error:
            self.tally.unreadable += 1
            if topic not in self._complaints:
                self._complaints.add(topic)
                logger.warning("cannot read a message on %s: %s", topic, error)
        except Exception as error:
            self._note_fault(error)

    def _hear_stop(self, wanted: object) -> None:
        """Process a Bool that was published on the robot's side."""
        if not isinstance(wanted, bool):
            raise messages.MessageError(
                f"std_msgs/Bool.data is {protocol.brief(wanted)}, expected true or false"
            )
        before, self._heard_stop = self._heard_stop, wanted
        who = f"{STOP_TOPIC} on the robot's side"
        if wanted:
            self._stopped_by_topic |= self._core.stopped is None
            self._ask(lambda now_s: self._core.stop(who, now_s))
        elif before and self._stopped_by_topic:
            self.resume(who)
        elif before is not False and self._core.stopped is not None:
            logger.warning("false from %s resumes nothing: use crane-x7-remote resume", who)

    def _on_upstream(self, is_up: bool) -> None:
        self._heard_stop = None  # a button may have been released and pressed meanwhile
        self._ask(lambda now_s: self._core.upstream_changed(is_up, now_s))
        if is_up:
            self._tell_state()
            return
        reason = "the guard lost its connection to rosbridge"
        for client in list(self._clients.values()):
            if client.upstream is not None:
                task = asyncio.get_running_loop().create_task(client.close(reason))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    # --- what the core says ----------------------------------------------------------------------

    def _ask(self, question: Callable[[float], list[Output]]) -> None:
        """As `_carry_out`, but an error stops the arm instead of being raised."""
        try:
            self._carry_out(question)
        except Exception as error:
            self._note_fault(error)

    def _carry_out(self, question: Callable[[float], list[Output]]) -> None:
        """Query the core and carry out its answer, immediately and in order."""
        for output in question(self._clock()):
            if isinstance(output, Send):
                self.uplink.publish(output.topic, output.message)
            elif isinstance(output, Tell) and output.driver in self._clients:
                level: Any = output.level
                self._clients[output.driver].tell(level, f"guard: {output.text}")
        self._set_timer()
        if self._core.stopped != self._stopped:
            self._stopped = self._core.stopped
            logger.warning("stopped: %s", self._stopped) if self._stopped else logger.info(
                "not stopped any more: trajectories pass"
            )
            self._tell_state()

    def _set_timer(self) -> None:
        wake_s = self._core.wake_s
        if wake_s == self._wake_s:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake, self._wake_s = None, wake_s
        if wake_s is not None:
            self._wake = asyncio.get_running_loop().call_at(wake_s, self._on_wake)

    def _on_wake(self) -> None:
        self._wake, self._wake_s = None, None
        self._ask(self._core.wake)

    def _note_fault(self, error: Exception) -> None:
        """Handle a bug in the guard: nothing passes until an operator resumes."""
        self.tally.faults += 1
        self._stopped_by_topic = False
        if self.tally.faults == 1:
            logger.error("internal error in the guard", exc_info=error)
        try:
            why = f"internal error in the guard: {type(error).__name__}: {error!s:.100}"
            for output in self._core.stop(why, self._clock()):
                if isinstance(output, Send):
                    self.uplink.publish(output.topic, output.message)
            self._stopped = self._core.stopped
            self._set_timer()
        except Exception:
            logger.exception("the guard cannot brake; nothing passes")

    # --- the state -------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        try:
            return self._core.report(self._clock())
        except Exception as error:
            logger.error("the core has no report", exc_info=error)
            return {}

    def state(self) -> dict[str, Any]:
        """Return the contents of the state topic."""
        refused = self.tally.refused.copy()
        dropped = self.tally.dropped_to_clients
        for client in self._clients.values():
            refused += client.refused
            dropped += client.dropped
        report = self._report()
        return report | {
            "stopped": self._core.stopped,
            "running": report.get("ends_s", 0.0) > 0,
            "gate": {
                "clients": sorted(self._clients),
                "clients_so_far": self.tally.clients,
                "rosbridge": self.uplink.is_up,
                "rosbridge_connections": self.uplink.connections,
                "refused": dict(refused),
                "turned_away": dict(self._door.turned_away),
                "dropped_to_clients": dropped,
                "dropped_to_rosbridge": self.uplink.dropped,
                "unreadable": self.tally.unreadable + self.uplink.unreadable,
                "faults": self.tally.faults,
            },
        }

    def _state_operation(self, you: int | None = None) -> dict[str, Any]:
        """Return the state for client `you`, which shows it that it is guarded; None: for ROS."""
        state = self.state() | ({} if you is None else {"you": you})
        return protocol.publish(STATE_TOPIC, messages.string(json.dumps(state)))

    def _stop_operation(self) -> dict[str, Any]:
        return protocol.publish(STOP_TOPIC, {"data": self._core.stopped is not None})

    def _tell_state(self) -> None:
        """Send the state to every client that listens, and to ROS."""
        state, stop = self._state_operation(), self._stop_operation()
        for client in self._clients.values():
            if STATE_TOPIC in client.follows:
                client.send(self._state_operation(client.number))
            if STOP_TOPIC in client.follows:
                client.send(stop)
        self.uplink.publish(STATE_TOPIC, state["msg"])

    async def _tell_state_regularly(self) -> None:
        while True:
            await asyncio.sleep(STATE_PERIOD_S)
            self._tell_state()


def _is_clean(connection: ServerConnection) -> bool:
    """Whether the client closed its connection in order."""
    closed = connection.protocol.close_rcvd
    by_us = connection.protocol.close_sent is not None and not (
        connection.protocol.close_rcvd_then_sent
    )
    return closed is not None and not by_us and closed.code in (1000, 1001)


def _why_closed(connection: ServerConnection) -> str:
    code, reason = connection.close_code, connection.close_reason
    return f"{code}{f': {protocol.brief(reason)}' if reason else ''}"
