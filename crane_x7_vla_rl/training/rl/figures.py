"""What is logged of an update of reinforcement learning, for files, people and a plot.

Figures of rollout, update and evaluation → a log line, a bar's text and `curves.png`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.training.tracking import METRICS, Step, short

PLOT: Final = "curves.png"
DRAWN: Final[Mapping[str, Mapping[str, str]]] = {
    "success of sampled episodes": {"success": "this rollout's", "recent_success": "recent"},
    "success in evaluation": {"evaluation_success": ""},
    "return of sampled episodes": {"episode_return": ""},
    "KL to the policy that acted, nats": {"approx_kl": ""},
    "ratios clipped": {"clip_fraction": ""},
    "explained variance of returns": {"explained_variance": ""},
    "entropy, nats per token": {"entropy": ""},
    "control steps per second": {"env_steps_s": ""},
    "seconds of an update": {"simulate_s": "simulate", "infer_s": "infer", "learn_s": "learn"},
}
"""Title of each picture, and its curves with their names."""
SHARES: Final = ("success of sampled episodes", "success in evaluation", "ratios clipped")


@dataclass(frozen=True)
class UpdateMetrics:
    """Metrics of an update, over all processes; means over its minibatches."""

    policy_loss: float
    value_loss: float
    entropy: float
    """Nats per token."""
    approx_kl: float
    """KL to the policy that acted, nats per prediction; in the last minibatch."""
    ref_kl: float
    """KL to the starting policy, nats per prediction; 0 if kl_coefficient is 0."""
    clip_fraction: float
    """Share of ratios outside the clip."""
    explained_variance: float
    """Of returns, by the rollout's values: 1 perfect, 0 no better than a constant."""
    grad_norm: float
    """Norm before clipping."""
    policy_grad_norm: float
    """Of the policy loss alone, for the probed samples; 0 where nothing was to be learned."""
    ratio_error: float
    """Largest distance of a ratio from 1 before the first step."""
    value_error: float
    """Largest distance of a value from the rollout's before the first step."""
    advantage_mean: float
    """Before normalisation."""
    advantage_std: float
    samples: int
    """Valid samples of the rollout."""
    minibatches: int
    """Steps of the optimizer."""
    stopped_early: bool
    """Whether target_kl ended the update early."""


@dataclass(frozen=True)
class RlFigures(UpdateMetrics, Step):
    """One update: its metrics, its rollout, and its time."""

    env_steps: int
    """Control steps of all processes together, since the beginning."""
    episodes: int
    """Episodes that ended in this rollout."""
    success: float | None
    """Share of them; None where none ended. Too high in the rollouts after a start or checkpoint,
    where only short episodes have had the time to end."""
    episode_return: float | None
    """Mean, not discounted."""
    episode_steps: float | None
    """Mean control steps."""
    discarded: int
    """Decisions that crashed simulations lost."""
    learning_rate: float
    env_steps_s: float
    """Control steps per second of the whole update."""
    simulate_s: float
    """Waiting for simulations, the first process."""
    infer_s: float
    learn_s: float
    update_s: float
    """Time from update to update, without evaluation and saving."""
    evaluation_success: float | None = None
    """Of the evaluation after this update."""
    recent_success: float | None = None
    """Share of the newest 100 episodes or a few more whose time limit has passed, however they
    ended: `success` without its bias, and smoother; see `episode_stats`."""
    middle_success: float | None = None
    """Share of this rollout's episodes that began in the middle of a demonstration; none of the
    other figures of episodes counts them."""
    kl_coefficient: float | None = None
    """Weight of the KL divergence to the starting policy in this update."""


def line(figures: RlFigures) -> str:
    """Return the log line of an update."""
    return (
        f"update:{figures.step} stps:{short(figures.env_steps)} {_shares(figures)}"
        f" entr:{figures.entropy:.2f} vlss:{figures.value_loss:.4f} grdn:{figures.grad_norm:.3f}"
        f" stps/s:{figures.env_steps_s:.1f} sim_s:{figures.simulate_s:.2f}"
        f" inf_s:{figures.infer_s:.2f} lrn_s:{figures.learn_s:.2f}{_evaluated(figures)}"
    )


def bar(figures: RlFigures) -> str:
    """Return the text below the progress bar."""
    return (
        f"success {_percent(figures.recent_success)} (this rollout {_percent(figures.success)})"
        f" · return {_number(figures.episode_return)} · KL"
        f" {figures.approx_kl:.3f} · clipped {figures.clip_fraction:.0%} · explained"
        f" {figures.explained_variance:.2f} · {figures.env_steps_s:.1f} steps/s (simulate"
        f" {figures.simulate_s:.1f} s, infer {figures.infer_s:.1f} s, learn"
        f" {figures.learn_s:.1f} s)"
    )


def _shares(figures: RlFigures) -> str:
    return (
        f"succ:{_percent(figures.success)} rcnt:{_percent(figures.recent_success)}"
        f" retn:{_number(figures.episode_return)}"
        f" kl:{figures.approx_kl:.3f} clip:{figures.clip_fraction:.2f}"
        f" expv:{figures.explained_variance:.2f}"
    )


def _evaluated(figures: RlFigures) -> str:
    if figures.evaluation_success is None:
        return ""
    return f" eval:{figures.evaluation_success:.1%}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plot(run: Path) -> None:
    """Draw `curves.png` of what metrics.jsonl holds, over environment steps."""
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [
        json.loads(text) for text in (run / METRICS).read_text().splitlines()
    ]
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(3, 3).flat
    for axis, (title, curves) in zip(axes, DRAWN.items(), strict=True):
        for name, label in curves.items():
            _draw(axis, lines, name, label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("control steps", fontsize=8)
        if title in SHARES:
            axis.set_ylim(-0.02, 1.02)
        elif "second" in title:
            axis.set_ylim(bottom=0)
        if len(curves) > 1:
            axis.legend(fontsize=8)
    figure.savefig(run / PLOT, dpi=100)


def _draw(axis: Any, lines: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    """Draw one figure over control steps; few points, or a single curve, also as dots."""
    points = [(one["env_steps"], one[name]) for one in lines if one.get(name) is not None]
    dots = name == "evaluation_success" or len(points) == 1
    thin = {"alpha": 0.4, "linewidth": 0.8} if name == "success" else {}
    axis.plot(
        *zip(*points, strict=True) if points else ([], []), "o-" if dots else "-",
        label=label or name, **thin,
    )  # fmt: skip
