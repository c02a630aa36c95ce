"""PPO and GRPO in simulation."""
