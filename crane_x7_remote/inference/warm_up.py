"""First predictions, on synthetic images: they warm the policy up and show whether it uses them.

Policy, instruction → NotFiniteError for targets that are not finite, one warning if the prediction
is the same for every image. Two different predictions are enough; equal ones need more images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.policies.base import Policy, more_cameras, only_numbers, warming_up
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, Image, JointState, Observation

logger = logging.getLogger(__name__)

HEIGHT, WIDTH = 480, 640
BLOCK_PX = 60
TABLE_RGB = (170, 140, 110)
BLOCKS = {(300, 150): (200, 30, 30), (340, 420): (30, 60, 200), (230, 290): (40, 160, 60)}
"""Colours, RGB, of blocks on a table, by row and column of their corner."""


def warm_up(policy: Policy, instruction: str, time_s: float) -> None:
    """Run the policy on synthetic images, then reset it; raises what the policy raises.

    Joints, instruction and time are the same for all, and so are the random numbers of a policy
    that seeds them at `reset`: only the images differ. Raises NotFiniteError.
    """
    with warming_up(policy):
        _compare(policy, instruction, time_s)


def _compare(policy: Policy, instruction: str, time_s: float) -> None:
    """Ask until two predictions differ; say if none do."""
    found: list[Array] = []
    for picture in pictures():
        answer = _ask(policy, picture, instruction, time_s, is_first=not found)
        policy.reset()
        if answer is None or getattr(policy, "may_answer_alike", False):
            return
        if found and not np.array_equal(answer, found[0]):
            return
        found.append(answer)
    logger.warning(
        "the policy's prediction does not depend on the image: %d very different synthetic images"
        " gave the same targets, from %s to %s rad; if it should use the image, check its vision"
        " weights, or use an earlier checkpoint",
        len(found), *(np.round(found[0][row], 3).tolist() for row in (0, -1)),
    )  # fmt: skip


def pictures() -> Iterator[Image]:
    """Yield (480, 640, 3) uint8: grey, stripes with noise, blocks on a table, noise alone."""
    yield np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.stack([rows / 40, columns / 25, (rows + columns) / 60], axis=-1)
    noise = draw.normal(0, 25, (HEIGHT, WIDTH, 3))
    yield np.clip(128 + 100 * np.sin(waves) + noise, 0, 255).astype(np.uint8)
    table = np.full((HEIGHT, WIDTH, 3), TABLE_RGB, dtype=np.uint8)
    for (row, column), colour in BLOCKS.items():
        table[row : row + BLOCK_PX, column : column + BLOCK_PX] = colour
    yield table
    yield draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _ask(
    policy: Policy, picture: Image, instruction: str, time_s: float, is_first: bool
) -> Array | None:
    """Return the targets (T, 8), None if there are none to compare.

    After the first image, a step that is out of reach is a prediction as any other.
    """
    joints = JointState(HOME_RAD, np.zeros_like(HOME_RAD))
    cameras = more_cameras(policy)
    try:
        chunks: object = policy.predict(
            [Observation(picture, joints, instruction, time_s, dict.fromkeys(cameras, picture))]
        )
    except UnreachableError:
        if is_first:
            raise
        return None
    chunk = chunks[0] if isinstance(chunks, list) and len(chunks) == 1 else None
    if not isinstance(chunk, ActionChunk):
        return None  # the safety check will refuse it
    return only_numbers(chunk, instruction).position_rad
