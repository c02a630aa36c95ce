"""No learning, no pass: reward on a toy rises, and does not where the policy gradient is off."""

from __future__ import annotations

from dataclasses import replace

import ppo_rig as rig
import pytest
import torch

from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig

UPDATES = 20
CONFIG = PpoConfig(
    learning_rate=3e-3, minibatch_size=32, micro_batch_size=32, target_kl=None,
    value=ValueConfig(learning_rate=3e-3, hidden=32),
)  # fmt: skip


@pytest.mark.timeout(300)  # 60 s are enough on an idle core
def test_reward_rises_and_adapters_move_but_not_without_the_policy_gradient() -> None:
    outcomes = {}
    for weight in (1.0, 0.0):
        config = replace(CONFIG, policy_coefficient=weight)
        agent = rig.agent(config, moved=False)
        before = rig.weights(agent)
        rewards = rig.learn(agent, config, UPDATES, torch.Generator().manual_seed(0))
        after = rig.weights(agent)
        still = [name for name in before if "lora_B" in name and not bool(after[name].any())]
        outcomes[weight] = (sum(rewards[:3]) / 3, sum(rewards[-5:]) / 5, still)
    first, last, still = outcomes[1.0]
    assert first < 0.7
    assert last > 0.9, outcomes
    assert not still
    assert outcomes[0.0][1] < 0.65, outcomes
