"""Settings that a checkpoint's small files contain. A folder → values, each with its file.

`skills.json` comes first, then the configuration of the run that trained it (`train_config.yaml`),
the simulated demonstrations that it learned from (`demos.json`), and `policy.json`. Of LeRobot's
checkpoints, `policy_io.yaml` gives the period of their steps, config.json the size of their camera.
In `choose`, flags override them, and they override defaults. No weights are read, and torch is not
imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.fields import kinds
from crane_x7_vla_rl.policies import hub, lerobot_folder
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.skills import SKILLS, Skills
from crane_x7_vla_rl.scenes import WorldConfig

TRAIN_CONFIG: Final = "train_config.yaml"
POLICY: Final = "policy.json"
DEMOS: Final = "demos.json"
"""Written by `demos` next to a data set; fine-tuned checkpoints keep a copy."""
SCENE: Final = (
    "task", "colours", "spawn_range_m", "image_size", "home_noise_rad", "camera_shift_m",
    "camera_noise",
)  # fmt: skip
"""Fields of WorldConfig that a checkpoint may contain."""
MOST_HZ: Final = 10.0
"""Highest rate of the loop for a checkpoint that names only the period of its steps."""
GIVEN: Final = "given"
DEFAULT: Final = "default"
"""Sources that are not files."""


@dataclass(frozen=True)
class Said:
    """One value, and the file that holds it."""

    value: Any
    source: str


def said_by(checkpoint: str | Path, token: str | None = None) -> dict[str, Said]:
    """Return a checkpoint's settings: SCENE, `rate_hz`, `temperature`, `max_jump_rad`, and for the
    demo `instructions` and `lets_go`.

    `checkpoint` is a folder or Hub id; only its small files are fetched. The result is empty if it
    does not exist: loading its weights reports that. Raises PolicyLoadError for a file that cannot
    be read.
    """
    readers = {
        SKILLS: _skills, TRAIN_CONFIG: _training, DEMOS: _demonstrations, POLICY: _policy,
        lerobot_folder.POLICY_IO: _policy_io, lerobot_folder.CONFIG: _lerobot,
    }  # fmt: skip
    try:
        place = hub.peek(checkpoint, token=token, names=readers).folder
        place = lerobot_folder.find(place) or place
    except hub.Absent:
        return {}
    found: dict[str, Said] = {}
    for source, read in readers.items():
        for name, value in read(place):
            found.setdefault(name, Said(value, source))
    return found


def _skills(folder: Path) -> Iterator[tuple[str, Any]]:
    skills = Skills.beside(folder)
    if skills is None:
        return
    yield from (("task", skills.task), ("colours", skills.colours))
    yield from (("spawn_range_m", skills.spawn_range_m), ("rate_hz", skills.rate_hz))
    yield from (("temperature", skills.temperature), ("max_jump_rad", skills.max_jump_rad))
    yield from (("instructions", skills.instructions), ("lets_go", skills.lets_go))
    if skills.image_size is not None:
        yield "image_size", _size(skills.image_size)


def _training(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the scene and the evaluation settings of the reinforcement learning run."""
    path = folder / TRAIN_CONFIG
    if not path.is_file():
        return
    from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

    try:
        content = read_yaml(path)
    except (OSError, YamlError) as error:
        raise PolicyLoadError(f"{path}: {error}") from error
    content = content if isinstance(content, Mapping) else {}
    env, evaluation = content.get("env"), content.get("evaluation")
    known = kinds(WorldConfig)
    for name in SCENE:
        key = "env_id" if name == "task" else name
        if isinstance(env, Mapping) and key in env:
            value = env[key]
            if name == "colours" and isinstance(value, str):
                value = value.replace(",", " ").split()
            yield name, _checked(known[name], value, f"{path}: env.{key}")
    if isinstance(evaluation, Mapping) and "temperature" in evaluation:
        kind, where = kinds(ModelOptions)["temperature"], f"{path}: evaluation.temperature"
        yield "temperature", _checked(kind, evaluation["temperature"], where)


def _demonstrations(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the scene of the simulated demonstrations."""
    path = folder / DEMOS
    if not path.is_file():
        return
    try:
        world = json.loads(path.read_text(encoding="utf-8"))["world"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyLoadError(f"{path}: {error}, expected the scene under `world`") from error
    known = kinds(WorldConfig)
    for name in SCENE:
        if isinstance(world, Mapping) and name in world:
            value = world[name]
            if name == "image_size" and isinstance(value, list):
                value = "x".join(map(str, value))
            yield name, _checked(known[name], value, f"{path}: world.{name}")


def _checked(kind: Any, value: Any, where: str) -> Any:
    try:
        converted = kind.convert(value)
        kind.check(converted)
    except ValueError as expected:
        raise PolicyLoadError(f"{where} is {value}, expected {expected}") from None
    return converted


def _policy(folder: Path) -> Iterator[tuple[str, Any]]:
    path = folder / POLICY
    if not path.is_file():
        return
    try:
        period_s = json.loads(path.read_text(encoding="utf-8"))["period_s"]
        yield "rate_hz", min(MOST_HZ, 1 / period_s)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return  # loading the policy reports the problem


def _policy_io(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rate of a LeRobot checkpoint, whose chunks hold many steps of their period."""
    path = folder / lerobot_folder.POLICY_IO
    if not path.is_file():
        return
    from crane_x7_vla_rl.yaml_file import YamlError, read_yaml

    try:
        yield "rate_hz", min(MOST_HZ, 1 / float(read_yaml(path)["action"]["period_s"]))
    except (OSError, YamlError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return  # loading the policy reports the problem


def _lerobot(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the size of the camera's images, if the LeRobot policy has one camera."""
    config = lerobot_folder.read_config(folder)
    if config is None or not lerobot_folder.is_lerobot(config):
        return
    sizes = [
        feature.get("shape")
        for feature in config["input_features"].values()
        if isinstance(feature, Mapping) and feature.get("type") == "VISUAL"
    ]
    match sizes:
        case [[int(), int(height), int(width)]]:
            yield "image_size", (width, height)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


@dataclass(frozen=True)
class Chosen:
    """Values to use, by name, and the source of each."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    contradictions: tuple[str, ...] = field(default=())
    """Values of the user that contradict the checkpoint, one phrase each."""


def choose(
    given: Mapping[str, Any],
    said: Mapping[str, Said],
    defaults: Mapping[str, Any],
    flags: Mapping[str, str],
) -> Chosen:
    """Return a value for each name of `defaults`: the user's, else the checkpoint's, else default.

    `flags` are the names that the user types, for the phrases.
    """
    values, sources, phrases = {}, {}, []
    for name, default in defaults.items():
        if name in given:
            values[name], sources[name] = given[name], GIVEN
            if name in said and said[name].value != given[name]:
                says = "was trained on" if name in SCENE else "says"
                phrases.append(
                    f"{flags[name]} {shown(given[name])}: the checkpoint {says}"
                    f" {shown(said[name].value)} ({said[name].source})"
                )
        elif name in said:
            values[name], sources[name] = said[name].value, said[name].source
        else:
            values[name], sources[name] = default, DEFAULT
    return Chosen(values, sources, tuple(phrases))


def shown(value: Any) -> str:
    """Return a value as a user would type it."""
    if isinstance(value, tuple):
        return ("x" if all(isinstance(one, int) for one in value) else " ").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
