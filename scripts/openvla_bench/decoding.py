"""Cases of bench_openvla: other ways to decode than token by token with the model's own weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from openvla_bench.figures import TOKENS, Bench, Inputs, in_turn, inputs
from openvla_bench.limits import generate_limit


def tiles(bench: Bench) -> None:
    """Tune the 8-bit products for this card; the cases after it use what was found.

    The tiles are printed for `low_bit_tiles.TABLE`.
    """
    from crane_x7_vla_rl.policies.openvla.run.low_bit_tune import RELEASED, cuda_clock, tune

    for rows in (1, 16):
        for one in tune(RELEASED, rows, cuda_clock(bench.device)):
            print(f"{one.rows} rows, {one.outputs} × {one.inputs}: {one.tiles}")
            name = f"int8 product of {one.outputs} × {one.inputs}, {one.rows} rows"
            bench.row(f"{name}: tuned", one.seconds * 1e6, "µs", one.default_s * 1e6)
            share = 100 * one.bytes_per_s / bench.here.bytes_s
            bench.row(f"{name}: share of the bandwidth", share, "%", better="higher")


def low_bit(kind: Literal["int8", "fp8"]) -> Callable[[Bench], None]:
    def case(bench: Bench) -> None:
        from crane_x7_vla_rl.policies.openvla.run.low_bit_error import compare

        batches = inputs(bench, 1)
        (dense,) = in_turn(bench, batches, lambda one: bench.runner.roll_out(*one, 7).tokens.cpu())
        runner = Runner(bench.model, kind)
        (low,) = in_turn(bench, batches, lambda one: runner.roll_out(*one, 7).tokens.cpu())
        limit = generate_limit(bench.model.config, bench.here, 1, TOKENS, 7, 1).total_s
        bench.row(f"{kind} decode, batch 1, 7 tokens: latency", low * 1e3, "ms", dense * 1e3)
        bench.row(f"{kind} decode, batch 1, 7 tokens: latency / limit", low / limit, "")
        error = compare(bench.model, kind, *inputs(bench, 8)[0], 7)
        bench.row(f"{kind} decode: tokens unchanged, random weights", 100 * error.same_tokens, "%")
        bench.row(f"{kind} decode: mean action error, random weights", error.mean, "of −1…1")

    return case


def speculation(bench: Bench) -> None:
    """Decode with the last action as a draft. Random weights and images: the number of passes says
    nothing (`scripts/bench_speculation` counts it), the time of one does."""
    batches = inputs(bench, 1)
    first, plain = in_turn(
        bench, batches,
        lambda one: bench.runner.roll_out(*one, 1).tokens.cpu(),
        lambda one: bench.runner.roll_out(*one, 8).tokens.cpu(),
    )  # fmt: skip
    runner, found = Runner(bench.model, speculate=True), list[Rollout]()

    def run(one: Inputs) -> object:
        found.append(runner.roll_out(*one, 8))
        return found[-1].tokens.cpu()

    (drafted,) = in_turn(bench, batches, run)
    passes = statistics.fmean(each.passes for each in found)
    name = "speculation, batch 1, 8 tokens"
    bench.row(f"{name}: latency", drafted * 1e3, "ms", plain * 1e3)
    bench.row(f"{name}: passes after the prefill, random weights", passes, "")
    if passes:
        a_pass, a_token = (drafted - first) / passes, (plain - first) / 7
        bench.row(f"{name}: one pass over 7 positions", a_pass * 1e3, "ms", a_token * 1e3)
