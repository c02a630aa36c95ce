"""The loop's side of the link to the robot: its clocks, its delay, other loops, the guard.

- `ports`        what the loop needs from its client
- `clock_check`  whether the robot's clocks allow driving
- `delay`        how long a trajectory takes to reach the robot
- `peers`        whose trajectories reach the robot
- `guard_state`  the state of the guard next to the robot
- `echoes`       the topics that feed the last three
"""
