"""The simulated CRANE-X7: importing this registers the agent and the tasks with ManiSkill."""
