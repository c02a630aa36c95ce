"""A policy of this project for clients of openpi's protocol. Observation maps → `Policy` → answers.

The map is that of the preset `crane_x7`: `observation/image` (H, W, 3) uint8 RGB, or the bytes of a
JPEG or PNG file; `observation/state` (8,) rad; `prompt`; for a policy of two cameras also
`observation/wrist_image`. The answer holds `actions` (T, 8) float32, joint targets in rad.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.policy_server import policy_io_file
from crane_x7_remote.policy_server.batches import Answer
from crane_x7_remote.policy_server.batches import Observation as Request
from crane_x7_remote.policy_server.server import CLIENT_KEY
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.policies.base import Interpreter, Policy, more_cameras
from crane_x7_vla_rl.prompt import MAX_INSTRUCTION_BYTES, clean_instruction
from crane_x7_vla_rl.robot import DOF, HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import WRIST, Image, JointState, Observation

PRESET: Final = "crane_x7"
IMAGE_KEY: Final = "observation/image"
WRIST_KEY: Final = "observation/wrist_image"
"""As openpi's LIBERO policies name it; only of a policy that wants the wrist camera."""
STATE_KEY: Final = "observation/state"
PROMPT_KEY: Final = "prompt"
RESET_KEY: Final = "reset"
"""True in the first observation of an episode, where the metadata say `accepts_reset`."""


class RequestError(RemoteError):
    """An observation lacks something or has another form; names the key."""


class InstructionError(RemoteError):
    """The policy does not follow this instruction; says what it understands."""


@dataclass(frozen=True)
class Kind:
    """What is served, for the metadata."""

    policy_type: str
    chunk_steps: int
    period_s: float
    cameras: tuple[str, ...] = ()
    """Cameras that the policy wants besides the base camera."""

    def metadata(self) -> dict[str, Any]:
        """Return what clients get on connecting."""
        content, _ = policy_io_file.read_map(PRESET)
        (base,) = content["images"]
        more = [{**base, "key": WRIST_KEY, "source": WRIST}] if WRIST in self.cameras else []
        action = {**content["action"], "period_s": self.period_s, "chunk_steps": self.chunk_steps}
        return {
            "policy_type": self.policy_type,
            "chunk_steps": self.chunk_steps,
            "period_s": self.period_s,
            "joint_names": list(JOINT_NAMES),
            "accepts_jpeg": True,
            "accepts_reset": True,
            "policy_io": {**content, "images": [base, *more], "action": action},
        }


class Shared:
    """One policy for all clients: their observations form one batch."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Return an answer per request; raises RequestError and what the policy raises.

        A reset is ignored: what other clients get must not depend on it.
        """
        return _answers(self._policy, requests)

    def forget(self, client: int) -> None:
        """The policy keeps nothing about a client."""


class PerClient:
    """One policy for each client, for policies that remember what they have seen."""

    def __init__(self, make: Callable[[], Policy]) -> None:
        self._make = make
        self._policies: dict[int, Policy] = {}

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """See Shared."""
        found = []
        for request in requests:
            client = request[CLIENT_KEY]
            if request.get(RESET_KEY) is True:
                self.forget(client)
            if client not in self._policies:
                self._policies[client] = self._make()
            found += _answers(self._policies[client], [request])
        return found

    def forget(self, client: int) -> None:
        """Drop the policy of a client that has left, or starts over."""
        self._policies.pop(client, None)


def try_out(policy: Policy, policy_type: str, instruction: str) -> Kind:
    """Predict once on a grey image, which also warms the policy up; raises what it raises."""
    joints = JointState(HOME_RAD, np.zeros(DOF))
    picture = np.full((480, 640, 3), 128, np.uint8)
    cameras = more_cameras(policy)
    seen = Observation(
        picture, joints, instruction, time.monotonic(), dict.fromkeys(cameras, picture)
    )
    chunk = policy.predict([seen])[0]
    policy.reset()
    return Kind(policy_type, len(chunk.position_rad), chunk.period_s, cameras)


def read_request(request: Request, time_s: float, cameras: Sequence[str] = ()) -> Observation:
    """Return the observation in a client's map, with the pictures of `cameras`, too; raises
    RequestError."""
    more = {WRIST: WRIST_KEY} if WRIST in cameras else {}
    needed = (IMAGE_KEY, *more.values(), STATE_KEY, PROMPT_KEY)
    for key in needed:
        if key not in request:
            got = ", ".join(sorted(set(request) - {CLIENT_KEY}))[:200] or "nothing"
            raise RequestError(
                f"the observation has no {key}; got {got}. This server expects"
                f" {', '.join(needed[:-1])} and {PROMPT_KEY}, see policy_io in its metadata"
            )
    return Observation(
        _image(request, IMAGE_KEY),
        _joints(request[STATE_KEY]),
        _prompt(request[PROMPT_KEY]),
        time_s,
        {name: _image(request, key) for name, key in more.items()},
    )


def _answers(policy: Policy, requests: Sequence[Request]) -> list[Answer]:
    began_s = time.monotonic()
    cameras = more_cameras(policy)
    observations = [read_request(request, began_s, cameras) for request in requests]
    if isinstance(policy, Interpreter):
        for each in observations:
            if (refusal := policy.refusal(each.instruction)) is not None:
                raise InstructionError(refusal)
    chunks = policy.predict(observations)
    infer_ms = (time.monotonic() - began_s) * 1e3
    return [
        {
            "actions": chunk.position_rad.astype(np.float32),
            "policy_timing": {"infer_ms": infer_ms},
        }
        for chunk in chunks
    ]


def _image(request: Request, key: str) -> Image:
    value = request[key]
    if isinstance(value, bytes):
        try:
            return frames.decode_image(frames.EncodedFrame(value, "", 0.0, 0.0))
        except MessageError as error:
            raise RequestError(f"{key}: {error}") from error
    if not isinstance(value, np.ndarray):
        raise RequestError(
            f"{key} is a {type(value).__name__}, expected (H, W, 3) uint8 RGB, or the bytes"
            " of a JPEG or PNG file"
        )
    if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8 or 0 in value.shape:
        raise RequestError(f"{key} is {value.shape} {value.dtype}, expected (H, W, 3) uint8 RGB")
    if math.prod(value.shape[:2]) > frames.MAX_IMAGE_PIXELS:
        raise RequestError(f"{key} is {value.shape}, expected fewer pixels")
    return value


def _joints(value: object) -> JointState:
    state = np.array(value) if isinstance(value, list) else value
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu" or state.shape != (DOF,):
        got = f"{state.shape} {state.dtype}" if isinstance(state, np.ndarray) else type(value)
        raise RequestError(f"{STATE_KEY} is {got}, expected ({DOF},) rad: {', '.join(JOINT_NAMES)}")
    position_rad = state.astype(np.float64)
    if not np.isfinite(position_rad).all():
        name = JOINT_NAMES[int(np.argmin(np.isfinite(position_rad)))]
        raise RequestError(f"{STATE_KEY}: {name} is not finite")
    return JointState(position_rad, np.full(DOF, np.nan))


def _prompt(value: object) -> str:
    text = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"{PROMPT_KEY} is {str(value)[:60]!r}, expected a task as text")
    words = clean_instruction(text)
    if len(words.encode()) > MAX_INSTRUCTION_BYTES:
        raise RequestError(f"{PROMPT_KEY} has more than {MAX_INSTRUCTION_BYTES} bytes")
    return words
