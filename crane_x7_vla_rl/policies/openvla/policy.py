"""OpenVLA as a `Policy`. Observations → joint targets of the CRANE-X7 (see `targets`).

Two kinds of checkpoint: OpenVLA, whose tokens encode one action, or several (see `codec`), and
OpenVLA-OFT, whose regression head predicts a chunk of actions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla_rl.policies.base import AUTO, ModelOptions, only_numbers
from crane_x7_vla_rl.policies.cuda_devices import no_device
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.image import cut
from crane_x7_vla_rl.policies.openvla.model.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.gaussian import Noise
from crane_x7_vla_rl.policies.openvla.run.oft import LIBERO, OpenVLAOft, with_heads
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.targets import joint_targets
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.layout import POLICY
from crane_x7_vla_rl.policies.openvla.weights.loading import Loaded
from crane_x7_vla_rl.policies.skills import SKILLS, Skills
from crane_x7_vla_rl.policies.wordings import WordedPolicy, Wordings
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.types import ActionChunk, Array, Observation

logger = logging.getLogger(__name__)

SMALL: Final = 50_000_000
"""Below this number of parameters, one CPU thread is faster on a busy machine: several would wait
for each other at every operation. Measured with a tiny model on two busy cores: 38 ms against
1.2 s."""


class Actor(Protocol):
    """The part that predicts: one for each of the two kinds."""

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """Return (B, T, D) for pixels (B, 6, 224, 224), prompts, and joints (B, 8) in rad.

        Raises NotFiniteError.
        """
        ...

    def reset(self) -> None:
        """Forget all earlier predictions."""
        ...


class TokenActor:
    """Action tokens, greedy or sampled; the prompt contains the joints if the model reads them."""

    def __init__(self, runner: Runner, codec: Codec, options: ModelOptions) -> None:
        self._runner, self._codec, self._seed = runner, codec, options.seed
        self._sampling = _sampling(runner.model, options)

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """See Actor."""
        del joints
        length = self._codec.answer_length
        chosen = self._runner.roll_out(pixels, ids, length, self._sampling)
        return self._codec.actions(self._runner.model.on_host(chosen.tokens))

    def reset(self) -> None:
        """See Actor."""
        self._runner.forget_draft()
        generator = self._sampling.generator
        if isinstance(generator, torch.Generator):
            generator.manual_seed(self._seed)


class ChunkActor:
    """OpenVLA-OFT's head; reads the joints if the checkpoint was trained with them.

    At a temperature, one that was reinforced draws each action around what the head says.
    """

    def __init__(self, model: OpenVLAOft, options: ModelOptions, inputs: PolicySpec) -> None:
        """`inputs`: with what its actions were drawn."""
        self._model, self._key, self._seed = model, options.unnorm_key, options.seed
        drawn = Noise(inputs.action_std, inputs.action_correlation)
        self._noise = drawn.at(options.temperature)
        self._generator = torch.Generator()
        self.reset()

    def act(self, pixels: Tensor, ids: Sequence[Tensor], joints: Array) -> Array:
        """See Actor."""
        state = joints if self._model.proprio_dim else None
        noise = None
        if self._noise.deviation:
            shape = len(ids), self._model.settings.steps, self._model.head.action_dim
            noise = self._noise.of(torch.randn(shape, generator=self._generator))
        return self._model.predict(pixels, ids, self._key, state, noise)

    def reset(self) -> None:
        """See Actor."""
        self._generator.manual_seed(self._seed)


class OpenVLAPolicy:
    """Joint targets of one checkpoint."""

    def __init__(
        self,
        loaded: Loaded,
        options: ModelOptions,
        runner: Runner | OpenVLAOft | None = None,
        inputs: PolicySpec | None = None,
    ) -> None:
        """`runner`: what runs a model that is already loaded, with its heads if it has any;
        `inputs` replaces the content of its policy.json.

        Raises CheckpointError for an unknown key, other dimensions, or no tokenizer.
        """
        source = loaded.layout.folder
        stats = loaded.model.norm_stats
        self._codec = Codec.of(loaded.layout, stats, options.unnorm_key, inputs)
        self._model = loaded.model
        if options.center_crop is not None:
            self._model.crop = options.center_crop
        self._actor: Actor
        if loaded.layout.heads() is not None:
            model = runner if isinstance(runner, OpenVLAOft) else load_chunks(loaded, options)
            self._actor = ChunkActor(model, options, self._codec.inputs)
        else:
            assert not isinstance(runner, OpenVLAOft)
            self._actor = TokenActor(
                runner or Runner(loaded.model, speculate=options.speculation), self._codec, options
            )
        if loaded.raw_config.get("random_weights"):
            logger.warning("%s has random weights: it cannot do any task; train it first", source)

    @property
    def period_s(self) -> float:
        """Time between targets."""
        return self._codec.inputs.period_s

    @torch.no_grad()
    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return targets per observation.

        Raises UnreachableError for a step out of reach, and NotFiniteError if weights or logits
        are NaN or infinite.
        """
        view = self._codec.inputs.view
        pixels = self._model.preprocess([cut(each.image, view) for each in observations])
        joints = np.stack([observation.joints.position_rad for observation in observations])
        ids = self._codec.prompts([observation.instruction for observation in observations], joints)
        actions = self._actor.act(pixels, ids, joints)  # (B, T, 7 or 8)
        return [
            only_numbers(
                ActionChunk(joint_targets(steps, measured), self.period_s), seen.instruction
            )
            for steps, measured, seen in zip(actions, joints, observations, strict=True)
        ]

    def reset(self) -> None:
        """Restart the sampling of tokens; no other state affects predictions."""
        self._actor.reset()


def _sampling(model: OpenVLA, options: ModelOptions) -> Sampling:
    """Return how tokens are chosen; sampled ones are reproducible by the seed."""
    if options.temperature == 0:
        return Sampling()
    generator = torch.Generator(model.projector.fc3.bias.device)
    return Sampling(options.temperature, generator.manual_seed(options.seed))


def load_chunks(loaded: Loaded, options: ModelOptions) -> OpenVLAOft:
    """Return OpenVLA-OFT with its heads; raises CheckpointError if it does not fit a CRANE-X7."""
    layout = loaded.layout
    source, steps = layout.folder, options.chunk_steps
    if steps is None and layout.first(POLICY) is not None:
        steps = PolicySpec.of(layout).chunk_steps
    if steps is None:
        raise CheckpointError(
            f"{source} is an OpenVLA-OFT checkpoint, whose files do not contain its number of steps"
            f' per prediction; write {{"chunk_steps": 8}} into {layout.heads()}/{POLICY} (8 in'
            " the released LIBERO models, 5 for Bridge), or set VLA_CHUNK_STEPS (infer only)"
        )
    model = with_heads(loaded, replace(LIBERO, steps=steps))
    dimensions = Codec.of(layout, loaded.model.norm_stats, options.unnorm_key).action.dimensions
    if model.head.action_dim != dimensions:
        raise CheckpointError(
            f"{source}: its action head has {model.head.action_dim} dimensions, the statistics"
            f" {options.unnorm_key!r} have {dimensions}"
        )
    if model.proprio_dim not in (0, DOF):
        raise CheckpointError(
            f"{source}: its state has {model.proprio_dim} dimensions, expected {DOF}: seven"
            " joints and the gripper"
        )
    return model


def load(options: ModelOptions) -> OpenVLAPolicy | WordedPolicy:
    """Return the policy in a folder or on the Hub, in bfloat16 on CUDA, else float32.

    One whose skills.json says so follows other wordings of its instructions, and nothing else.
    Raises PolicyLoadError for a missing device and for every problem with the model.
    """
    assert options.path is not None
    place = _device(options.device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    loaded = loading.load(options.path, device=place, dtype=dtype, token=options.token)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    if place.type == "cpu" and size < SMALL:
        torch.set_num_threads(1)
    elif place.type == "cpu" and options.device == AUTO:
        logger.warning(
            "no CUDA device was found: %.1f billion parameters run on the CPU, which takes seconds"
            " to minutes per prediction", size / 1e9,
        )  # fmt: skip
    return _worded(OpenVLAPolicy(loaded, options), loaded.layout.first(SKILLS))


def _worded(policy: OpenVLAPolicy, path: Path | None) -> OpenVLAPolicy | WordedPolicy:
    skills = None if path is None else Skills.beside(path.parent)
    if skills is None or not skills.wordings:
        return policy
    return WordedPolicy(policy, Wordings(skills.instructions, str(path)))


def _device(name: str) -> torch.device:
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("device: %s", name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"VLA_DEVICE={name}: expected auto, cuda, cuda:1 or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(no_device("VLA_DEVICE", name, torch.cuda.device_count()))
    return device
