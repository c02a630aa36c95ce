"""The loop's side of the link to the robot: its clocks, its delay, other loops, the guard.

- `ports`        what the loop needs from its client
- `clock_check`  whether the robot's clocks allow to drive
- `delay`        how long a trajectory takes to the robot
- `peers`        whose trajectories arrive there
- `guard_state`  what the guard beside the robot says
- `echoes`       the topics that tell the last three
"""
