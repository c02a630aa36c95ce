"""One step of each trainer at the released size. A model's folder → seconds, rates and memory.

Both run as the trainers do, through the parts of bench_sft and bench_rl.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from statistics import median
from typing import Final

import torch
from openvla_bench.limits import best_seconds
from sft_bench.figures import Figures
from sft_bench.flops import update_flop
from sft_bench.ours import Case as SftCase
from sft_bench.ours import opened as opened_sft
from sft_bench.world import SCALES, write_data

from gpu_check.parts import Options, Skipped
from gpu_check.released import SIZE

SAMPLES_S: Final = 55.0
ENV_STEPS_S: Final = 40.0
"""Targets on one H200."""
ENVS: Final = 64
DECISIONS: Final = 256
ROLLOUT: Final = {
    "training.device": "cuda", "training.rollout_steps": DECISIONS // ENVS,
    "training.gradient_checkpointing": True, "env.num_parallel_envs": ENVS,
    "ppo.epochs": 1, "ppo.minibatch_size": DECISIONS, "ppo.micro_batch_size": 64,
    "lora.rank": 32,
}  # fmt: skip


def peak_gb() -> float:
    """Return the most GPU memory that tensors took, 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def matrix_flop_s(device: torch.device) -> float:
    """Return the FLOP/s that one large product reaches."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: left @ right, device)


def fine_tuning(figures: Figures, options: Options) -> None:
    """Run two rounds of updates of sft, without recomputation."""
    device = torch.device(options.device)
    scale = replace(SCALES[SIZE[options.tiny]], rounds=2)
    if not options.tiny:
        scale = replace(scale, episodes=4, warm=3, updates=6)
    data = write_data(options.scratch / "sft-data", scale)
    precision = "bf16" if device.type == "cuda" else "fp32"
    case = SftCase(options.model, data, scale, device, precision, 0)
    opened_s = time.perf_counter()
    (options.scratch / "sft").mkdir()
    with opened_sft(case, options.scratch / "sft" / "run") as ours:
        figures.row("open: model, adapters, data", time.perf_counter() - opened_s, "s")
        for _ in range(scale.rounds):
            ours.turn()
        rate = median(ours.rates)
        target = None if options.tiny else SAMPLES_S
        name = f"batch {scale.batch}"
        figures.row(f"{name}: samples", rate, "samples/s", at_least=target)
        figures.row(f"{name}: an update", scale.batch / rate, "s")
        figures.row(f"{name}: waiting for data", ours.data_share(), "%", at_most=5.0)
        figures.row(f"{name}: most GPU memory", peak_gb(), "GB")
        codec, episode = ours.run.codec, ours.run.source[0]
        (prompt,) = codec.prompts([episode.instruction], episode.state[:1])
        work = update_flop(ours.run.learner.model, len(prompt), codec.answer_length)
    limit = matrix_flop_s(device) / work
    figures.row("limit by matrix products", limit, "samples/s")
    figures.row("share of the limit", 100 * rate / limit, "%")


def reinforcement(figures: Figures, options: Options) -> None:
    """Run a rollout and its update of PPO, after a short one."""
    missing = [name for name in ("mani_skill", "sapien") if find_spec(name) is None]
    if missing:
        raise Skipped(f"{', '.join(missing)} missing; see --bundle and --packages")
    from rl_bench.case import SCALES as RL_SCALES
    from rl_bench.case import Case
    from rl_bench.ours import opened

    scale = RL_SCALES["smallest"]
    if not options.tiny:
        scale = replace(scale, changes=ROLLOUT)
    folder = options.scratch / "ppo"
    folder.mkdir()
    opened_s = time.perf_counter()
    case = Case(options.model, scale, torch.device(options.device), 1, folder)
    with opened(case) as ours:
        figures.row("open: model, adapters, scenes", time.perf_counter() - opened_s, "s")
        ours.warm()
        found = ours.turn()
    figures.row("rollout and update", found.whole_rate, "env-steps/s",
                at_least=None if options.tiny else ENV_STEPS_S)  # fmt: skip
    figures.row("rollout", found.rollout_rate, "env-steps/s")
    figures.row("update", found.learn_rate, "samples/s")
    figures.row("rollout: waiting for simulations", 100 * found.simulate_s / found.rollout_s, "%")
    figures.row("rollout, seconds", found.rollout_s, "s")
    figures.row("update, seconds", found.learn_s, "s")
    figures.row("most GPU memory", peak_gb(), "GB")
