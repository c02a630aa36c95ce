"""ACT on ROS bags of any arm, as a task of NVIDIA OSMO or by hand: bags → LeRobot → checkpoints."""
