"""One prediction: an observation of the protocol → LeRobot's processors and policy → actions.

Shapes: D joints; T steps of a chunk; H, W of an image. The request's keys are documented in
docs/lerobot.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot import rtc
from crane_x7_remote.lerobot.loading import Loaded

STATE: Final = "observation.state"
TASK: Final = "task"
RESET: Final = "reset"
"""True: forget earlier observations."""
EMPTY_CAMERA: Final = "empty_camera_"
"""In the name of a camera that LeRobot itself fills in."""


class ObservationError(PolicyError):
    """A request lacks what the policy was trained with, or has another shape."""


class Predictor:
    """Answers observations, one after another."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        config = loaded.config
        self.images = {
            key: tuple(feature.shape)
            for key, feature in config.image_features.items()
            if EMPTY_CAMERA not in key
        }
        """Camera's key → its (3, H, W) in training."""
        state, action = config.robot_state_feature, config.action_feature
        self.state_dof = None if state is None else int(state.shape[0])
        self.action_dof = int(action.shape[0])
        self._has_history = getattr(config, "n_obs_steps", 1) > 1
        self.guidance = rtc.Guidance.of(loaded)
        self.ensemble: float | None = getattr(config, "temporal_ensemble_coeff", None)
        """The client averages chunks, if the checkpoint was configured so (ACT)."""

    @property
    def chunk_steps(self) -> int:
        """T of each answer."""
        config = self._loaded.config
        if self._has_history:
            return int(config.n_action_steps)
        return int(getattr(config, "chunk_size", None) or config.n_action_steps)

    def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return `actions` (T, D) float32 and `policy_timing` for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        began_s = time.perf_counter()
        if bool(request.get(RESET, False)):
            self.reset()
        batch = self._batch(request)
        with torch.no_grad():
            ready = self._loaded.before(batch)
            actions = self._predict(ready, request)
            actions = self._loaded.after(actions)
        values = actions.squeeze(0).float().cpu().numpy().astype(np.float32)
        infer_ms = (time.perf_counter() - began_s) * 1e3
        return {"actions": values, "policy_timing": {"infer_ms": infer_ms}}

    def reset(self) -> None:
        """Forget earlier observations."""
        self._loaded.policy.reset()
        self._loaded.before.reset()
        self._loaded.after.reset()

    def _predict(self, ready: dict[str, Any], request: Mapping[str, Any]) -> Any:
        """Return the chunk in the model's space, (1, T, D)."""
        import torch

        policy = self._loaded.policy
        if not self._has_history:
            return policy.predict_action_chunk(ready, **self.guidance.arguments(request))
        # Policies with a history keep it in select_action alone; its queue then holds the chunk.
        queue = policy._queues["action"]
        queue.clear()
        first = policy.select_action(ready)
        chunk = torch.stack([first, *queue], dim=1)
        queue.clear()
        return chunk

    def _batch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from lerobot.policies.utils import prepare_observation_for_inference

        values = {key: self._image(request, key, shape) for key, shape in self.images.items()}
        if self.state_dof is not None:
            values[STATE] = self._state(request)
        task = request.get(TASK, "")
        task = str(task.item() if isinstance(task, np.ndarray) and task.ndim == 0 else task)
        batch = prepare_observation_for_inference(values, self._loaded.device, task, "")
        batch[TASK] = [task]
        return batch

    def _image(self, request: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Any:
        image = request.get(key)
        _, height, width = shape
        if image is None:
            there = ", ".join(sorted(name for name in request if "image" in name)) or "none"
            raise ObservationError(
                f"the observation has no image {key}; the policy was trained with it, and LeRobot"
                f" would run without it. Images that came: {there}"
            )
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            raise ObservationError(f"{key} is {_kind(image)}, expected uint8 (H, W, 3)")
        if image.shape != (height, width, 3):
            raise ObservationError(
                f"{key} is {image.shape[1]}x{image.shape[0]}, the policy was trained with"
                f" {width}x{height}: resize it as training did (`size` and `resize` of policy_io)"
            )
        return np.array(image)  # torch needs a writable array

    def _state(self, request: Mapping[str, Any]) -> Any:
        state = request.get(STATE)
        if not isinstance(state, np.ndarray) or state.shape != (self.state_dof,):
            raise ObservationError(
                f"{STATE} is {_kind(state)}, expected numbers of shape ({self.state_dof},)"
            )
        if not np.isfinite(state).all():
            raise ObservationError(f"{STATE} holds NaN or infinite values")
        return state.astype(np.float32)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "missing" if value is None else f"a {type(value).__name__}"
