"""One thread that runs the policy. Requests of all clients → batches → answers on the event loop.

No request waits for others: while the policy works on one batch, the next one gathers. A request
whose client has left is dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Observation = dict[str, Any]
Answer = dict[str, Any]


class AnswerError(Exception):
    """The function that answers did not return one map per observation."""


class WithdrawnError(Exception):
    """No answer is needed any more: the client has left, or the server is ending."""


@dataclass(frozen=True)
class Reply:
    """An answer and how long it took."""

    answer: Answer
    infer_ms: float
    """The policy's time for the whole batch."""
    wait_ms: float
    """From the request's arrival to the start of its batch."""
    batch: int
    """Number of requests in the batch."""


@dataclass(eq=False)
class _Request:
    observation: Observation
    is_wanted: Callable[[], bool]
    reply: asyncio.Future[Reply]
    arrived_s: float = field(default_factory=time.monotonic)


class BatchThread:
    """Calls `answer` with lists of at most `max_batch` observations, on one daemon thread.

    A daemon, because a policy that hangs must not keep the process from ending.
    """

    def __init__(
        self, answer: Callable[[list[Observation]], Sequence[Answer]], max_batch: int
    ) -> None:
        """Start the thread; call it on the event loop that `submit` is used on."""
        self._answer = answer
        self._max_batch = max_batch
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Request] = []
        self._unanswered: set[asyncio.Future[Reply]] = set()
        """Used on the event loop alone."""
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    async def submit(self, observation: Observation, is_wanted: Callable[[], bool]) -> Reply:
        """Return the policy's reply; raises what the policy raised, and WithdrawnError.

        `is_wanted` is called on the policy's thread, right before the batch is formed.
        """
        request = _Request(observation, is_wanted, self._loop.create_future())
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()
        self._unanswered.add(request.reply)
        try:
            return await request.reply
        finally:
            self._unanswered.discard(request.reply)

    def close(self) -> None:
        """Withdraw every request, and end the thread after its present batch; does not wait."""
        for reply in self._unanswered:
            if not reply.done():
                reply.set_exception(WithdrawnError())
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._answer_batch(batch)

    def _next(self) -> list[_Request] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            taken = self._waiting[: self._max_batch]
            del self._waiting[: self._max_batch]
        wanted = [request for request in taken if request.is_wanted()]
        for request in taken:
            if request not in wanted:
                self._deliver(request, WithdrawnError())
        return wanted

    def _answer_batch(self, batch: list[_Request]) -> None:
        try:
            replies: Sequence[Reply | Exception] = self._call(batch)
        except Exception as error:
            # One observation may be at fault: the other clients' must not fail with it.
            replies = [error] if len(batch) == 1 else [self._alone(request) for request in batch]
        for request, reply in zip(batch, replies, strict=True):
            self._deliver(request, reply)

    def _alone(self, request: _Request) -> Reply | Exception:
        try:
            return self._call([request])[0]
        except Exception as error:
            return error

    def _call(self, batch: list[_Request]) -> list[Reply]:
        began_s = time.monotonic()
        answers = self._answer([request.observation for request in batch])
        infer_ms = (time.monotonic() - began_s) * 1e3
        if len(answers) != len(batch) or not all(isinstance(each, dict) for each in answers):
            kinds = [type(each).__name__ for each in answers]
            raise AnswerError(f"the policy answered {kinds} to {len(batch)} observations")
        return [
            Reply(answer, infer_ms, (began_s - request.arrived_s) * 1e3, len(batch))
            for request, answer in zip(batch, answers, strict=True)
        ]

    def _deliver(self, request: _Request, reply: Reply | Exception) -> None:
        def deliver() -> None:
            if request.reply.done():  # withdrawn
                return
            if isinstance(reply, Reply):
                request.reply.set_result(reply)
            else:
                request.reply.set_exception(reply)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
