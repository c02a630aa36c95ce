"""Watch the simulated robot from inside a network of the tests: `watch_robot.py WHAT SECONDS`.

Connects to rosbridge on 127.0.0.1:9090 and ends with 0 once WHAT is true of /sim/state, with 1 and
the last state on stderr after SECONDS. WHAT: `obeys` (the arm took at least one trajectory), `obeys
again` (it takes one now), `lifted COLOUR`, `rests` (no trajectory came for a second).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from crane_x7_remote.rosbridge.client import ClientConfig, RosbridgeClient
from crane_x7_remote.sim_robot.robot import SIM_STATE_TOPIC


def main(what: str, limit_s: float) -> int:
    """Return the exit code."""
    done = threading.Event()
    state: dict[str, Any] = {}
    verb, _, rest = what.partition(" ")
    since_s, first, accepted = time.monotonic(), None, -1

    def see(message: Mapping[str, Any]) -> None:
        nonlocal since_s, first, accepted
        state.update(json.loads(message["data"]))
        now_accepted = state["controller"]["accepted"]
        if now_accepted != accepted:
            since_s, accepted = time.monotonic(), now_accepted
        first = accepted if first is None else first
        if {
            "obeys": accepted > (first if rest == "again" else 0),
            "rests": time.monotonic() - since_s > 1,
            "lifted": bool(rest) and bool(state["cubes"].get(rest, {}).get("ever_lifted")),
        }[verb]:
            done.set()

    config = ClientConfig("127.0.0.1", 9090, camera_topic=None, instruction_topic=None,
                          joint_states_topic=None)  # fmt: skip
    with RosbridgeClient(config) as client:
        client.subscribe(SIM_STATE_TOPIC, "std_msgs/String", see)
        if done.wait(limit_s):
            return 0
    print(f"not within {limit_s:g} s: {what}; last state: {state}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
