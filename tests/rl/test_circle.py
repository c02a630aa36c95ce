"""The whole circle: a rollout, an update, a checkpoint, a policy that drives over rosbridge."""

from __future__ import annotations

from pathlib import Path

import pytest
import rl_rig
import torch
import training_rig
from loop_rig import FaultyRobot, RunningLoop, SwingingPolicy

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.training.checkpoints import ship
from crane_x7_vla_rl.types import ActionChunk, Observation

pytestmark = pytest.mark.timeout(training_rig.PATIENCE_S + 100)
WITH_PATIENCE = {"policy_timeout_s": 60.0, "validity_s": 20.0, "max_frame_age_s": 20.0}
"""A busy machine may need seconds for what takes milliseconds."""


class Trained(SwingingPolicy):
    """The policy of a checkpoint; its instructions and targets are kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load_policy("openvla", ModelOptions(path=str(folder), temperature=1.0))
        self.chunks: list[ActionChunk] = []

    def swing(self, observation: Observation) -> ActionChunk:
        (chunk,) = self.model.predict([observation])
        self.chunks.append(chunk)
        return chunk


def test_what_reinforcement_learning_leaves_drives_a_robot_over_rosbridge(tmp_path: Path) -> None:
    """Adapters are trained; merged and made small, as `scripts/ship-policy` does, they drive."""
    rl_rig.train(tmp_path / "run", "--num-updates", "1")
    learned, small = tmp_path / "run" / "last", tmp_path / "small"
    assert not (learned / "model.safetensors").exists()
    small.mkdir()
    ship.write(str(learned), small)
    merged, stored = (loading.load(path).model.state_dict() for path in (learned, small))
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(stored[name], merged[name].half().float())
    policy = Trained(small)
    with FaultyRobot() as robot, RunningLoop(robot.port, policy, **WITH_PATIENCE) as running:
        running.wait_driving(60.0)
        robot.assert_nothing_bad_arrived()
    assert policy.chunks[-1].period_s == 0.2
    assert set(policy.instructions) == {"pick up the object"}
