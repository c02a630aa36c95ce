"""Demonstrations → an ACT policy that can learn to see: its backbone has seen them before.

    .venv-lerobot/bin/python scripts/teach_act/start.py DATA_SET POLICY MINUTES

Runs in LeRobot's environment. LeRobot's ACT freezes the batch norms of its ResNet, for weights from
ImageNet. With random weights the frozen norms let no signal through, and the policy never looks at
the image: the loss stays at that of the joints alone. So a ResNet-18 with live norms first predicts
the demonstrations' actions for some minutes; ACT gets its weights, and the norms' statistics.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
import torchvision
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from PIL import Image
from torch import Tensor, nn

CAMERA = "observation.images.base"
CHUNK = 20
"""Steps of a chunk: two seconds at 10 Hz, so that a path lasts until the next prediction."""
BATCH = 32
PEAK = 1e-3
"""Learning rate of AdamW: 50 steps of warm-up, then a cosine to a hundredth."""
HELD_OUT = 50
"""Episodes at the end that the backbone does not learn from."""


@dataclass(frozen=True)
class Frames:
    """All frames of a data set, actions and states as z-scores."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3), RGB."""
    states: Tensor
    """(N, 8) float32."""
    actions: Tensor
    """(N, 8) float32."""
    last: npt.NDArray[np.int64]
    """(N,): the last frame of each frame's episode."""
    held_out: npt.NDArray[np.bool_]
    """(N,)."""
    mean: Tensor
    """(1, 3, 1, 1) float32, of colours in 0 to 1; `deviation` likewise."""
    deviation: Tensor

    def batch(self, at: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return images (B, 3, H, W), states (B, 8), chunks (B, CHUNK, 8), weights (B, CHUNK)."""
        images = torch.from_numpy(self.images[at]).permute(0, 3, 1, 2).float() / 255
        images = (images - self.mean) / self.deviation
        steps = at[:, None] + np.arange(CHUNK)
        inside = torch.from_numpy(steps <= self.last[at][:, None]).float()
        chunks = self.actions[np.minimum(steps, self.last[at][:, None])]
        return images.contiguous(memory_format=torch.channels_last), self.states[at], chunks, inside


def read(folder: Path) -> Frames:
    """Read a data set with pictures into memory: 58 kB per frame of 160×120."""
    images, states, actions, episodes = [], [], [], []
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(
            path, columns=[CAMERA, "observation.state", "action", "episode_index"]
        )
        images += [
            np.asarray(Image.open(io.BytesIO(one["bytes"]))) for one in table[CAMERA].to_pylist()
        ]
        states += table["observation.state"].to_pylist()
        actions += table["action"].to_pylist()
        episodes += table["episode_index"].to_pylist()
    episode = np.array(episodes)
    stats = json.loads((folder / "meta/stats.json").read_text())[CAMERA]
    return Frames(
        np.stack(images),
        _scaled(states),
        _scaled(actions),
        np.searchsorted(episode, episode, side="right") - 1,
        episode > episode.max() - HELD_OUT,
        torch.tensor(stats["mean"]).float().reshape(1, 3, 1, 1),
        torch.tensor(stats["std"]).float().reshape(1, 3, 1, 1),
    )


def _scaled(values: list[list[float]]) -> Tensor:
    array = np.array(values, np.float32)
    return torch.from_numpy((array - array.mean(0)) / (array.std(0) + 1e-6))


class Watcher(nn.Module):
    """ResNet-18 and a small head: image and joints → the actions of one chunk."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        layers = list(torchvision.models.resnet18(weights=None).children())[:-2]
        self.backbone = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        cells = self.backbone(torch.zeros(2, 3, height, width)).shape[2:].numel()
        self.squeeze = nn.Conv2d(512, 48, 1)
        self.head = nn.Sequential(
            nn.Linear(48 * cells + 8, 256), nn.ReLU(), nn.Linear(256, CHUNK * 8)
        )

    def error(self, images: Tensor, states: Tensor, chunks: Tensor, weights: Tensor) -> Tensor:
        """Return the mean L1 error in z-scores, over the steps inside the episodes."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = self.squeeze(self.backbone(images))
        told = self.head(torch.cat([seen.float().flatten(1), states], 1)).view(-1, CHUNK, 8)
        return ((told - chunks).abs() * weights[..., None]).sum() / weights.sum() / 8


def learn_to_see(frames: Frames, minutes: float) -> Watcher:
    """Return a network that has learned from the demonstrations for `minutes`."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    watcher = Watcher(*frames.images.shape[1:3])
    optimizer = torch.optim.AdamW(watcher.parameters(), PEAK, weight_decay=1e-3)
    train = np.flatnonzero(~frames.held_out)
    if not len(train):
        sys.exit(f"start.py: too few episodes, expected more than {HELD_OUT}: create more")
    order = np.zeros(0, np.int64)
    began_s, steps, errors = time.monotonic(), 0, []
    while (part := (time.monotonic() - began_s) / 60 / minutes) < 1:
        rate = PEAK * min(1, (steps + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * part)) + PEAK / 100
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < BATCH:
            order = rng.permutation(train)
        at, order = order[:BATCH], order[BATCH:]
        error = watcher.error(*frames.batch(at))
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(watcher.parameters(), 1.0)
        optimizer.step()
        steps += 1
        errors.append(error.item())
        if steps % 50 == 0:
            print(f"backbone: step {steps}, L1 {np.mean(errors[-50:]):.3f}", flush=True)
    held_out = np.flatnonzero(frames.held_out)
    watcher.eval()
    with torch.no_grad():
        parts = [watcher.error(*frames.batch(at)) for at in np.array_split(held_out, 10)]
    print(f"backbone: L1 {np.mean(parts):.3f} on {HELD_OUT} episodes that it never saw", flush=True)
    return watcher


def save_policy(data: Path, watcher: Watcher, target: Path) -> None:
    """Write an ACT policy with the backbone's weights; all else is random."""
    meta = LeRobotDataset("local/demonstrations", root=data).meta
    height, width = meta.features[CAMERA]["shape"][:2]
    joints = (8,)
    config = ACTConfig(
        pretrained_backbone_weights=None,
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        dim_model=128,
        n_heads=4,
        dim_feedforward=512,
        n_encoder_layers=2,
        use_vae=False,
        dropout=0.0,
        device="cpu",
        push_to_hub=False,
        input_features={
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, height, width)),
            "observation.state": PolicyFeature(FeatureType.STATE, joints),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, joints)},
    )
    policy = ACTPolicy(config)
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    seen = {
        f"{names[int(place)]}.{rest}": value
        for key, value in watcher.backbone.state_dict().items()
        for place, _, rest in [key.partition(".")]
        if not key.endswith("num_batches_tracked")
    }
    policy.model.backbone.load_state_dict(seen)
    policy.save_pretrained(target)
    for part in make_pre_post_processors(config, dataset_stats=meta.stats):
        part.save_pretrained(target)


def main(data: Path, target: Path, minutes: float) -> None:
    """Learn and write."""
    save_policy(data, learn_to_see(read(data), minutes), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
