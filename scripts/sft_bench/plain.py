"""The other side of bench_sft: a plain loop with PEFT and transformers' Trainer.

The same weights, wrapped so that Trainer can call them; adapters by `get_peft_model` on the same
layers; a Dataset that decodes, resizes, augments and tokenises one sample at a time; Trainer's
default DataLoader, which reads in the training process when the loop takes a batch. Decoder,
resize, augmentation and tokens are this project's functions, called per sample: the benchmark
compares the loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openvla_bench.limits import synchronise
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.image import MEAN, STD
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.training.sft.augment import augment
from crane_x7_vla_rl.training.sft.config import SftConfig
from sft_bench.ours import Case


class Frames(Dataset[dict[str, Tensor]]):
    """Every frame of the data set, ready for the model."""

    def __init__(self, case: Case, config: SftConfig, codec: Codec) -> None:
        self._source = open_source(case.data)
        self._episodes = [self._source[number] for number in range(len(self._source))]
        lengths = self._source.lengths
        self._where = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
        self._config, self._codec = config, codec
        self._size = int(config.data.image_size.partition("x")[0])
        self._mean, self._std = (torch.tensor(v).view(6, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.sample(*self._where[index], place=index)

    def sample(self, number: int, t: int, place: int) -> dict[str, Tensor]:
        """Return a frame's tensors; `place` seeds its augmentation."""
        episode = self._episodes[number]
        picture = Image.fromarray(episode.image(t))
        small = np.array(picture.resize((self._size, self._size), Image.Resampling.BICUBIC))
        training, settings = self._config.training, self._config.augmentation
        varied = np.ascontiguousarray(augment(small, training.seed, place, settings))
        scaled = torch.from_numpy(varied).permute(2, 0, 1).float() / 255
        steps = np.minimum(np.arange(t, t + self._codec.inputs.chunk_steps), len(episode) - 1)
        (prompt,) = self._codec.prompts([episode.instruction], episode.state[None, t])
        return {
            "pixels": (scaled.repeat(2, 1, 1) - self._mean) / self._std,
            "input_ids": prompt,
            "labels": torch.from_numpy(self._codec.tokens(episode.action[None, steps]))[0],
        }


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return a batch; prompts stay a list, because their lengths differ."""
    return {
        "pixels": torch.stack([sample["pixels"] for sample in samples]),
        "input_ids": [sample["input_ids"] for sample in samples],
        "labels": torch.stack([sample["labels"] for sample in samples]),
    }


class Wrapped(nn.Module):
    """An OpenVLA with the interface that Trainer calls."""

    def __init__(self, model: OpenVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, input_ids: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the loss, nats per token."""
        like = self.model.projector.fc3.bias
        found = evaluate(self.model, pixels.to(like.dtype), input_ids, labels)
        return {"loss": -found.log_probs.mean()}


def adapted(case: Case, config: SftConfig, targets: list[str]) -> Any:
    """Return the base with fresh adapters on `targets`, full names inside `Wrapped`."""
    dtype = torch.bfloat16 if case.halved else torch.float32
    base = load(case.model, device=case.device, dtype=dtype).model
    lora = config.lora
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    return get_peft_model(Wrapped(base), settings)  # type: ignore[arg-type]


def trainer(case: Case, config: SftConfig, model: Any, frames: Frames, output: Path) -> Trainer:
    """Return a Trainer with the same batch, rate, schedule and length, else with its defaults."""
    training = config.training
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=training.batch_size,
        max_steps=case.steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=case.halved,
        use_cpu=case.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=training.seed,
    )
    return Trainer(model=model, args=arguments, train_dataset=frames, data_collator=collate)


class Turns(TrainerCallback):
    """Times Trainer's rounds, and runs the other side after each."""

    def __init__(self, case: Case, other: Callable[[], None]) -> None:
        self._case, self._other = case, other
        self._ended_s = self._round_s = 0.0
        self._data_s: float | None = None
        self.rates: list[float] = []
        """Samples/s of each round."""
        self.data_shares: list[float] = []
        """% of each counted update."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The batch has been loaded."""
        del args, state, control, more
        self._data_s = time.perf_counter() - self._ended_s

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An update has ended."""
        del args, control, more
        scale = self._case.scale
        synchronise(self._case.device)
        now_s = time.perf_counter()
        place = (state.global_step - 1) % (scale.warm + scale.updates) + 1
        if place > scale.warm and self._data_s is not None:
            self.data_shares.append(100 * self._data_s / (now_s - self._ended_s))
        if place == scale.warm:
            self._round_s = now_s
        elif place == scale.warm + scale.updates:
            self.rates.append(scale.updates * scale.batch / (now_s - self._round_s))
            self._other()
        self._ended_s = time.perf_counter()
