"""The cases of bench_openvla, each a function of a `Bench` that adds its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from openvla_bench.figures import SEED, TOKENS, Bench, Inputs, generate, in_turn, inputs, peak_gb
from openvla_bench.limits import evaluate_flop, generate_limit, vision_flop


def same_model(bench: Bench) -> None:
    """Check that both compute the same; else the comparison is invalid."""
    (pixels, ids), *_ = inputs(bench, 2)
    ours = bench.runner.roll_out(pixels, ids, 1).logits[:, 0]
    theirs = bench.baseline.first_logits(pixels, ids)
    spread = float(theirs.std())
    bench.row(
        "difference of both models' action logits / their spread",
        float((ours - theirs).abs().max()) / spread, "", target=0.1,
    )  # fmt: skip


def batch_1(bench: Bench) -> None:
    ours, theirs = generate(bench, 1, 8)
    limit = generate_limit(bench.model.config, bench.here, 1, TOKENS, 8)
    bench.row("batch 1, 8 tokens: latency", ours * 1e3, "ms", theirs * 1e3, least_ratio=3)
    bench.row("batch 1, 8 tokens: latency, absolute", ours * 1e3, "ms", target=38)
    bench.row("batch 1, 8 tokens: latency / limit", ours / limit.total_s, "", target=1.4)
    bench.row("batch 1, 8 tokens: limit", limit.total_s * 1e3, "ms")
    bench.row("batch 1, 8 tokens: rate", 1 / ours, "Hz", 1 / theirs, better="higher")


def throughput(batch: int) -> Callable[[Bench], None]:
    def case(bench: Bench) -> None:
        ours, theirs = generate(bench, batch, 7)
        limit = generate_limit(bench.model.config, bench.here, batch, TOKENS, 7)
        name = f"batch {batch}, 7 tokens"
        bench.row(f"{name}: throughput", batch / ours, "actions/s", batch / theirs, better="higher")
        target = 60 if batch == 64 else None
        share = 100 * limit.total_s / ours
        bench.row(f"{name}: share of the limit", share, "%", target=target, better="higher")
        bench.row(f"{name}: limit", batch / limit.total_s, "actions/s")

    return case


def parts(bench: Bench) -> None:
    """Split the time of batch 1."""
    batches = inputs(bench, 1)
    limit = generate_limit(bench.model.config, bench.here, 1, TOKENS, 8)
    see = torch.no_grad()(lambda one: bench.model.encode(one[0]))
    vision, prefill, whole = in_turn(
        bench,
        batches,
        see,
        lambda one: bench.runner.roll_out(*one, 1).tokens,
        lambda one: bench.runner.roll_out(*one, 8).tokens,
    )
    bench.row("vision alone, without a graph", vision * 1e3, "ms")
    bench.row("vision, prefill and one token", prefill * 1e3, "ms")
    bench.row("limit of vision and prefill", (limit.vision_s + limit.prefill_s) * 1e3, "ms")
    bench.row("decode, per token", (whole - prefill) / 7 * 1e3, "ms")
    bench.row("limit of decode, per token", limit.decode_s / 7 * 1e3, "ms")
    pixels = batches[0][0]
    run = lambda one: bench.runner.roll_out(pixels, one[1], 8).tokens.cpu()  # noqa: E731
    (again,) = in_turn(bench, batches, run)
    bench.row("batch 1, 8 tokens, the same image again: latency", again * 1e3, "ms")


def low_bit(kind: str) -> Callable[[Bench], None]:
    def case(bench: Bench) -> None:
        from crane_x7_vla_rl.policies.openvla.run.low_bit_error import compare

        batches = inputs(bench, 1)
        (dense,) = in_turn(bench, batches, lambda one: bench.runner.roll_out(*one, 7).tokens.cpu())
        runner = Runner(bench.model, kind)  # type: ignore[arg-type]
        (low,) = in_turn(bench, batches, lambda one: runner.roll_out(*one, 7).tokens.cpu())
        limit = generate_limit(bench.model.config, bench.here, 1, TOKENS, 7, 1).total_s
        bench.row(f"{kind} decode, batch 1, 7 tokens: latency", low * 1e3, "ms", dense * 1e3)
        bench.row(f"{kind} decode, batch 1, 7 tokens: latency / limit", low / limit, "")
        error = compare(bench.model, kind, *inputs(bench, 8)[0], 7)  # type: ignore[arg-type]
        bench.row(f"{kind} decode: tokens unchanged, random weights", 100 * error.same_tokens, "%")
        bench.row(f"{kind} decode: mean action error, random weights", error.mean, "of −1…1")

    return case


def evaluate_forward(bench: Bench) -> None:
    batch, steps = (64, 7) if bench.device.type == "cuda" else (4, 7)
    batches = inputs(bench, batch)
    tokens = actions(bench, batch, steps)
    ours, theirs = in_turn(
        bench,
        batches,
        torch.no_grad()(lambda one: evaluate(bench.model, *one, tokens)),
        torch.no_grad()(lambda one: bench.baseline.evaluate(*one, tokens)),
    )
    flop = evaluate_flop(bench.model.config, batch, TOKENS, steps)
    share = 100 * flop / ours / bench.here.flop_s
    name = f"evaluate, batch {batch}, forward"
    bench.row(name, ours * 1e3, "ms", theirs * 1e3)
    bench.row(f"{name}: share of peak FLOP/s", share, "%", target=gpu(bench, 45), better="higher")


def evaluate_backward(bench: Bench) -> None:
    """The last case, because it leaves adapters in the model."""
    from peft import LoraConfig, inject_adapter_in_model

    from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora

    batch, steps = (64, 7) if bench.device.type == "cuda" else (4, 7)
    batches, tokens = inputs(bench, batch), actions(bench, batch, steps)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    llama = bench.baseline.llama
    inject_adapter_in_model(LoraConfig(r=32, lora_alpha=16, target_modules=names), llama)
    llama.train()
    # Renamed in recent versions.
    name = "activation_checkpointing_enable"
    getattr(llama, name if hasattr(llama, name) else "gradient_checkpointing_enable")()
    llama.enable_input_require_grads()
    theirs, their_gb = backward(
        bench, batches, lambda one: bench.baseline.evaluate(*one, tokens), llama
    )
    llama.eval()
    add_lora(bench.model, LoraSettings(rank=32, alpha=16.0, targets=names))
    bench.model.train()
    bench.model.checkpoint_gradients()
    run = lambda one: evaluate(bench.model, *one, tokens).log_probs  # noqa: E731
    ours, our_gb = backward(bench, batches, run, bench.model)
    # Only the language model has adapters, so vision runs forward once.
    config = bench.model.config
    vision = batch * vision_flop(config)
    flop = vision + 3 * (evaluate_flop(config, batch, TOKENS, steps) - vision)
    share = 100 * flop / ours / bench.here.flop_s
    name = f"evaluate, batch {batch}, forward and backward, LoRA in the language model"
    bench.row(name, ours * 1e3, "ms", theirs * 1e3)
    bench.row(f"{name}: share of peak FLOP/s", share, "%", target=gpu(bench, 45), better="higher")
    if our_gb and their_gb:
        bench.row(f"{name}: peak memory", our_gb, "GB", their_gb)


def backward(
    bench: Bench,
    batches: Sequence[Inputs],
    run: Callable[[Inputs], torch.Tensor],
    module: torch.nn.Module,
) -> tuple[float, float]:
    """Return median seconds of forward and backward, and on CUDA the peak memory in GB."""

    def both(one: Inputs) -> None:
        run(one).sum().backward()
        module.zero_grad(set_to_none=True)

    rounds, bench.rounds = bench.rounds, min(bench.rounds, 6)
    try:
        (seconds,) = in_turn(bench, batches, both)
        return seconds, peak_gb(bench, partial(both, batches[0]))
    finally:
        bench.rounds = rounds


def actions(bench: Bench, batch: int, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(31744, 32000, (batch, steps), generator=generator)
    return tokens.to(bench.device)


def gpu(bench: Bench, target: float) -> float | None:
    """Targets apply only to the GPU."""
    return target if bench.device.type == "cuda" else None


class CountLaunches(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    count = 0
    undeclared = torch.ops.aten._unsafe_view.default
    """A view that its schema does not mark as one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        alias = returns[0].alias_info if returns else None
        view = alias is not None and not alias.is_write
        self.count += not (view or func is self.undeclared)
        return func(*args, **(kwargs or {}))


def launches(bench: Bench) -> None:
    """Operations per action, on a CPU; on CUDA a captured graph would count as none."""
    batches = inputs(bench, 1)

    def count(run: Callable[[Inputs], object]) -> float:
        for one in batches:
            run(one)
        with CountLaunches() as mode:
            for one in batches:
                run(one)
        return mode.count / len(batches)

    ours = count(lambda one: bench.runner.roll_out(*one, 8).tokens)
    theirs = count(lambda one: bench.baseline.generate(*one, 8))
    bench.row("operations launched per action of 8 tokens", ours, "", theirs)


def batch_1_cpu(bench: Bench) -> None:
    ours, theirs = generate(bench, 1, 8)
    bench.row("batch 1, 8 tokens, tiny: latency", ours * 1e3, "ms", theirs * 1e3)
    ours, theirs = generate(bench, 16, 7)
    bench.row("batch 16, 7 tokens, tiny: throughput", 16 / ours, "actions/s", 16 / theirs,
              better="higher")  # fmt: skip


CASES: dict[str, dict[str, Callable[[Bench], None]]] = {
    "cuda": {
        "same": same_model,
        "batch1": batch_1,
        "parts": parts,
        "batch16": throughput(16),
        "batch64": throughput(64),
        "fp8": low_bit("fp8"),
        "int8": low_bit("int8"),
        "evaluate": evaluate_forward,
        "backward": evaluate_backward,
    },
    "cpu": {
        "same": same_model,
        "launches": launches,
        "batch1": batch_1_cpu,
        "evaluate": evaluate_forward,
        "backward": evaluate_backward,
    },
}
