"""A policy on a server. `ModelOptions` → `RemotePolicy`: an observation → the server's chunk.

The loop treats it as any other policy: its chunks go through overlap, expiry, latency compensation
and every limit. What the server does wrong raises, which the loop turns into a `Hold`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.policy_server.client import PolicyClient, PolicyServerError
from crane_x7_remote.policy_server.ensemble import TemporalEnsemble
from crane_x7_remote.policy_server.policy_io import PolicyIO, actions_of, to_chunk, to_request
from crane_x7_remote.policy_server.policy_io_file import PolicyIoError
from crane_x7_vla_rl.policies.base import ModelOptions, Policy, PolicyLoadError
from crane_x7_vla_rl.types import ActionChunk, Array, Observation

logger = logging.getLogger(__name__)

FIRST_ANSWER_S: Final = 300.0
"""Limit of the first answer: openpi's server compiles its model then, which takes minutes. And of
each answer before anything drives: a machine that has just started is slow for longer."""
BEYOND_S: Final = 0.05
"""The client gives up this much after the loop has: the loop then names the timeout."""
LATENCIES: Final = 20
"""Latest durations that the delay for real-time chunking is the largest of."""
TURN_RAD: Final = 2 * math.pi
"""No joint turns this far: a larger target is in another unit."""


class RemotePolicy:
    """Asks a policy server; slot 0 only, as the loop drives one robot."""

    def __init__(
        self,
        client: PolicyClient,
        io: PolicyIO,
        *,
        jpeg_quality: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The client must be connected, so that its metadata are the server's."""
        self._client = client
        self._io = io
        self._jpeg_quality = jpeg_quality
        self._clock = clock
        self._promised = _promise(client.metadata)
        self._is_first = self._starts_anew = True
        self._is_warming_up = False
        self._previous: tuple[float, Array] | None = None
        """When the image of the previous chunk was taken, and its actions (T, D)."""
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)
        self._hinted = False
        self._ensemble = _ensemble(client.metadata, client.url)
        self._task: str | None = None

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return the server's chunk for each observation.

        Raises PolicyServerError and AnswerError; the next call connects again if need be.
        """
        return [self._ask(observation) for observation in observations]

    @contextlib.contextmanager
    def warming_up(self) -> Iterator[None]:
        """See policies.base.Timed."""
        self._is_warming_up = True
        try:
            yield
        finally:
            self._is_warming_up = False

    @property
    def more_cameras(self) -> tuple[str, ...]:
        """See policies.base.CameraChooser."""
        return self._io.more_cameras

    def reset(self) -> None:
        """Forget the previous chunk; the next request tells the server, if it takes that."""
        self._previous = None
        self._starts_anew = True
        if self._ensemble is not None:
            self._ensemble.reset()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, observation: Observation) -> ActionChunk:
        request = to_request(observation, self._io, self._jpeg_quality) | self._extras(observation)
        began_s = self._clock()
        may_compile = self._is_first or self._is_warming_up
        answer = self._client.infer(request, FIRST_ANSWER_S if may_compile else None)
        if _promise(self._client.metadata) != self._promised:
            raise PolicyServerError(
                f"{self._client.url} was started again with another policy or policy_io; start the"
                " loop again, too"
            )
        if not may_compile:
            self._latencies_s.append(self._clock() - began_s)
        actions = actions_of(answer, self._io)
        chunk = to_chunk(answer, self._io, observation.joints)
        if self._io.action.chunk_steps is None:
            self._io = self._io.with_steps(len(actions))
        self._is_first = self._starts_anew = False
        self._previous = (observation.time_s, actions)
        self._hint_at_unit(chunk)
        return chunk if self._ensemble is None else self._with_earlier(observation, chunk)

    def _with_earlier(self, observation: Observation, chunk: ActionChunk) -> ActionChunk:
        """Return the mean with the earlier chunks of the same task; a chunk that is not finite is
        returned as it is, for the safety check, and never remembered."""
        assert self._ensemble is not None
        if observation.instruction != self._task:
            self._ensemble.reset()
            self._task = observation.instruction
        if not np.isfinite(chunk.position_rad).all():
            return chunk
        return self._ensemble.add(observation.time_s, chunk)

    def _extras(self, observation: Observation) -> dict[str, Any]:
        """Return what servers of this project take besides the observation."""
        extras: dict[str, Any] = {}
        metadata = self._client.metadata
        if self._starts_anew and metadata.get("accepts_reset") is True:
            extras["reset"] = True
        if metadata.get("rtc") is True and self._previous is not None and self._latencies_s:
            taken_s, actions = self._previous
            period_s = self._io.action.period_s
            passed = max(round((observation.time_s - taken_s) / period_s), 0)
            if passed < len(actions):
                extras["rtc/previous"] = actions[passed:].astype(np.float32)  # (k, D)
                extras["rtc/delay_steps"] = math.ceil(max(self._latencies_s) / period_s)
        return extras

    def _hint_at_unit(self, chunk: ActionChunk) -> None:
        """Log once that targets look like degrees; the limits refuse them in any case."""
        most = float(np.nanmax(np.abs(chunk.position_rad), initial=0.0))
        if most > TURN_RAD and not self._hinted:
            self._hinted = True
            logger.warning(
                "%s: targets up to %.1f rad, more than any joint turns, with action.unit %s in %s:"
                " is the policy's unit another one (rad, deg, percent)?",
                self._client.url, most, self._io.action.columns.unit, self._io.source,
            )  # fmt: skip


def _ensemble(metadata: Mapping[str, Any], url: str) -> TemporalEnsemble | None:
    """Return the ensemble that the server's metadata want; raises PolicyServerError."""
    coefficient = metadata.get("temporal_ensemble_coeff")
    if coefficient is None:
        return None
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
        coefficient = math.nan
    if not math.isfinite(coefficient):
        raise PolicyServerError(
            f"{url} states temporal_ensemble_coeff"
            f" {metadata['temporal_ensemble_coeff']!r:.40}, expected a number such as 0.01"
        )
    return TemporalEnsemble(float(coefficient))


def load(options: ModelOptions) -> Policy:
    """Return the policy of `options.server`, connected; raises PolicyLoadError."""
    assert options.server is not None  # policies.load.check refuses that
    try:
        client = PolicyClient(
            options.server, options.api_key, answer_timeout_s=options.answer_timeout_s + BEYOND_S,
            proxy=options.proxy,
        )  # fmt: skip
        # A wrong file is found before anything is sent.
        io = None if options.policy_io is None else policy_io_file.read(options.policy_io)
        return connected(client, io, options.jpeg_quality, options.more_cameras)
    except (PolicyServerError, PolicyIoError) as error:
        raise PolicyLoadError(str(error)) from error


def connected(
    client: PolicyClient,
    io: PolicyIO | None,
    jpeg_quality: int | None = None,
    more_cameras: Collection[str] = (),
) -> RemotePolicy:
    """Return the policy behind `client`, after connecting; without `io`, the server must send one.

    `more_cameras` are those besides the base camera whose images every observation has. Raises
    PolicyServerError and PolicyIoError.
    """
    metadata = client.metadata
    if io is None:
        if not isinstance(metadata.get("policy_io"), Mapping):
            raise PolicyIoError(
                f"{client.url} does not state what its inputs and outputs are (no policy_io in its"
                " metadata): set POLICY_IO to a file, or to one of"
                f" {', '.join(policy_io_file.PRESETS)}"
            )
        io = policy_io_file.from_map(metadata["policy_io"], f"policy_io of {client.url}")
    steps = metadata.get("chunk_steps")
    if io.action.chunk_steps is None and isinstance(steps, int) and steps > 0:
        io = io.with_steps(steps)
    policy_io_file.check_cameras(io, more_cameras)
    _check_sizes(metadata, io, client.url)
    if jpeg_quality is not None:
        _check_jpeg(metadata, io, client.url)
    logger.info(
        "policy server %s: %s, %s", client.url,
        metadata.get("policy_type", "a policy without a name"), io.source,
    )  # fmt: skip
    return RemotePolicy(client, io, jpeg_quality=jpeg_quality)


def _check_sizes(metadata: Mapping[str, Any], io: PolicyIO, url: str) -> None:
    """Raise PolicyIoError if the server states the sizes of its images and `io` has others."""
    stated = metadata.get("images")
    if not isinstance(stated, Mapping):
        return
    for at, image in enumerate(io.images):
        size = stated.get(".".join(image.key))
        if size is not None and (image.form.size is None or [*image.form.size] != [*size]):
            wanted = "x".join(map(str, size))
            raise PolicyIoError(
                f"{io.source}: images[{at}].size is not that of the policy's training: {url} states"
                f" {wanted}; set size: {wanted}, and resize to what training did (stretch, pad or"
                " crop)"
            )


def _check_jpeg(metadata: Mapping[str, Any], io: PolicyIO, url: str) -> None:
    if metadata.get("accepts_jpeg") is not True:
        raise PolicyServerError(f"{url} does not take JPEG; unset POLICY_JPEG")
    if not all(image.form.is_plain for image in io.images):
        raise PolicyIoError(
            f"{io.source}: POLICY_JPEG needs images with layout hwc, colour rgb and range uint8"
        )


def _promise(metadata: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what must stay the same when the server is started again."""
    return tuple(repr(metadata.get(name)) for name in ("policy_io", "policy_type", "chunk_steps"))
