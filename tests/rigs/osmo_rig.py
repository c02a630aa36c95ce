"""A UR10e's bags, and workflows run as OSMO's controller runs them: files, tokens, inputs, scripts.

`Controller` renders a workflow with the checker's code, writes each task's `files`, replaces tokens
by folders, sets `environment` and `credentials`, and runs `command` and `args`. Absolute paths of
the container (/workspace, /data, /output) are put below the task's own folder, in every text.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rosbags_rig
import yaml
from osmo_check.workflow import Given, check
from places import ROOT
from rosbags.rosbag2 import StoragePlugin

UR10E = (
    "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint",
    "shoulder_pan_joint",
)  # fmt: skip
"""In the order in which its driver publishes them."""
IMAGE = "/camera/color/image_raw"
JOINTS = "/joint_states"
CONFIGS = ROOT / "configs/osmo"
CONTAINER = re.compile(r"(?<![\w.])/(workspace|data|output)(?=[/\s\"':]|$)", re.M)


def joints_at(time_s: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(6,) rad: each joint turns at its own speed."""
    return 0.1 * np.arange(6) + 0.05 * seed + 0.02 * np.arange(1, 7) * time_s


def bag(
    path: Path,
    seed: int = 0,
    seconds: float = 1.0,
    storage: StoragePlugin = StoragePlugin.MCAP,
    size: tuple[int, int] = (96, 64),
    extra: list[rosbags_rig.Sent] | None = None,
) -> Path:
    """Write a recording: images at 30 Hz, joints at 100 Hz."""
    width, height = size
    sent: list[rosbags_rig.Sent] = list(extra or [])
    for number in range(round(seconds * 30)):
        pixels = np.full((height, width, 3), 4 * number % 250, np.uint8)
        time_s = number / 30
        sent.append((time_s, IMAGE, rosbags_rig.raw_image(time_s, pixels, "rgb8")))
    for number in range(round(seconds * 100)):
        time_s = number / 100
        state = rosbags_rig.joint_state(time_s, names=UR10E, positions=[*joints_at(time_s, seed)])
        sent.append((time_s, JOINTS, state))
    return rosbags_rig.write_bag(path, sent, storage=storage)


TINY: Mapping[str, Any] = {
    "data": {"image_size": "64x48"},
    "model": {
        "chunk_size": 4, "dim_model": 64, "n_heads": 4, "dim_feedforward": 128,
        "pretrained_backbone": False,
    },
    "training": {
        "steps": 2, "batch_size": 2, "save_freq": 2, "log_freq": 1, "num_workers": 0,
        "device": "cpu",
    },
}  # fmt: skip
"""An ACT that two cores train in seconds."""


def tiny(**training: Any) -> dict[str, Any]:
    """Return TINY with other values of `training`."""
    return {**TINY, "training": {**TINY["training"], **training}}


def _over(content: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(content)
    for section, values in other.items():
        found[section] = {**found.get(section, {}), **values}
    return found


@dataclass
class Task:
    """One task of a rendered workflow."""

    spec: Mapping[str, Any]
    folder: Path
    """Its own: what is absolute in the container is below it."""
    tokens: Mapping[str, str]

    @property
    def name(self) -> str:
        """As in the workflow."""
        return str(self.spec["name"])

    @property
    def output(self) -> Path:
        """What {{output}} is."""
        return self.folder / "osmo-output"

    def text(self, value: Any) -> str:
        """Return a text with tokens replaced and the container's paths moved."""
        text = str(value)
        for token, meaning in self.tokens.items():
            text = text.replace(f"{{{{{token}}}}}", meaning)
        assert "{{" not in text, text
        return CONTAINER.sub(lambda found: f"{self.folder}/{found[1]}", text)

    def prepare(self, localpaths: Path, config: Mapping[str, Any]) -> None:
        """Write its files, as OSMO mounts them; `config` is put over the configuration."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.folder / "output").mkdir(exist_ok=True)  # in the container root makes it
        for file in self.spec.get("files", []):
            content = file.get("contents")
            if content is None:
                content = (localpaths / file["localpath"]).read_text(encoding="utf-8")
            if file["path"] == "/workspace/config.yaml":
                content = yaml.safe_dump(_over(yaml.safe_load(content), config))
            path = Path(self.text(file["path"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text(content), encoding="utf-8")

    def command(self) -> list[str]:
        """Return the words that are run."""
        words = [*self.spec["command"], *self.spec.get("args", [])]
        return [self.text(word) for word in words]


@dataclass
class Controller:
    """Runs the tasks of one workflow file."""

    file: Path
    folder: Path
    numbers: dict[str, str] = field(default_factory=dict)
    """Of --set."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Payload `value` of each credential."""
    storage: dict[str, Path] = field(default_factory=dict)
    """End of an input's URL → the folder with its content; others are empty, as at a first run."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of --set-env."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What is other than in the workflow's configuration, as a CPU needs it."""

    def tasks(self) -> dict[str, Task]:
        """Return the tasks by name, their files written."""
        text = self.file.read_text(encoding="utf-8")
        faults, rendered = check(text, self.file.parent, Given(self.numbers))
        assert not faults, faults
        assert rendered is not None
        workflow = yaml.safe_load(rendered)["workflow"]
        specs = [
            *workflow.get("tasks", []),
            *(t for g in workflow.get("groups", []) for t in g["tasks"]),
        ]
        found: dict[str, Task] = {}
        for spec in specs:
            folder = self.folder / spec["name"]
            task = Task(spec, folder, self._tokens(spec, folder, found))
            task.prepare(self.file.parent, self.config)
            found[task.name] = task
        return found

    def _tokens(
        self, spec: Mapping[str, Any], folder: Path, above: Mapping[str, Task]
    ) -> dict[str, str]:
        tokens = {"output": str(folder / "osmo-output"), "workflow_id": "test-1"}
        tokens |= {f"host:{name}": "127.0.0.1" for name in ("master", *above)}
        for at, each in enumerate(spec.get("inputs", [])):
            place = folder / f"osmo-input-{at}"
            if "task" in each:
                folder.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                place.symlink_to(above[each["task"]].output)
                tokens[f"input:{each['task']}"] = str(place)
            else:
                url = each["url"].rstrip("/")
                source = next((p for end, p in self.storage.items() if url.endswith(end)), None)
                place.mkdir(parents=True, exist_ok=True)
                if source is not None and source.exists():
                    shutil.copytree(source, place, dirs_exist_ok=True)
            tokens[f"input:{at}"] = str(place)
        return tokens

    def start(self, task: Task, **streams: Any) -> subprocess.Popen[str]:
        """Start a task as OSMO does."""
        return subprocess.Popen(
            task.command(), env=self.environment(task), cwd=task.folder, text=True,
            stdin=subprocess.DEVNULL, start_new_session=True, **streams,
        )  # fmt: skip

    def run(self, task: Task, timeout_s: float = 900) -> str:
        """Run a task to its end and return what it printed; it must succeed."""
        with self.start(task, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            said, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, said[-6000:]
        return said

    def environment(self, task: Task) -> dict[str, str]:
        """Return the variables of a task: those of the image, its own, and its credentials."""
        spec = task.spec
        own = {name: task.text(value) for name, value in spec.get("environment", {}).items()}
        secret = {
            variable: self.secrets[name]
            for name, each in spec.get("credentials", {}).items()
            for variable in each
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        image = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **image, "PATH": path, **own, **secret, **self.variables}
