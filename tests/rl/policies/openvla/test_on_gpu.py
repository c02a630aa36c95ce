"""What only a GPU shows: graphs, kernels, memory. Where they can, the tests run on the CPU, too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oft_rig
import openvla_rig as rig
import pytest
import torch
from torch import Tensor

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.low_bit import Kind
from crane_x7_vla_rl.policies.openvla.run.low_bit_error import compare
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, load_oft
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.policies.openvla.weights.merged import Merged


def on(device: str, *values: object) -> Any:
    """A test's parameters, with the marker of their device."""
    return pytest.param(device, *values, marks=pytest.mark.slow if device == "cpu" else GPU)


GPU = pytest.mark.gpu
LOGITS = 2e-4
on_devices = pytest.mark.parametrize("device", [on("cpu"), on("cuda")])


def load(device: str, dtype: torch.dtype = torch.float32) -> OpenVLA:
    return loading.load(rig.CHECKPOINT, device=device, dtype=dtype).model


def pixels(model: OpenVLA) -> Tensor:
    return rig.expected()["pixel_values"].to(model.projector.fc3.bias)


def answer(runner: Runner, rows: slice = slice(None), steps: int = 8) -> Tensor:
    return runner.roll_out(pixels(runner.model)[rows], rig.prompts()[rows], steps).tokens.cpu()


@on_devices
def test_graphs_are_replayed_with_the_weights_of_now(device: str) -> None:
    model = load(device)
    runner = Runner(model)
    for _ in range(3):  # captured, then replayed
        assert torch.equal(answer(runner), rig.tokens("crane_x7"))
    with torch.no_grad():
        for parameter in model.language_model.model.layers.parameters():
            parameter.mul_(1.3)
    fresh = load(device)
    fresh.load_state_dict(model.state_dict())
    wanted = answer(Runner(fresh))
    assert not torch.equal(wanted, rig.tokens("crane_x7"))
    assert torch.equal(answer(runner), wanted)


@on_devices
def test_image_and_prompt_are_reused_and_replaced(device: str) -> None:
    runner, wanted = Runner(load(device)), rig.tokens("crane_x7")
    shown, ids = pixels(runner.model), rig.prompts()
    for image, prompt in ((0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (3, 3), (2, 2)):
        found = runner.roll_out(shown[image : image + 1], ids[prompt : prompt + 1], 8)
        fresh = Runner(runner.model).roll_out(shown[image : image + 1], ids[prompt : prompt + 1], 8)
        assert torch.equal(found.tokens, fresh.tokens)
        assert float((found.logits - fresh.logits).abs().max()) <= LOGITS
        if image == prompt:
            assert torch.equal(found.tokens[0].cpu(), wanted[image])


@pytest.mark.parametrize(
    ("device", "batch"),
    [*(on("cpu", batch) for batch in (1, 2, 5)),
     *(on("cuda", batch) for batch in (1, 2, 5, 16, 64, 256))],
)  # fmt: skip
def test_a_batch_of_any_size_gives_the_tokens_of_single_prompts(device: str, batch: int) -> None:
    runner = Runner(load(device))
    rows = [row % rig.COUNT for row in range(batch)]
    prompts = [rig.prompts()[row] for row in rows]
    found = runner.roll_out(pixels(runner.model)[rows], prompts, 4)
    assert torch.equal(found.tokens.cpu(), rig.tokens("crane_x7")[rows, :4])


@on_devices
def test_the_device_resizes_as_pil_does(device: str) -> None:
    model = load(device)
    difference = (model.preprocess(rig.images()).cpu() - rig.expected()["pixel_values"]).abs()
    assert float(difference.max()) <= 1e-6


@pytest.mark.parametrize(
    ("device", "recompute"),
    [on(device, recompute) for device in ("cpu", "cuda") for recompute in (False, True)],
)
def test_gradients_of_adapters_are_those_of_float64(device: str, recompute: bool) -> None:
    model = load(device)
    adapted(model)
    truth = copy.deepcopy(model).to(device="cpu", dtype=torch.float64)
    model.checkpoint_gradients(recompute)
    found, wanted = (gradient(one.train()) for one in (model, truth))
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-4


def adapted(model: OpenVLA) -> None:
    torch.manual_seed(0)
    add_lora(model, LoraSettings(rank=4, alpha=8.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def gradient(model: OpenVLA) -> Tensor:
    tokens = rig.tokens("crane_x7")
    evaluate(model, pixels(model), rig.prompts(), tokens).log_probs.sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found).cpu().double()


@on_devices
def test_a_merged_policy_predicts_as_the_one_that_learns(device: str) -> None:
    model = load(device)
    adapted(model)
    merged = Merged(model)
    runner = Runner(merged.model)
    for factor in (1.0, 2.0):  # after a change of the adapters, through the same graphs
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter.mul_(factor)
        merged.refresh()
        found = runner.roll_out(pixels(model), rig.prompts(), 4)
        with torch.no_grad():
            wanted = evaluate(model.eval(), pixels(model), rig.prompts(), found.tokens)
        assert float((found.log_probs - wanted.log_probs).abs().max()) <= 1e-3


@on_devices
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bit_decode_is_as_near_as_on_a_cpu(device: str, kind: Kind) -> None:
    model = load(device)
    found = compare(model, kind, pixels(model), rig.prompts(), 8)
    assert found.log_prob < (0.4 if kind == "int8" else 1.6)
    assert found.same_tokens >= 0.25


@on_devices
def test_openvla_oft_predicts_what_it_predicts_in_float64(device: str, tmp_path: Path) -> None:
    folder = oft_rig.write(tmp_path / "oft")
    policies = [
        load_oft(folder, settings=ChunkSettings(oft_rig.STEPS), device=place, dtype=dtype)
        for place, dtype in ((device, torch.float32), ("cpu", torch.float64))
    ]
    state = np.linspace(-0.5, 2.0, 2 * oft_rig.STATE_DIM).reshape(2, -1)
    for _ in range(2):  # captured, then replayed
        found, wanted = (
            one.predict(pixels(one.base)[:2], rig.prompts()[:2], oft_rig.KEY, state)
            for one in policies
        )
        assert np.abs(found - wanted).max() <= 1e-4


@on_devices
def test_samples_follow_their_generator(device: str) -> None:
    runner = Runner(load(device))
    shown, ids = pixels(runner.model), rig.prompts()

    def sample(seed: int) -> Tensor:
        how = Sampling(1.5, torch.Generator(device).manual_seed(seed))
        return runner.roll_out(shown, ids, 8, how).tokens.cpu()

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rollout_and_evaluate_agree(device: str, dtype: torch.dtype) -> None:
    model = load(device, dtype)
    found = Runner(model).roll_out(pixels(model), rig.prompts(), 8)
    with torch.no_grad():
        again = evaluate(model, pixels(model), rig.prompts(), found.tokens)
    limit = 1e-4 if dtype == torch.float32 else 0.5
    assert float((again.log_probs - found.log_probs).abs().max()) <= limit


@pytest.mark.gpu
def test_memory_of_a_forgotten_runner_is_free() -> None:
    runner = Runner(load("cuda"))
    answer(runner)
    torch.cuda.synchronize()
    runner.forget()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        answer(runner)
        runner.forget()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_is_called_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`item` waits for the device, which a capture forbids."""
    real: Callable[..., Tensor] = OpenVLA.action_logits

    def waiting(model: OpenVLA, hidden: Tensor) -> Tensor:
        hidden.sum().item()
        return real(model, hidden)

    monkeypatch.setattr(OpenVLA, "action_logits", waiting)
    runner = Runner(load("cuda"))
    for _ in range(2):
        assert torch.equal(answer(runner), rig.tokens("crane_x7"))
    said = [record for record in caplog.records if "CUDA graph" in record.message]
    assert len(said) == 1
