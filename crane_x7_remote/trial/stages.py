"""The stages of a trial and the keys of each, for the screen."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from crane_x7_remote.system.keys import ESCAPE


class Stage(StrEnum):
    """What the trial does."""

    HOMING = "drives home"
    READY = "ready: reset the scene"
    DRIVING = "the policy drives"
    PAUSED = "paused"
    LEADER = "taken over: the leader arm drives"
    HAND = "taken over: by hand"
    STOPPED = "stopped"


KEYS: Final = {
    Stage.HOMING: "p pause · Space stop · q quit",
    Stage.READY: "Enter start · n skip · Space stop · q quit",
    Stage.DRIVING: "s success · f failure · n skip · r retry · p pause · t take over · Space stop"
    " · q quit",
    Stage.PAUSED: "p continue · s success · f failure · n skip · r retry · t take over · q quit",
    Stage.LEADER: "t give back · s success · f failure · n skip · r retry · Space stop · q quit",
    Stage.HAND: "t give back · s success · f failure · n skip · r retry · Space stop · q quit",
    Stage.STOPPED: "p continue · s success · f failure · n skip · r retry · q quit",
}
STOP_KEYS: Final = (" ", ESCAPE)
START_KEYS: Final = ("\r", "\n")
RESTING: Final = (Stage.PAUSED, Stage.STOPPED)
