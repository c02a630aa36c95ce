"""`evaluate`: a checkpoint's errors on recordings. Flags and variables → parquet files.

The measuring is done by evaluate_process.py in LeRobot's environment.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

SCRIPT: Final = Path(__file__).with_name("evaluate_process.py")
DATA: Final = 4
"""Exit code of the script for a data set that does not fit."""
DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?|auto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FOLDER",
        help="pretrained_model, its checkpoint_<step>, or a folder with one such below it",
    )  # fmt: skip
    parser.add_argument("--dataset", type=Path, required=True, metavar="FOLDER",
                        help="a LeRobotDataset v3")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER",
                        help="where the tables go")  # fmt: skip
    parser.add_argument("--episodes", type=int, nargs="+", metavar="N",
                        help="default: EVAL_EPISODES, else all")  # fmt: skip
    parser.add_argument("--device", metavar="DEVICE", help="default: EVAL_DEVICE, else auto")


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0. Raises TrainingError and DataError."""
    from crane_x7_vla_rl.data.episode import DataError
    from crane_x7_vla_rl.training.lerobot.start import interpreter

    model = find(args.checkpoint)
    if not (args.dataset / "meta" / "info.json").is_file():
        raise DataError(f"--dataset {args.dataset}: holds no LeRobotDataset (meta/info.json)")
    config = trained_with(model)
    check_joints(config, args.dataset)
    listed, device = settings.evaluation()
    episodes = args.episodes if args.episodes is not None else numbers(listed)
    args.output.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(interpreter()), str(SCRIPT), str(model), str(args.dataset.absolute()),
         str(args.output.absolute()), ",".join(map(str, episodes)),
         checked_device(args.device or device or "auto"), config.get("action", "position")],
        env=settings.environment({"HF_HUB_OFFLINE": "1"}), stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    if done.returncode == DATA:
        raise DataError(f"{args.dataset}: {last}")
    if done.returncode:
        logger.error("%s", done.stderr[-4000:])
        raise TrainingError(f"the evaluation ended with code {done.returncode}: {last}")
    logger.info("evaluated: %s", args.output)
    return 0


def find(place: Path) -> Path:
    """Return the `pretrained_model` folder that a user's path means; raises ConfigError."""
    found = [place] if (place / "config.json").is_file() else [
        each.parent for each in sorted(place.rglob("pretrained_model/config.json"))
    ]  # fmt: skip
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise ConfigError(
            f"--checkpoint {place}: expected one pretrained_model folder there, found {listed}"
        )
    return found[0].absolute()


def trained_with(model: Path) -> dict[str, Any]:
    """Return the section `data` of the configuration beside a checkpoint; {} without one."""
    from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

    file = model.parent / "config.yaml"
    if not file.is_file():
        logger.warning("%s is missing: the policy's actions are taken for joint positions", file)
        return {}
    try:
        section: dict[str, Any] = read_yaml(file)["data"]
    except (YamlError, OSError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: cannot be read: {error!r}") from error
    return section


def check_joints(config: dict[str, Any], data: Path) -> None:
    """Raise DataError if the data set has other joints, or another order, than in training."""
    from crane_x7_vla_rl.data.episode import DataError
    from crane_x7_vla_rl.data.files import read_json

    trained = list(config.get("joints") or ())
    named = read_json(data / "meta" / "info.json").get("features", {}).get("action", {})
    there = named.get("names")
    if trained and isinstance(there, list) and there != trained:
        raise DataError(
            f"{data}: its action has the columns {', '.join(there)}, the policy was trained with"
            f" {', '.join(trained)}; convert the recordings with data.joints in that order"
        )


def numbers(text: str | None) -> list[int]:
    """Return the episodes of EVAL_EPISODES, separated by blanks or commas; raises ConfigError."""
    words = (text or "").replace(",", " ").split()
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ConfigError(
            f"EVAL_EPISODES={text!r}: {wrong[0]!r} is no episode, expected numbers such as 0 1 2 3"
        )
    return [int(word) for word in words]


def checked_device(name: str) -> str:
    """Return the device; auto: CUDA if there is one. Raises ConfigError."""
    if not DEVICE.fullmatch(name):
        raise ConfigError(f"--device (EVAL_DEVICE): {name!r}, expected auto, cpu, cuda or cuda:0")
    from crane_x7_vla_rl.policies import cuda_devices

    count = cuda_devices.count() or 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name != "cpu" and not count:
        raise ConfigError(f"--device (EVAL_DEVICE): {name}, but this machine has no GPU; take cpu")
    return name
