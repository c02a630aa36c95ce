"""LeRobot data sets on disk: v3 and v2.1. Episodes → files, files → an `EpisodeSource`."""

from crane_x7_vla_rl.data.lerobot.layout import Extras
from crane_x7_vla_rl.data.lerobot.reader import LeRobotSource, open_lerobot
from crane_x7_vla_rl.data.lerobot.v21_writer import V21Writer
from crane_x7_vla_rl.data.lerobot.writer import LeRobotWriter, recover

__all__ = ["Extras", "LeRobotSource", "LeRobotWriter", "V21Writer", "open_lerobot", "recover"]
