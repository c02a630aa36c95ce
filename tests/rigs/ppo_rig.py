"""A tiny policy with adapters and a value head, rollouts of noise, and a toy that can be learned.

`run_rank` updates as one of several processes.
"""

from __future__ import annotations

import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import training_rig
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_rig import SIDE

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import ppo
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.buffer import Buffer
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.update import UpdateIndex, _evaluate, update
from crane_x7_vla_rl.training.rl.value_head import ValueHead

STEPS, ENVIRONMENTS, TOKENS = 3, 4, 4
RED, BLUE = 0, 2
EVERYTHING = PpoConfig(
    learning_rate=1e-3,
    minibatch_size=5,
    micro_batch_size=2,
    entropy_coefficient=0.01,
    kl_coefficient=0.1,
    target_kl=None,
    value=ValueConfig(hidden=16),
)
"""Every term, minibatches that no number of processes divides, several micro-batches in each."""


def policy(folder: Path | None = None, moved: bool = True) -> OpenVLA:
    """Return a tiny policy with adapters; `moved` ones change what it does."""
    torch.set_num_threads(1)
    model = load(folder or training_rig.base()).model
    torch.manual_seed(1)
    add_lora(
        model, LoraSettings(rank=4, alpha=8, targets=["q_proj", "fc1", "down_proj", "lm_head"])
    )
    if moved:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    return model


def agent(config: PpoConfig, folder: Path | None = None, moved: bool = True) -> Agent:
    model = policy(folder, moved)
    torch.manual_seed(2)
    made = agents.build(model, config, Accelerator(cpu=True))
    if moved:
        wake(made)
    return made


def wake(made: Agent) -> None:
    """Give the value head's last layer weights, so that its values differ."""
    assert made.core.value_head is not None
    last: Any = made.core.value_head.layers[-1]
    with torch.no_grad():
        last.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(3))


def look(
    made: Agent, runner: Runner, images: Tensor, prompts: list[Tensor], tokens: int,
    draw: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return tokens, log-probabilities and values of a rollout's step."""
    seen = made.policy.normalise(images)
    found = runner.roll_out(seen, prompts, tokens, Sampling(1.0, draw))
    values = torch.zeros(len(images))
    if made.core.value_head is not None:
        values = made.value(found.hidden)
    return found.tokens, found.log_probs, values


def collect(made: Agent, seed: int = 0) -> Buffer:
    """Return a rollout of noise: episodes end at random, two steps are discarded."""
    draw = torch.Generator().manual_seed(seed)
    shape = (STEPS, ENVIRONMENTS)
    images = torch.randint(0, 256, (*shape, SIDE, SIDE, 3), dtype=torch.uint8, generator=draw)
    prompts = [
        [torch.tensor([1, *range(300, 302 + (step + n) % 3)]) for n in range(ENVIRONMENTS)]
        for step in range(STEPS)
    ]
    runner = Runner(made.policy)
    steps = [look(made, runner, images[step], prompts[step], TOKENS, draw) for step in range(STEPS)]
    tokens, log_probs, values = (torch.stack(part) for part in zip(*steps, strict=True))
    rewards = torch.randn(shape, generator=draw)
    ended = torch.rand(shape, generator=draw) < 0.3
    valid = torch.ones(shape, dtype=torch.bool)
    valid[:2, 1] = False
    ahead = ppo.next_values(values, values[0], torch.zeros_like(ended), values)
    advantages, returns = ppo.gae(rewards, values, ahead, ended, ended, valid, 0.99, 0.95)
    action_mask = torch.ones_like(tokens, dtype=torch.bool)
    action_mask[1, 0, 2:] = False
    return Buffer(
        images, prompts, tokens, log_probs, advantages, valid, values, returns, action_mask
    )


def share(buffer: Buffer, rank: int, ranks: int) -> Buffer:
    """Return the environments of one process."""
    each = buffer.shape[1] // ranks
    own = slice(rank * each, (rank + 1) * each)
    parts = {
        name: value[:, own] for name, value in vars(buffer).items() if isinstance(value, Tensor)
    }
    return replace(buffer, prompts=[row[own] for row in buffer.prompts], **parts)


def weights(made: Agent) -> dict[str, Tensor]:
    """Return copies of all that learns, by name."""
    policy_tensors, others = made.tensors(0)
    parts = (policy_tensors, *others.values())
    return {name: x.clone() for part in parts for name, x in part.items()}


def learn(made: Agent, config: PpoConfig, updates: int, draw: torch.Generator) -> list[float]:
    """Return the mean reward of each update on a toy.

    In a red room an action is right whose first token is in the upper half, in a blue room one in
    the lower half; each episode is one step.
    """
    rewards = []
    runner = Runner(made.policy)
    for number in range(updates):
        colours = torch.where(torch.rand(2, 32, generator=draw) < 0.5, RED, BLUE)
        images = torch.full((2, 32, SIDE, SIDE, 3), 40, dtype=torch.uint8)
        images.scatter_(-1, colours[..., None, None, None].expand(2, 32, SIDE, SIDE, 1), 220)
        prompts = [[torch.tensor([1, 300, 301])] * 32] * 2
        steps = [look(made, runner, images[step], prompts[step], 2, draw) for step in range(2)]
        tokens, log_probs, values = (torch.stack(part) for part in zip(*steps, strict=True))
        upper = tokens[..., 0] >= 31744 + 128
        reward = (upper == (colours == RED)).float()
        all_true = torch.ones(2, 32, dtype=torch.bool)
        advantages, returns = ppo.gae(
            reward, values, torch.zeros_like(values), all_true, all_true, all_true, 0.99, 0.95
        )
        buffer = Buffer(images, prompts, tokens, log_probs, advantages, all_true, values, returns)
        update(made, buffer, config, UpdateIndex(number))
        rewards.append(float(reward.mean()))
    return rewards


class _Collectives(TorchDispatchMode):
    """Counts what processes exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def collectives(made: Agent, own: Buffer) -> list[dict[str, int]]:
    """Return the number of each collective in three passes whose gradients are added up."""
    counts = []
    for last in (False, False, True):
        with _Collectives() as seen, made.accumulating(last):
            found = _evaluate(made, own, torch.arange(2), EVERYTHING)
            assert found.values is not None
            torch.autograd.backward(found.log_probs.sum() + found.values.sum())
        counts.append(dict(seen.counts))
    made.forget()
    return counts


def run_rank(words: str) -> NoReturn:
    """Update as one of several processes, with DDP and with FSDP; write to the folder `words` what
    came out, and end."""
    folder = Path(words)
    given = torch.load(folder / "buffer.pt", weights_only=False)
    shardings: tuple[Literal["ddp", "fsdp"], ...] = ("ddp", "fsdp")
    for sharding in shardings:
        accelerator = Accelerator(cpu=True)
        own = share(given, accelerator.process_index, accelerator.num_processes)
        model = policy(folder / "base")
        torch.manual_seed(2)
        head = ValueHead(model.config.text.hidden_size, EVERYTHING.value)
        core = agents.ActorCritic(model, head)
        core.load_state_dict(torch.load(folder / "weights.pt"))
        made = agents.build(model, EVERYTHING, accelerator, sharding, head)
        metrics = [vars(update(made, own, EVERYTHING, UpdateIndex(number))) for number in range(2)]
        kept, optimizer = weights(made), deepcopy(dict(made.optimizer_state()))
        rewind = made.snapshot()
        update(made, own, EVERYTHING, UpdateIndex(2))
        moved = weights(made)
        rewind()
        said = {
            "metrics": metrics,
            "weights": kept,
            "moved": moved,
            "rewound": weights(made),
            "optimizer": optimizer,
            "rewound optimizer": dict(made.optimizer_state()),
            "collectives": collectives(made, own),
        }
        if accelerator.is_main_process:
            torch.save(said, folder / f"{sharding}.pt")
    sys.exit(0)
