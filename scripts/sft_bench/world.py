"""The inputs of both sides of bench_sft: a base model with random weights, and a data set.

Sizes → a checkpoint folder and a LeRobot data set of synthetic episodes, in a folder that the
caller deletes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.policies.openvla import OpenVLA, OpenVLAConfig, builder
from crane_x7_vla_rl.policies.openvla.weights.files import SINGLE, read_json
from crane_x7_vla_rl.policies.openvla.weights.layout import CONFIG
from crane_x7_vla_rl.robot import HOME_RAD

WIDTH, HEIGHT, FPS = 640, 480, 10.0
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}
SEED = 0


@dataclass(frozen=True)
class Scale:
    """Size of one run of the benchmark."""

    model: builder.Sizes | None
    """None: the released size."""
    batch: int
    episodes: int
    frames: int
    """Frames of each episode."""
    rounds: int
    warm: int
    """Updates at the start of a round that are not counted."""
    updates: int
    """Counted updates of a round."""


SCALES = {
    "smallest": Scale(
        builder.Sizes(
            hidden=32, layers=2, heads=2, mlp=64, dino_dim=32, dino_depth=2, siglip_dim=32,
            siglip_depth=2, vision_heads=2,
        ), batch=2, episodes=2, frames=6, rounds=2, warm=1, updates=2,
    ),
    "tiny": Scale(builder.Sizes(), batch=16, episodes=6, frames=50, rounds=9, warm=1, updates=4),
    "released": Scale(None, batch=16, episodes=20, frames=50, rounds=5, warm=3, updates=10),
}  # fmt: skip


def write_model(folder: Path, scale: Scale, device: torch.device) -> Path:
    """Write a checkpoint with random weights; one of the released size in bfloat16."""
    if scale.model is not None:
        return builder.build(folder, scale.model)
    builder.build(folder)  # for its tokenizer and statistics
    config = OpenVLAConfig()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = OpenVLA(config)
    finally:
        torch.set_default_dtype(torch.float32)
    builder.initialise(model, SEED)
    tensors = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    raw = {**read_json(folder / CONFIG), "torch_dtype": "bfloat16"}
    del raw["vision_towers"]
    raw["text_config"] |= asdict(config.text)
    (folder / CONFIG).write_text(json.dumps(raw))
    return folder


def write_data(folder: Path, scale: Scale) -> Path:
    """Write the data set: a square that wanders over a textured table, and an arm that follows."""
    with LeRobotWriter(folder, FPS, (WIDTH, HEIGHT)) as writer:
        for number in range(scale.episodes):
            writer.add(_episode(number, scale.frames))
    return folder


def _episode(number: int, frames: int) -> Episode:
    draw = np.random.default_rng([SEED, number])
    colour = list(COLOURS)[number % len(COLOURS)]
    across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    table = 90 + 40 * np.sin(across / 37 + number) * np.cos(down / 23) + across / 16
    table = np.repeat(table[:, :, None], 3, axis=2) + draw.normal(0, 4, (HEIGHT, WIDTH, 3))
    background = table.clip(0, 255).astype(np.uint8)
    images = np.repeat(background[None], frames, axis=0)
    for t in range(frames):
        x, y = 40 + (t * 11 + number * 53) % (WIDTH - 120), 60 + (t * 7) % (HEIGHT - 150)
        images[t, y : y + 60, x : x + 60] = COLOURS[colour]
    path = HOME_RAD + 0.2 * np.sin(np.linspace(0, 3, frames + 1) + number)[:, None]
    path = (path + draw.normal(0, 0.01, path.shape)).astype(np.float32)
    return Episode(
        images=images,
        state=path[:-1],
        action=path[1:],
        instruction=f"lift the {colour} cube",
        fps=FPS,
        success=True,
        source=f"synthetic, episode {number}",
        seed=number,
    )
