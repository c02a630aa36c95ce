"""`policy_io.yaml` of a checkpoint: which joints, unit, cameras and period the policy knows.

Content of the data set's info.json and options of the policy → YAML in the format of policy_io
files. It is left out where the data set does not say which joints its columns are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot.columns import find_columns
from crane_x7_vla_rl.robot import DOF, JOINT_NAMES
from crane_x7_vla_rl.types import WRIST

logger = logging.getLogger(__name__)

CAMERAS: Final = "observation.images."
STATE, ACTION = "observation.state", "action"
WRIST_WORDS: Final = frozenset({WRIST, "hand", "gripper"})
CHUNK: Final = ("chunk_size", "action_chunk_size")
"""Names of the steps of a prediction; of other policies they are not stated."""


def policy_io(info: Mapping[str, Any], policy: Mapping[str, Any], unit: str = "rad") -> str | None:
    """Return the text of policy_io.yaml; None if the data set does not name this arm's joints.

    `unit` is the unit of its joints, as the user says.
    """
    features = info.get("features") or {}
    joints = {name: _joints(info, name) for name in (STATE, ACTION)}
    cameras = sorted(name for name in features if name.startswith(CAMERAS))
    if None in joints.values() or not cameras or not info.get("fps"):
        logger.warning(
            "the data set does not name the arm's joints, a camera and its rate: checkpoints get no"
            " policy_io.yaml; to drive with them set POLICY_IO"
        )
        return None
    renamed = policy.get("rename_map") or {}
    content = {
        "images": [
            _image(features[name], renamed.get(name, name), _source(name, cameras))
            for name in cameras
        ],
        "state": [{"key": STATE, "joints": joints[STATE], "unit": unit}],
        "prompt": "task",
        "action": {
            "key": "actions", "kind": "joint_target", "joints": joints[ACTION], "unit": unit,
            "period_s": round(1 / float(info["fps"]), 6), **_chunk(policy),
        },
    }  # fmt: skip
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text


def _joints(info: Mapping[str, Any], feature: str) -> str | list[str | None] | None:
    """Return `all`, the joint of each column, or None if they are not known."""
    try:
        found = find_columns(Path("meta/info.json"), info)[feature]
    except (DataError, KeyError):
        return None
    places = [int(place) for place in found.places]
    width = int(info["features"][feature]["shape"][0])
    if places == list(range(DOF)) and width == DOF:
        return "all"
    if len(set(places)) != DOF:
        return None
    names: list[str | None] = [None] * width
    for joint, place in enumerate(places):
        names[place] = JOINT_NAMES[joint]
    return names


def _source(camera: str, cameras: list[str]) -> str:
    """Return the robot's camera that a data set's is: of several, the one on the gripper by its
    name. Two that are left for one of the robot's are refused when the policy drives."""
    words = re.split(r"[^a-z]+", camera.removeprefix(CAMERAS).lower())
    return WRIST if len(cameras) > 1 and not WRIST_WORDS.isdisjoint(words) else "camera"


def _image(feature: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """Return a camera; pictures keep the size of the training, whatever the robot's camera has."""
    shape = [int(each) for each in feature["shape"]]
    height, width = shape[-2:] if shape[0] == 3 else shape[:2]
    return {
        "key": key, "source": source, "size": f"{width}x{height}", "resize": "stretch",
        "layout": "hwc", "colour": "rgb", "range": "uint8",
    }  # fmt: skip


def _chunk(policy: Mapping[str, Any]) -> dict[str, int]:
    found = next((policy[name] for name in CHUNK if policy.get(name)), None)
    return {} if found is None else {"chunk_steps": int(found)}
