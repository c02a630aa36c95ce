"""Every value of PPO and GRPO. YAML, flags and overrides, through the loader → `PpoConfig`.

Defaults are those of RL4VLA (https://arxiv.org/abs/2505.19789), with the asymmetric clip of DAPO
(https://arxiv.org/abs/2503.14476), and of a prototype on two CPU cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from crane_x7_vla_rl.fields import (
    Amount,
    BelowOne,
    Count,
    FinitePositive,
    Index,
    Positive,
    Share,
    above,
    flag,
)
from crane_x7_vla_rl.training.config.sections import Section
from crane_x7_vla_rl.training.errors import ConfigError


@dataclass(frozen=True)
class ValueConfig(Section, section="ppo.value"):
    """The network that estimates the value of an observation, and how it learns."""

    critic: Literal["shared", "own", "state"] = flag("--critic", "shared")
    """What it sees. shared: the policy's hidden state, and its loss moves the policy, too; own: the
    policy's image features, hidden state and joints, without moving them; state: the simulator's
    true state, which no policy sees."""
    extra_epochs: Index = flag("--value-extra-epochs", 0)
    """How often an update uses every sample again for a critic that is own or state, after the
    policy's epochs; cheap, since the policy computes nothing."""
    learning_rate: Amount = flag("--value-learning-rate", 1e-3)
    """Learning rate of the value head; 1e-3 to 3e-3 is usual, since it starts untrained."""
    coefficient: Amount = flag("--value-coefficient", 0.5)
    """Weight of the value loss."""
    loss: Literal["huber", "clipped", "mse"] = flag("--value-loss", "huber")
    """huber: quadratic up to huber_delta, linear beyond; clipped: the worse of the squared errors
    with and without a limit to how far a value moves in an update; mse: squared error."""
    huber_delta: Positive = 10.0
    """Error above which huber is linear, in units of return."""
    clip: Positive = flag("--value-clip", 0.2)
    """How far `clipped` lets a value move, in units of return."""
    hidden: Count = flag("--value-hidden", 256)
    """Channels of each hidden layer."""
    layers: Index = flag("--value-layers", 2)
    """Hidden layers."""
    detach: bool = flag("--detach-value", False)
    """Keep the value loss from changing the policy through the hidden state that both share."""
    warmup: Index = flag("--value-warmup", 0)
    """First updates in which the value head learns alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_epochs and self.critic == "shared":
            raise ConfigError(
                f"ppo.value.extra_epochs is {self.extra_epochs}, but the critic shares the policy's"
                " hidden state and has nothing to learn from alone; set ppo.value.critic to own or"
                " state"
            )


@dataclass(frozen=True)
class PpoConfig(Section, section="ppo"):
    """The update of the weights from a rollout."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    """ppo: advantages from a value head; grpo: from a group of episodes with the same start, no
    value head."""
    learning_rate: Amount = 1e-4
    """Learning rate of the adapters, or, without adapters, of all weights (then 1e-6 to 5e-6); 3e-4
    diverged in a prototype (KL 2.1)."""
    head_learning_rate: Amount | None = None
    """Learning rate of OpenVLA-OFT's head and projector of joints, all of whose weights learn, also
    beside adapters; default: learning_rate."""
    epochs: Count = 2
    """How often an update uses every sample; RL4VLA finds 1 enough if rollouts are cheap."""
    minibatch_size: Count = 240
    """Samples per step of the optimizer, of all processes together."""
    micro_batch_size: Count = 60
    """Samples per process and pass through the model: changes memory and speed, not results;
    lower it if memory runs out."""
    level: Literal["action", "token"] = "action"
    """Unit of a probability ratio. action: all tokens of a prediction together, which was rewarded;
    token: each token alone, whose ratios stay near 1 however many tokens a prediction has."""
    clip_low: Share = 0.2
    """A ratio below 1 − this gains nothing by falling further."""
    clip_high: Amount = 0.28
    """A ratio above 1 + this gains nothing by rising further; above clip_low, unlikely actions that
    worked may grow faster. Equal to clip_low for the symmetric clip."""
    dual_clip: Annotated[float, above(1)] | None = None
    """Bound on the loss of a bad action with a large ratio, in advantages; 3 is usual; none: plain
    PPO."""
    gamma: Share = 0.99
    """Discount per decision; a prediction of several steps is one decision."""
    gae_lambda: Share = 0.95
    """Lambda of GAE, per decision: 0 relies on the value head, 1 on the rewards."""
    horizon_s: FinitePositive | None = None
    """Instead of gamma: simulated seconds after which a reward counts 1/e, whatever the policy's
    rate and chunk are."""
    credit_s: FinitePositive | None = None
    """Instead of gae_lambda: simulated seconds over which lambda falls to 1/e; longer relies on the
    rewards, shorter on the critic."""
    normalise_advantages: bool = True
    """Normalise advantages over the whole batch of all processes; grpo: by group."""
    policy_coefficient: Amount = 1.0
    """Weight of the policy loss; 0 for a control that must not learn."""
    entropy_coefficient: Amount = 0.0
    """Weight of the entropy bonus, per token in nats."""
    kl_coefficient: Amount = 0.0
    """Weight of the KL divergence to the policy without its adapters, per prediction in nats; above
    0 costs one more pass without gradients per update."""
    ref_kl_target: FinitePositive | None = None
    """Double or halve kl_coefficient after an update in which that divergence is 1.5 times further
    from this than it should be; none: a fixed one."""
    target_kl: Positive | None = 0.1
    """An update ends early when the KL divergence to the policy that acted, per prediction in nats,
    exceeds this; none: never."""
    max_grad_norm: Positive = 10.0
    """Gradients of policy and value head together are clipped to this norm."""
    weight_decay: Amount = 0.0
    """Weight decay of AdamW, for the policy."""
    temperature: Positive = 1.0
    """Sampling temperature of rollouts; updates compute probabilities at the same one."""
    old_log_probs: Literal["rollout", "recomputed"] = "rollout"
    """Source of the ratio's denominator. In bf16, rollouts round differently from updates:
    recomputed costs one more pass without gradients and makes the first ratio 1."""
    action_std: FinitePositive = 0.02
    """Standard deviation, fixed, of the actions of a policy with OpenVLA-OFT's head, at temperature
    1; −1 to 1 is the range of its statistics. A policy of tokens has a distribution already."""
    action_std_end: FinitePositive | None = None
    """What that standard deviation falls or rises to, linearly, in the last update; default: it
    stays. Wide tries find more, narrow ones succeed more often."""
    action_correlation: BelowOne = 0.0
    """Correlation of those actions' noise from one step of a prediction to the next, 0 to below 1.
    An arm hardly follows noise that is new at each step; at 0.9 a try differs as a whole."""
    value: ValueConfig = field(default_factory=ValueConfig)

    def action_std_at(self, share: float) -> float:
        """Return the standard deviation of actions after a share, 0 to 1, of all updates."""
        end = self.action_std if self.action_std_end is None else self.action_std_end
        return self.action_std + share * (end - self.action_std)

    def discounts(self, decision_s: float) -> tuple[float, float]:
        """Return gamma and lambda per decision, which lasts `decision_s` of simulated time."""
        gamma, gae_lambda = self.gamma, self.gae_lambda
        if self.horizon_s is not None:
            gamma = math.exp(-decision_s / self.horizon_s)
        if self.credit_s is not None:
            gae_lambda = math.exp(-decision_s / self.credit_s)
        return gamma, gae_lambda
