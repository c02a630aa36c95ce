"""The server's side of one client, without sockets: throttle over a handed-in clock, the outbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.sim_robot.outbox import MOST_REPLIES, MOST_WAITING_BYTES, ClientOutbox
from crane_x7_remote.sim_robot.session import (
    LONGEST_NAME,
    MOST_SUBSCRIPTIONS,
    ClientSession,
    GoalKey,
    OperationError,
    Publication,
)

TOPIC = "/camera"


class EveryTopic:
    """A hub that allows everything and keeps what it is given."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Mapping[str, Any]]] = []

    def establish(self, topic: str, type_name: str | None) -> None:
        pass

    def publish(self, topic: str, message: Mapping[str, Any]) -> None:
        self.published.append((topic, message))

    def start_goal(self, key: GoalKey, action_type: str, args: Mapping[str, Any]) -> None:
        pass

    def cancel_goal(self, key: GoalKey) -> None:
        pass


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> ClientSession:
    return ClientSession(1, EveryTopic(), ClientOutbox(None, lambda: None), clock)


def sent(session: ClientSession) -> list[dict[str, Any]]:
    operations = []
    while (payload := session.outbox.take()) is not None:
        operations.append(protocol.decode(payload))
    return operations


def subscribe(session: ClientSession, **fields: Any) -> None:
    session.receive(json.dumps({"op": "subscribe", "topic": TOPIC, "type": "x/Y"} | fields))


@pytest.mark.parametrize(
    ("throttle_ms", "rate_hz"), [(0, 30), (33, 30), (50, 15), (60, 15), (67, 10), (95, 10)]
)
def test_a_30_hz_camera_is_thinned_as_measured_at_a_real_server(
    session: ClientSession, clock: Clock, throttle_ms: int, rate_hz: float
) -> None:
    subscribe(session, throttle_rate=throttle_ms)
    for frame in range(300):
        clock.now_s = 100 + frame / 30
        session.offer(Publication(TOPIC, {"data": "x"}))
    assert len(sent(session)) == pytest.approx(rate_hz * 10, abs=1)


def test_queue_length_drops_nothing(session: ClientSession, clock: Clock) -> None:
    subscribe(session, queue_length=1)
    for frame in range(100):
        clock.now_s = 100 + frame / 30
        session.offer(Publication(TOPIC, {"data": "x"}))
    assert len(sent(session)) == 100


def test_cbor_wins_where_two_ids_differ(session: ClientSession) -> None:
    subscribe(session, id="a", compression="none")
    subscribe(session, id="b", compression="cbor")
    session.offer(Publication(TOPIC, {"data": b"x"}))
    assert isinstance(session.outbox.take(), bytes)
    assert session.outbox.take() is None, "one message per client, however many ids"


def test_a_message_is_encoded_once_for_all_clients() -> None:
    publication = Publication(TOPIC, {"data": b"x" * 1000})
    assert publication.payload("cbor") is publication.payload("cbor")
    assert publication.payload("none") is publication.payload("none")


def test_a_full_backlog_drops_the_oldest_message_and_counts_it() -> None:
    outbox = ClientOutbox(2, lambda: None)
    for payload in ("1", "2", "3"):
        outbox.message(payload)
    assert [outbox.take(), outbox.take(), outbox.take()] == ["2", "3", None]
    assert outbox.dropped == 1


def test_without_a_bound_nothing_is_dropped_as_at_a_real_server() -> None:
    outbox = ClientOutbox(None, lambda: None)
    for _ in range(10_000):
        outbox.message("x")
    assert outbox.dropped == 0


def test_answers_go_first_and_survive_a_full_backlog() -> None:
    outbox = ClientOutbox(1, lambda: None)
    outbox.message("old")
    outbox.reply("answer")
    outbox.message("new")
    assert [outbox.take(), outbox.take()] == ["answer", "new"]


def test_a_client_that_provokes_answers_without_reading_counts_as_flooding() -> None:
    outbox = ClientOutbox(1, lambda: None)
    for _ in range(MOST_REPLIES):
        assert not outbox.is_flooded
        outbox.reply("x")
    assert outbox.is_flooded


def test_what_waits_is_bounded_in_bytes_and_the_newest_survives() -> None:
    outbox = ClientOutbox(64, lambda: None)
    quarter = "x" * (MOST_WAITING_BYTES // 4)
    for number in range(10):
        outbox.message(f"{number}" + quarter[1:])
    assert outbox.dropped == 6
    assert [(outbox.take() or "")[:1] for _ in range(5)] == ["6", "7", "8", "9", ""]
    outbox.message("x" * 2 * MOST_WAITING_BYTES)
    assert len(outbox.take() or "") == 2 * MOST_WAITING_BYTES


def test_subscriptions_are_bounded_and_a_known_one_can_still_be_changed(
    session: ClientSession,
) -> None:
    for number in range(MOST_SUBSCRIPTIONS):
        subscribe(session, topic=f"/t{number % 7}", id=f"{number}")
    subscribe(session, topic="/t1", id="one more")
    (status,) = sent(session)
    assert f"at most {MOST_SUBSCRIPTIONS}" in status["msg"]
    subscribe(session, topic="/t1", id="1", throttle_rate=500)
    assert sent(session) == []
    assert session.subscriptions["/t1"].throttle_s["1"] == 0.5
    session.receive(json.dumps({"op": "unsubscribe", "topic": "/t1", "id": "1"}))
    subscribe(session, topic="/t1", id="one more")
    assert sent(session) == []


@pytest.mark.parametrize("name", ["id", "topic", "type", "compression"])
def test_a_long_name_is_told_by_its_length_alone(session: ClientSession, name: str) -> None:
    subscribe(session, **{name: "x" * (LONGEST_NAME + 1)})
    (status,) = sent(session)
    assert f"{name} has 257 characters" in status["msg"]
    assert len(json.dumps(status)) < 200
    assert session.subscriptions == {}


def test_a_list_of_strings_is_not_packed_for_ros_1() -> None:
    message = {"name": ["a"], "position": [1.0]}
    for version in (1, 2):
        publication = Publication("/joint_states", message, "sensor_msgs/JointState", version)  # type: ignore[arg-type]
        assert publication.payload("none")
        if version == 2:
            assert publication.payload("cbor")
        else:
            with pytest.raises(OperationError, match=r"JointState\.name"):
                publication.payload("cbor")
