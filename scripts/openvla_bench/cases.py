"""The cases of bench_openvla, each a function of a `Bench` that adds its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from openvla_bench.choices import compiled_vision, products
from openvla_bench.decoding import low_bit, speculation, tiles
from openvla_bench.figures import SEED, TOKENS, Bench, Inputs, generate, in_turn, inputs, peak_gb
from openvla_bench.limits import evaluate_flop, generate_limit, vision_flop
from openvla_bench.stages import CountLaunches, counts, split


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
    run = lambda one: bench.runner.roll_out(*one, 8).tokens.cpu()  # noqa: E731
    (alone,) = in_turn(bench, inputs(bench, 1), run)
    limit = generate_limit(bench.model.config, bench.here, 1, TOKENS, 8)
    name = "batch 1, 8 tokens: latency"
    bench.row(name, ours * 1e3, "ms", theirs * 1e3, least_ratio=3)
    bench.row(f"{name}, alone", alone * 1e3, "ms", target=29)
    bench.row(f"{name}, alternating / alone", ours / alone, "", target=1.05)
    bench.row(f"{name} / limit", alone / limit.total_s, "", target=1.1)
    bench.row("batch 1, 8 tokens: limit", limit.total_s * 1e3, "ms")
    bench.row("batch 1, 8 tokens: rate", 1 / ours, "Hz", 1 / theirs, better="higher")


def throughput(batch: int) -> Callable[[Bench], None]:
    def case(bench: Bench) -> None:
        ours, theirs = generate(bench, batch, 7)
        limit = generate_limit(bench.model.config, bench.here, batch, TOKENS, 7)
        name = f"batch {batch}, 7 tokens"
        bench.row(f"{name}: throughput", batch / ours, "actions/s", batch / theirs, better="higher")
        target = 85 if batch == 64 else None
        share = 100 * limit.total_s / ours
        bench.row(f"{name}: share of the limit", share, "%", target=target, better="higher")
        bench.row(f"{name}: limit", batch / limit.total_s, "actions/s")

    return case


def parts(batch: int, steps: int) -> Callable[[Bench], None]:
    """Each stage beside its own limit."""

    def case(bench: Bench) -> None:
        found = split(bench, inputs(bench, batch), steps)
        limit = generate_limit(bench.model.config, bench.here, batch, TOKENS, steps)
        least = {"vision": limit.vision_s, "prefill": limit.prefill_s, "decode": limit.decode_s}
        name = f"batch {batch}, {steps} tokens"
        for stage, seconds in found.stages.items():
            bench.row(f"{name}: {stage}", seconds * 1e3, "ms")
            bench.row(f"{name}: {stage}, limit", least[stage] * 1e3, "ms")
            share = 100 * least[stage] / seconds
            bench.row(f"{name}: {stage}, share of the limit", share, "%", better="higher")
        bench.row(f"{name}: decode, per token", found.stages["decode"] / (steps - 1) * 1e3, "ms")
        bench.row(f"{name}: outside the stages", found.rest * 1e3, "ms")

    return case


def repeated(bench: Bench) -> None:
    """The same image with another prompt: vision and the image's part of the prefill are kept."""
    batches = inputs(bench, 1)
    pixels = batches[0][0]
    run = lambda one: bench.runner.roll_out(pixels, one[1], 8).tokens.cpu()  # noqa: E731
    (again,) = in_turn(bench, batches, run)
    bench.row("batch 1, 8 tokens, the same image again: latency", again * 1e3, "ms")


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
    for stage, mode in counts(bench, batches, 8).items():
        bench.row(f"operations launched: {stage}", mode.count, "")
        bench.row(f"bytes read and written: {stage}", mode.bytes / 1e6, "MB")


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
        "parts": parts(1, 8),
        "parts64": parts(64, 7),
        "repeated": repeated,
        "products": products,
        "batch16": throughput(16),
        "batch64": throughput(64),
        "tiles": tiles,
        "fp8": low_bit("fp8"),
        "int8": low_bit("int8"),
        "speculation": speculation,
        "evaluate": evaluate_forward,
        "backward": evaluate_backward,
    },
    "cpu": {
        "same": same_model,
        "launches": launches,
        "batch1": batch_1_cpu,
        "parts": parts(1, 8),
        "speculation": speculation,
        "evaluate": evaluate_forward,
        "backward": evaluate_backward,
    },
}

ON_REQUEST: dict[str, dict[str, Callable[[Bench], None]]] = {
    "cuda": {"compiled": compiled_vision},
    "cpu": {"products": products},
}
"""Cases that run only if `--only` names them: one takes minutes, one says nothing about a GPU."""
