"""The policies that this room adds to the table of policies. `ModelOptions` → a `Policy`.

Entry points of the group `crane_x7_vla_rl.policies` name these two functions (see pyproject.toml).
Each imports its policy when it is called.
"""

from __future__ import annotations

from crane_x7_vla_rl.policies.base import ModelOptions, Policy


def remote(options: ModelOptions) -> Policy:
    """Return the policy of the server that `options.server` names; raises PolicyLoadError."""
    from crane_x7_remote.policy_server import remote as room

    return room.load(options)


def lerobot(options: ModelOptions) -> Policy:
    """Return the policy of a LeRobot checkpoint, in a process of another environment; raises
    PolicyLoadError."""
    from crane_x7_remote.policy_server import lerobot_child

    return lerobot_child.load(options)
