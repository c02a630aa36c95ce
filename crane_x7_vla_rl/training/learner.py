"""The model while it learns: loaded, given adapters or freed, spread over processes, read back out.

A `ModelSpec` and maybe a checkpoint → a model ready to learn, and a `Learner` with its optimizer.
Fine-tuning (`sft.loss`) and reinforcement learning (`rl.agent`) share it. Where products are in
bfloat16, everything but the action head is: its logits stay float32, as in rollouts. With adapters,
the frozen weights are stored in bfloat16 and autocast is off: it would only return float32 from
each norm and cast that again for each product that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from crane_x7_vla_rl.policies.openvla import OpenVLA, finite
from crane_x7_vla_rl.policies.openvla.model.language import DecoderLayer
from crane_x7_vla_rl.policies.openvla.model.vision import Block
from crane_x7_vla_rl.policies.openvla.weights import layout as layouts
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.policies.openvla.weights.lora import ALL_LINEAR, LoraSettings, add_lora
from crane_x7_vla_rl.training.checkpoints import policy_files
from crane_x7_vla_rl.training.config.sections import ComputeConfig, LoraConfig
from crane_x7_vla_rl.training.errors import ConfigError, ResumeError

RATE: Final[str] = "lr"
BASE_RATE: Final[str] = "base_lr"
"""Keys of an optimizer's group: its learning rate, and the one before any schedule."""
PATIENCE: Final = timedelta(minutes=30)
"""How long processes wait for one another: for the first one's statistics and checkpoints."""
WHOLE: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, eq=False)
class Learner:
    """What learns: a module spread over processes, and its optimizer."""

    accelerator: Accelerator
    module: nn.Module
    """What holds the policy, wrapped for several processes; see `spread`."""
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def forget(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Return a context for a pass forward and backward.

        Processes add up their gradients in the `last` pass of an update alone.
        """
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
            return nullcontext()
        alone: AbstractContextManager[None] = (
            nullcontext() if last else self.accelerator.no_sync(self.module)
        )
        return alone

    def move(self) -> None:
        """Let the optimizer change the weights, and drop the gradients.

        A fused step does not count as a change of a tensor in torch, but rollouts rely on it.
        """
        groups = self.optimizer.param_groups
        moved = [p for group in groups for p in group["params"] if p.grad is not None]
        self.optimizer.step()
        torch.autograd.graph.increment_version([p for p in moved if not isinstance(p, DTensor)])
        self.forget()

    def clip(self) -> float:
        """Clip the gradient's norm; return the norm before, over all processes."""
        return clip(self.module, self.max_grad_norm)

    def kept(self, adapters_only: bool) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, on the CPU, by names in the module that was spread.

        Every process must call it; the first one gets the tensors.
        """
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters_only
        )
        found = get_model_state_dict(self.module, options=options).items()
        return {name: own_memory(tensor) for name, tensor in found if isinstance(tensor, Tensor)}

    def optimizer_state(self) -> Mapping[str, Any]:
        """Return the optimizer's state by names of parameters; every process must call it."""
        if not self.optimizer.state:
            # torch fills it by a step without gradients, which counts as one to AdamW.
            get_optimizer_state_dict(self.module, self.optimizer, options=WHOLE)
            for state in self.optimizer.state.values():
                state["step"].zero_()
        return get_optimizer_state_dict(self.module, self.optimizer, options=WHOLE)

    def restore_optimizer(self, state: Mapping[str, Any]) -> None:
        """Set what `optimizer_state` returned, maybe on another number of processes.

        Learning rates stay as configured now.
        """
        rates = [
            {key: group[key] for key in (RATE, BASE_RATE) if key in group}
            for group in self.optimizer.param_groups
        ]
        set_optimizer_state_dict(self.module, self.optimizer, dict(state), options=WHOLE)
        for group, configured in zip(self.optimizer.param_groups, rates, strict=True):
            group.update(configured)


def clip(module: nn.Module, longest: float) -> float:
    """Clip `module`'s gradient to the norm `longest`; return the norm before, over all processes.

    NaN and infinity stay, for the caller to see.
    """
    norm = nn.utils.clip_grad_norm_(module.parameters(), longest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def own_memory(tensor: Tensor) -> Tensor:
    """Return the tensor in separate memory: gathered ones may be parts of a padded whole."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()


def start_processes(device: str) -> Accelerator:
    """Join the processes that torchrun started, if it did; see docs/scale.md."""
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    # Gradients live in the buffers that are exchanged: a copy would be 4 bytes more per weight.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[patience, ddp])


@dataclass(frozen=True)
class ModelSpec:
    """Which weights learn, and how they are computed."""

    model: str
    """Folder or Hub id to start from."""
    lora: LoraConfig
    compute: ComputeConfig


def is_halved(compute: ComputeConfig, device: torch.device) -> bool:
    """Whether matrix products are in bfloat16."""
    chosen = {"auto": device.type == "cuda", "bf16": True, "fp32": False}
    return chosen[compute.precision]


def prepare(
    spec: ModelSpec, device: torch.device, resumed: Path | None, tokens: bool = True
) -> Loaded:
    """Return a model ready to learn on the device, with the weights of the base or of `resumed`.

    `tokens`: action tokens are trained, so that an OpenVLA-OFT checkpoint is refused.
    Sets torch's random state, from which new adapters are made, to the seed. Raises
    CheckpointError or HubError for a base that does not load, NotFiniteError for weights that are
    NaN or infinite, ConfigError and ResumeError for one that does not fit the configuration.
    """
    if spec.compute.device == "cuda" and device.type != "cuda":
        raise ConfigError("training.device is cuda, but torch finds no CUDA device on this machine")
    if resumed is None and tokens:
        refuse_oft(spec.model)
    halved = is_halved(spec.compute, device)
    loaded = _load(spec, device, halved, resumed)
    model = loaded.model
    torch.manual_seed(spec.compute.seed)
    if spec.lora.enabled:
        _add_adapters(model, spec.lora, resumed, tokens)
    else:
        _free(model, tokens)
    model.checkpoint_gradients(spec.compute.gradient_checkpointing)
    model.train()
    if halved and not spec.lora.enabled:
        _autocast(model, device)
    return loaded


def refuse_oft(model: str) -> None:
    """Raise ConfigError for an OpenVLA-OFT checkpoint: its action tokens are untrained."""
    if (heads := layouts.find(model).heads()) is not None:
        raise ConfigError(
            f"{model} is an OpenVLA-OFT checkpoint: its actions come from a head in {heads}, its"
            " action tokens are untrained, and this trainer trains tokens; start from an OpenVLA"
            " checkpoint without such a head, such as openvla/openvla-7b, or fine-tune one with"
            " `crane-x7-vla-rl sft` first"
        )


def _load(spec: ModelSpec, device: torch.device, halved: bool, resumed: Path | None) -> Loaded:
    if spec.lora.enabled:
        frozen = torch.bfloat16 if halved else torch.float32
        loaded = loading.load(spec.model, device=device, dtype=frozen)
        if loaded.layout.adapter is not None:
            raise ConfigError(
                f"policy.model is {spec.model}, which is an adapter; new adapters need whole"
                " weights as their base: write them first with `crane-x7-vla-rl merge`"
            )
        return loaded
    # Weights that learn stay float32: updates of 1e-4 of their size are lost in bfloat16.
    source = resumed or spec.model
    return loading.load(source, device=device, dtype=torch.float32)


def _add_adapters(model: OpenVLA, lora: LoraConfig, resumed: Path | None, tokens: bool) -> None:
    """Put adapters beside the frozen weights, in float32, with the values of the checkpoint."""
    targets = lora.targets if lora.targets == ALL_LINEAR else lora.targets.split(",")
    add_lora(model, LoraSettings(lora.rank, lora.alpha, lora.dropout, targets))
    _keep_head(model, tokens)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in learning.values():
        parameter.data = parameter.data.float()
    if resumed is None:
        return
    stored = policy_files.read_adapter(resumed)
    if odd := sorted(stored.keys() ^ learning.keys()):
        raise ResumeError(
            f"{resumed}: its adapters are not those of lora.targets={lora.targets}: {odd[0]} and"
            f" {len(odd) - 1} more are in only one of the two; does it belong to this base?"
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            learning[name].copy_(tensor)
    finite.check(stored.items(), resumed)


def _keep_head(model: OpenVLA, tokens: bool) -> None:
    """Freeze the language model's head if no tokens are predicted."""
    if not tokens:
        model.language_model.lm_head.requires_grad_(False)


def _free(model: OpenVLA, tokens: bool) -> None:
    """Train all weights except unused ones, which would never get a gradient."""
    vision = model.vision_backbone
    model.requires_grad_(True)
    _keep_head(model, tokens)
    for tower in (vision.featurizer, vision.fused_featurizer):
        for module in (tower.blocks[-1], tower.norm, getattr(tower, "attn_pool", None)):
            if module is not None:
                module.requires_grad_(False)


def spread(
    loss: nn.Module, sharding: Literal["ddp", "fsdp"], accelerator: Accelerator
) -> nn.Module:
    """Wrap what holds a model for several processes: a model in each, or its layers over all.

    torch's `fully_shard` does the latter: accelerate silently skips it without a GPU, so a test on
    a CPU would test nothing.
    """
    if accelerator.num_processes == 1:
        return loss
    if sharding == "ddp":
        wrapped: nn.Module = accelerator.prepare(loss)
        return wrapped
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in loss.modules():
        if isinstance(module, DecoderLayer | Block):
            fully_shard(module, mesh=mesh)
    fully_shard(loss, mesh=mesh)
    return loss


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather all weights of a module that `spread` returned in each process, temporarily.

    Meanwhile they may be read, in as many passes as each process likes. The memory is that of one
    model, beside this process's part of it.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        if part is not module:  # the outermost part stays gathered after a pass, by default
            part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            if part is not module:
                part.set_reshard_after_forward(True, recurse=False)


def _autocast(model: OpenVLA, device: torch.device) -> None:
    """Multiply float32 weights in bfloat16, except the action head: logits must not be rounded.

    The head multiplies the rows that are read in float32 itself, see `OpenVLA.action_logits`.
    """
    for part in (model.vision_backbone, model.projector, model.language_model.model):
        cast = torch.autocast(device.type, torch.bfloat16)(part.forward)
        part.forward = cast  # type: ignore[method-assign]
