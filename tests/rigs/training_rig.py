"""A tiny base model and a small data set, made once per run of pytest, and runs of the trainer."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from places import ROOT
from torch.distributed import TCPStore
from warm_process import ONE_THREAD, WarmProcess

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.policies.openvla.builder import Sizes, build
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.training.sft import command as sft_command
from crane_x7_vla_rl.types import JointState, Observation

SIDE = 32
SIZES = Sizes(
    hidden=32, layers=2, heads=2, mlp=64, dino_dim=32, dino_depth=2, siglip_dim=32, siglip_depth=2,
    vision_heads=2, image=SIDE, patch=8,
)  # fmt: skip
FPS = 10.0
EPISODES, FRAMES = 5, 9
PATIENCE_S = 500.0
"""On a machine that is busy otherwise, a process may import for minutes."""
ON_CPU = {"ACCELERATE_USE_CPU": "true"}


@lru_cache(maxsize=1)
def workplace() -> Path:
    folder = Path(mkdtemp(prefix="training_rig-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=1)
def base() -> Path:
    """Return a tiny model with random weights."""
    return build(workplace() / "base", SIZES, inputs=PolicySpec(state_tokens=True))


def episode(number: int, frames: int = FRAMES) -> Episode:
    """Return an episode whose colour says where the arm goes."""
    draw = np.random.default_rng(number)
    colour = ("red", "blue")[number % 2]
    goal = HOME_RAD + (0.2 if colour == "red" else -0.2) * np.ones(8)
    goal[7] = 0.3
    share = np.linspace(0, 1, frames + 1)[:, None]
    path = (HOME_RAD + share * (goal - HOME_RAD) + draw.normal(0, 0.01, (frames + 1, 8))).astype(
        np.float32
    )
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[:, :, 0 if colour == "red" else 2] = 200
    return Episode(
        images=np.stack([np.roll(image // (t + 1), t, 1) for t in range(frames)]),
        state=path[:-1],
        action=path[1:],
        instruction=f"lift the {colour} cube",
        fps=FPS,
        success=True,
        source=f"episode {number}",
        seed=number,
    )


@lru_cache(maxsize=1)
def data() -> Path:
    """Return a LeRobot data set."""
    folder = workplace() / "data"
    with LeRobotWriter(folder, FPS, (SIDE, SIDE)) as writer:
        for number in range(EPISODES):
            writer.add(episode(number))
    return folder


def flags(output: Path, *more: str) -> list[str]:
    """Return the flags of a short run on the CPU; `more` override them."""
    return [
        "--backend", "openvla", "--model", str(base()), "--data-root", str(data()),
        "--image-size", f"{SIDE}x{SIDE}", "--output-dir", str(output), "--device", "cpu",
        "--batch-size", "4", "--max-steps", "8", "--save-steps", "3", "--log-steps", "1",
        "--lora-rank", "4", "--lora-alpha", "8", "--no-tensorboard", *more,
    ]  # fmt: skip


def observation() -> Observation:
    """What a policy sees at the start of the first episode."""
    shown = episode(0)
    joints = JointState(shown.state[0], np.zeros(8))
    return Observation(shown.image(0), joints, shown.instruction, 0.0)


def train(output: Path, *more: str) -> None:
    """Train in this process."""
    again(*flags(output, *more))


def again(*argv: str) -> None:
    """Train with these flags alone, in this process; one thread, since tests share the cores."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    sft_command.add_arguments(parser)
    sft_command.run(parser.parse_args(argv))


def start(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    command: str = "sft",
    first: Sequence[str] = (),
) -> WarmProcess:
    """Start the command in its own process; `first` as in `WarmProcess`."""
    return WarmProcess([command, *argv], ON_CPU | (env or {}), first)


def tell_trackers() -> None:
    """Print, when this process ends, which of both trackers it has imported."""
    names = ("wandb", "tensorboard")
    atexit.register(lambda: print("trackers:", [name for name in names if name in sys.modules]))


def start_anew(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the command in its own interpreter."""
    return subprocess.Popen(
        [sys.executable, "-m", "crane_x7_vla_rl.training.cli", "sft", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | ONE_THREAD | ON_CPU | env,
    )  # fmt: skip


@contextmanager
def together(
    argv: Sequence[str], processes: int, command: str = "sft", first: Sequence[str] = ()
) -> Iterator[list[WarmProcess]]:
    """Start the command as torchrun does, in processes that know of each other.

    They meet at a store that this process keeps, as torchrun's workers do at its: no port is free
    now and taken a moment later.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    ranks = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = [start(argv, env, command, first) for env in ranks]
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def torchrun(argv: Sequence[str], processes: int, command: str = "sft") -> subprocess.Popen[str]:
    """Start the command by torchrun itself."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(processes), "-m", "crane_x7_vla_rl.training.cli", command, *argv,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | ONE_THREAD | ON_CPU,
    )  # fmt: skip


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the figures of every update."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [figures["loss"] for figures in metrics(output)]


@lru_cache(maxsize=1)
def other_data() -> Path:
    """Return another LeRobot data set."""
    folder = workplace() / "other"
    with LeRobotWriter(folder, FPS, (SIDE, SIDE)) as writer:
        for number in range(3):
            writer.add(episode(number + 10))
    return folder


@lru_cache(maxsize=1)
def corrupt_data() -> Path:
    """Return a data set whose pictures are cut off."""
    folder = workplace() / "corrupt"
    shutil.copytree(data(), folder)
    for path in folder.rglob("*.mp4"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder
