"""LeRobotDataset v3 on disk. Episodes → files, files → an `EpisodeSource`."""

from crane_x7_vla_rl.data.lerobot.reader import LeRobotSource, open_lerobot
from crane_x7_vla_rl.data.lerobot.writer import LeRobotWriter

__all__ = ["LeRobotSource", "LeRobotWriter", "open_lerobot"]
