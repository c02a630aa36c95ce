"""Topics of this project that loop, guard, simulated robot and `say` share."""

from __future__ import annotations

from typing import Final

STRING: Final = "std_msgs/String"
STATUS_TOPIC: Final = "/vla/status"
"""STRING, JSON: what each loop does now; see loop_status."""
CAMERA_POSE_TOPIC: Final = "/vla/camera_pose"
"""STRING, JSON, latched: where the robot's camera stands; see crane_x7_vla_rl.camera_pose."""
