"""Topics of this project that loop, guard, simulated robot and `say` share."""

from __future__ import annotations

from typing import Final

STRING: Final = "std_msgs/String"
STATUS_TOPIC: Final = "/vla/status"
"""STRING, JSON: the state of each loop; see loop_status."""
RECORD_TOPIC: Final = "/vla/record"
"""STRING: start, stop or discard an episode; see record_status."""
RECORD_STATUS_TOPIC: Final = "/vla/record_status"
"""STRING, JSON: the state of a recorder; see record_status."""
CAMERA_POSE_TOPIC: Final = "/vla/camera_pose"
"""STRING, JSON, latched: pose of the robot's camera; see crane_x7_vla_rl.camera_pose."""
