"""Real-time chunking: the previous chunk's rest and the delay → arguments for the policy.

The rest comes in the robot's units, from the present step on, and goes to the policy in the
model's space: relative to the present state where the policy predicts relative actions, then
normalized. Source: LeRobot's rollout/inference/rtc.py. Departures: the rest keeps its length (a
padding of zeros would be a target), and the delay is the one measured now, not the worst ever.
https://www.physicalintelligence.company/download/real_time_chunking.pdf
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot.loading import Loaded

PREVIOUS: Final = "rtc/previous"
"""(k, D) float32, the rest of the previous chunk."""
DELAY: Final = "rtc/delay_steps"
"""How many of its steps will be over when the answer comes."""
HORIZON_STEPS: Final = 10
"""Steps over which the guidance fades. LeRobot's default."""


@dataclass(frozen=True)
class Guidance:
    """What a policy with real-time chunking needs; does nothing for other policies."""

    loaded: Loaded
    is_supported: bool
    relative: Any = None
    normalizer: Any = None

    @classmethod
    def of(cls, loaded: Loaded) -> Guidance:
        """Return the guidance, switched on if the policy supports it."""
        supports = getattr(loaded.policy, "supports_rtc", None)
        if not (callable(supports) and supports()):
            return cls(loaded, False)
        from lerobot.policies.rtc.configuration_rtc import RTCConfig

        if loaded.config.rtc_config is None:
            loaded.config.rtc_config = RTCConfig(execution_horizon=HORIZON_STEPS)
        loaded.config.rtc_config.enabled = True
        loaded.policy.init_rtc_processor()
        steps = loaded.before.steps
        return cls(
            loaded,
            True,
            next((step for step in steps if _is_relative(step)), None),
            next((step for step in steps if hasattr(step, "norm_map")), None),
        )

    def arguments(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments of `predict_action_chunk`; raises PolicyError for a wrong rest.

        Call it after the preprocessor: that has stored the present state.
        """
        previous = request.get(PREVIOUS)
        if not self.is_supported or previous is None or len(previous) == 0:
            return {}
        dof = int(self.loaded.config.action_feature.shape[0])
        if not isinstance(previous, np.ndarray) or previous.ndim != 2 or previous.shape[1] != dof:
            raise PolicyError(f"{PREVIOUS} is {np.shape(previous)}, expected (k, {dof})")
        if not np.isfinite(previous).all():
            raise PolicyError(f"{PREVIOUS} holds NaN or infinite values")
        rest = self._in_model_space(previous.astype(np.float32))
        horizon = self.loaded.config.rtc_config.execution_horizon
        return {
            "inference_delay": min(max(int(request.get(DELAY, 0)), 0), len(previous)),
            "prev_chunk_left_over": rest,
            "execution_horizon": min(horizon, len(previous)),
        }

    def _in_model_space(self, previous: Any) -> Any:
        """Return the (k, D) rest as the policy predicts it."""
        import torch
        from lerobot.policies.rtc.relative import reanchor_relative_rtc_prefix
        from lerobot.processor import TransitionKey, create_transition

        rest = torch.from_numpy(previous)[: self.loaded.config.chunk_size]
        if self.relative is not None:
            return reanchor_relative_rtc_prefix(
                rest,
                self.relative.get_cached_state(),
                self.relative,
                self.normalizer,
                self.loaded.device,
            )
        transition = create_transition(action=rest)
        if self.normalizer is not None:
            transition = self.normalizer(transition)
        return transition[TransitionKey.ACTION].to(self.loaded.device)


def _is_relative(step: Any) -> bool:
    return bool(getattr(step, "enabled", False)) and hasattr(step, "get_cached_state")
