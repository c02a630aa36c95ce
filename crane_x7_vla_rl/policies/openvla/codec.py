"""Prompts and tokens of a policy: what it reads in addition to the image, what its tokens mean.

Instructions and measured joints → prompt ids; recorded actions → the tokens to learn; chosen tokens
→ joint targets. Fine-tuning, reinforcement learning and the policy all use this module, so that
training and rollouts agree. `policy.json` next to the weights holds `PolicySpec`; a released
checkpoint has none, reads no joints and predicts one action at a time.

Legend: B batch, T steps of a chunk, D dimensions of an action (8 joints, or 7 of a tool's step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crane_x7_vla_rl.actions import (
    Array,
    Statistics,
    StatisticsError,
    Tokens,
    find_statistics,
    normalised_to_tokens,
    tokens_to_normalised,
)
from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.policies.openvla import keys
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.image import WHOLE, View
from crane_x7_vla_rl.policies.openvla.targets import DIMENSIONS
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.policies.openvla.weights.files import read_json
from crane_x7_vla_rl.policies.openvla.weights.layout import (
    POLICY,
    TOKENIZER,
    Layout,
    no_tokenizer,
    statistics_file,
)
from crane_x7_vla_rl.robot import DOF

MAX_CHUNK: Final = 64
PERIOD_S: Final = 0.1
"""For checkpoints without it: one step at 10 Hz, the default rate of the inference loop."""


@dataclass(frozen=True)
class PolicySpec:
    """Inputs and outputs that a checkpoint was trained with; the content of policy.json."""

    state_tokens: bool = False
    """Whether the measured joints follow the prompt, as eight ids of the action vocabulary."""
    chunk_steps: int = 1
    """T: a prediction has T·D tokens, step after step."""
    period_s: float = PERIOD_S
    """Time between steps."""
    view: View = WHOLE
    """Part of an image that the model sees; the rest is cut off before the resize."""
    action_std: float = 0.0
    """Standard deviation of normalised actions with which a policy with OpenVLA-OFT's head was
    reinforced: what a temperature above 0 samples with. 0: it has none."""
    action_correlation: float = 0.0
    """Of that noise from step to step, 0 to below 1; see `run.gaussian.Noise`."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = POLICY) -> PolicySpec:
        """Return the inputs in parsed JSON; raises CheckpointError for invalid ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(raw) - set(known))
        if unknown:
            raise CheckpointError(f"{source}: {unknown[0]} is unknown; known: {', '.join(known)}")
        inputs = cls(**dict(raw) | {"view": _view(raw.get("view", WHOLE), source)})
        steps, period = inputs.chunk_steps, inputs.period_s
        if not isinstance(inputs.state_tokens, bool):
            raise CheckpointError(
                f"{source}: state_tokens is {quoted(inputs.state_tokens)}, expected true or false"
            )
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_CHUNK:
            raise CheckpointError(
                f"{source}: chunk_steps is {quoted(steps)}, expected 1 to {MAX_CHUNK}"
            )
        if not isinstance(period, int | float) or not 0 < period < 10:
            raise CheckpointError(
                f"{source}: period_s is {quoted(period)}, expected seconds above 0"
            )
        deviation = inputs.action_std
        if type(deviation) not in (int, float) or not 0 <= deviation < 10:
            raise CheckpointError(f"{source}: action_std is {quoted(deviation)}, expected 0 to 10")
        correlation = inputs.action_correlation
        if type(correlation) not in (int, float) or not 0 <= correlation < 1:
            raise CheckpointError(
                f"{source}: action_correlation is {quoted(correlation)}, expected 0 to below 1"
            )
        return inputs

    @classmethod
    def of(cls, layout: Layout) -> PolicySpec:
        """Return the checkpoint's nearest policy.json, else the defaults of released ones."""
        path = layout.first(POLICY)
        return cls() if path is None else cls.from_dict(read_json(path), str(path))

    def write(self, folder: Path) -> Path:
        """Write policy.json into the folder."""
        path, content = folder / POLICY, asdict(self)
        if not self.action_std:
            del content["action_std"], content["action_correlation"]
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path


class Codec:
    """Prompts, targets and predictions of one checkpoint and robot."""

    def __init__(
        self, tokenizer: PromptTokenizer, inputs: PolicySpec, action: Statistics, state: Statistics
    ) -> None:
        """`action` (D) and `state` (8, unused without state tokens) scale to −1…1."""
        self.inputs = inputs
        self.action = action
        self._tokenizer, self._state = tokenizer, state

    @classmethod
    def of(
        cls,
        layout: Layout,
        norm_stats: Mapping[str, Any],
        unnorm_key: str,
        inputs: PolicySpec | None = None,
    ) -> Codec:
        """Return the codec of a checkpoint; `inputs` replaces the content of its policy.json.

        Raises CheckpointError for an unknown key, other dimensions, or no tokenizer.
        """
        inputs = inputs or PolicySpec.of(layout)
        action = _statistics(norm_stats, unnorm_key, layout)
        state = action
        if inputs.state_tokens:
            state = _statistics(norm_stats, unnorm_key, layout, "proprio")
            if state.dimensions != DOF:
                raise CheckpointError(
                    f"{layout.folder}: the proprio statistics {unnorm_key!r} have"
                    f" {state.dimensions} dimensions, expected {DOF}: seven joints and the gripper"
                )
        path = layout.first(TOKENIZER)
        if path is None:
            raise no_tokenizer(layout)
        return cls(PromptTokenizer(path), inputs, action, state)

    @property
    def answer_length(self) -> int:
        """T·D, tokens of one prediction."""
        return self.inputs.chunk_steps * self.action.dimensions

    def prompts(self, instructions: Sequence[str], joints_rad: npt.ArrayLike) -> list[Tensor]:
        """Return B 1-D tensors of ids; `joints_rad` (B, 8) is measured, and read with state tokens.

        Raises ValueError for a blank instruction or, if they are read, joints that are NaN.
        """
        texts = [self._tokenizer(instruction) for instruction in instructions]
        if not self.inputs.state_tokens:
            return texts
        states = torch.from_numpy(normalised_to_tokens(self._state.normalise(joints_rad)))
        return [torch.cat([text, state]) for text, state in zip(texts, states, strict=True)]

    def tokens(self, actions: npt.ArrayLike) -> Tokens:
        """Return (B, T·D) ids to learn for actions (B, T, D) in the robot's units."""
        array = np.asarray(actions, dtype=np.float64)
        steps = self.inputs.chunk_steps
        if array.ndim != 3 or array.shape[1] != steps:
            raise ValueError(f"actions have shape {array.shape}, expected (B, {steps}, D)")
        ids = normalised_to_tokens(self.action.normalise(array))
        return ids.reshape(len(ids), self.answer_length)

    def actions(self, tokens: Tensor | Tokens) -> Array:
        """Return (B, T, D) in the robot's units for chosen ids, or normalised actions, (B, T·D)."""
        ids = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else tokens
        split = ids.reshape(len(ids), self.inputs.chunk_steps, self.action.dimensions)
        if split.dtype.kind == "f":
            return self.action.unnormalise(split.astype(np.float64))
        return self.action.unnormalise(tokens_to_normalised(split))


def _view(raw: object, source: str) -> View:
    """Return a checked `PolicySpec.view`; raises CheckpointError."""
    if isinstance(raw, list | tuple) and [type(x) in (int, float) for x in raw] == [True] * 4:
        left, top, right, bottom = (float(edge) for edge in raw)
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return left, top, right, bottom
    raise CheckpointError(
        f"{source}: view is {quoted(raw)}, expected left, top, right, bottom in shares of the"
        " image, such as [0, 0, 1, 1]"
    )


def _statistics(
    norm_stats: Mapping[str, Any], key: str, layout: Layout, kind: str = "action"
) -> Statistics:
    entry = norm_stats.get(key)
    if key not in norm_stats:
        raise CheckpointError(keys.refusal(str(layout.folder), norm_stats, key, "VLA_UNNORM_KEY"))
    if not isinstance(entry, Mapping) or not isinstance(entry.get(kind), Mapping):
        raise CheckpointError(
            f"{layout.folder}: has no {kind} statistics under {key}; write them into its"
            f" {statistics_file(layout, key).name}"
        )
    try:
        statistics = find_statistics(norm_stats, key, kind, str(statistics_file(layout, key)))
    except StatisticsError as error:
        raise CheckpointError(str(error)) from error
    if kind == "action" and statistics.dimensions not in DIMENSIONS:
        raise CheckpointError(
            f"{layout.folder}: the statistics {key!r} have {statistics.dimensions} dimensions,"
            " expected 8 (joints and gripper) or 7 (tool step and gripper)"
        )
    return statistics
