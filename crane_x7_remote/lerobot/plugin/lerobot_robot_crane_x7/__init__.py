"""CRANE-X7 over rosbridge for LeRobot. Importing it registers both devices.

`--robot.type=crane_x7_rosbridge` and `--teleop.type=crane_x7_leader`. LeRobot finds a device's
class by its config's name, in this module.
"""

from lerobot_robot_crane_x7.configs import CraneX7LeaderConfig, CraneX7RosbridgeConfig
from lerobot_robot_crane_x7.leader import CraneX7Leader
from lerobot_robot_crane_x7.robot import CraneX7Rosbridge

__all__ = ["CraneX7Leader", "CraneX7LeaderConfig", "CraneX7Rosbridge", "CraneX7RosbridgeConfig"]
