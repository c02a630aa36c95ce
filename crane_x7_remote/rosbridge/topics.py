"""Topics of this project that loop, guard, simulated robot and `say` share."""

from __future__ import annotations

from typing import Final

STRING: Final = "std_msgs/String"
STATUS_TOPIC: Final = "/vla/status"
"""STRING, JSON: the state of each loop; see loop_status."""
CAMERA_POSE_TOPIC: Final = "/vla/camera_pose"
"""STRING, JSON, latched: pose of the robot's camera; see crane_x7_vla_rl.camera_pose."""
