"""`crane-x7-remote infer`, or `trial`, with a policy made for tests: a script.

infer_with_policy.py POLICY [trial] FLAGS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from unittest import mock

import numpy as np
from loop_rig import SwingingPolicy

from crane_x7_remote import cli
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.types import ActionChunk, Observation


class SlowPolicy(SwingingPolicy):
    """Computes for most of a tick, so that a signal nearly always comes in the middle of one."""

    def predict(self, observations: Sequence[Observation]) -> list[object]:
        time.sleep(0.08)
        return super().predict(observations)


def _broken(*_: object, **__: object) -> SwingingPolicy:
    raise PolicyLoadError("weights.safetensors is missing in /models/none")


def _failing(*_: object, **__: object) -> SwingingPolicy:
    policy = SwingingPolicy()
    policy.fault = lambda _: 1 / 0
    return policy


def _nan(*_: object, **__: object) -> SwingingPolicy:
    policy = SwingingPolicy()
    policy.fault = lambda _: ActionChunk(np.full((2, 8), np.nan), 0.1)
    return policy


def _hanging(*_: object, **__: object) -> SwingingPolicy:
    """Hangs while the task says so."""
    policy = SwingingPolicy()

    def predict(observation: Observation) -> object:
        if "hang" in observation.instruction:
            time.sleep(3600)
        return policy.swing(observation)

    policy.fault = predict
    return policy


POLICIES = {
    "hanging": _hanging,
    "slow": lambda *_, **__: SlowPolicy(),
    "broken": _broken,
    "failing": _failing,
    "nan": _nan,
}


if __name__ == "__main__":
    with mock.patch("crane_x7_vla_rl.policies.load.load_policy", POLICIES[sys.argv[1]]):
        words = sys.argv[2:]
        command = words.pop(0) if words[:1] == ["trial"] else "infer"
        sys.exit(cli.main([command, "--vla-policy", "color-servo", *words]))
