"""Probabilities of actions: equal to the rollout's, with gradients, under adapters."""

from __future__ import annotations

from typing import Any

import openvla_rig as rig
import pytest
import torch
from torch import Tensor, nn

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.errors import ActionTokenError, AdapterError
from crane_x7_vla_rl.policies.openvla.model.language import SelfAttention
from crane_x7_vla_rl.policies.openvla.model.matrices import Adapted
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora

EQUAL = 1e-4


@pytest.fixture
def model() -> OpenVLA:
    return rig.load()


@pytest.fixture
def runner(model: OpenVLA) -> Runner:
    return Runner(model)


def pixels() -> Tensor:
    return rig.expected()["pixel_values"]


def sample(runner: Runner, temperature: float = 1.0) -> Rollout:
    sampling = Sampling(temperature, torch.Generator().manual_seed(0))
    return runner.roll_out(pixels(), rig.prompts(), 8, sampling)


def furthest(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_evaluation_equals_what_the_rollout_reported(
    model: OpenVLA, runner: Runner, temperature: float, bucket: int
) -> None:
    runner.bucket = bucket
    rollout = sample(runner, temperature)
    judged = evaluate(model, pixels(), rig.prompts(), rollout.tokens, temperature)
    assert furthest(judged.log_probs, rollout.log_probs) <= EQUAL
    assert furthest(judged.hidden, rollout.hidden) <= EQUAL
    log_probs = (rollout.logits / temperature).log_softmax(-1)
    assert furthest(judged.entropy, -(log_probs.exp() * log_probs).sum(-1)) <= EQUAL


def test_log_probabilities_are_the_originals(model: OpenVLA) -> None:
    tokens = rig.tokens("crane_x7")
    judged = evaluate(model, pixels(), rig.prompts(), tokens)
    wanted = rig.action_logits().log_softmax(-1).gather(-1, (tokens - 31744).unsqueeze(-1))
    assert furthest(judged.log_probs, wanted.squeeze(-1)) <= 2e-4


def test_greedy_rollouts_report_log_probabilities_at_temperature_1(
    model: OpenVLA, runner: Runner
) -> None:
    rollout = runner.roll_out(pixels(), rig.prompts(), 8)
    judged = evaluate(model, pixels(), rig.prompts(), rollout.tokens)
    assert furthest(judged.log_probs, rollout.log_probs) <= EQUAL


def test_hidden_state_depends_on_no_action(model: OpenVLA) -> None:
    tokens = rig.tokens("crane_x7")
    one = evaluate(model, pixels(), rig.prompts(), tokens)
    other = evaluate(model, pixels(), rig.prompts(), tokens.flip(0))
    assert furthest(one.hidden, other.hidden) <= 1e-6
    assert furthest(one.log_probs, other.log_probs) > 0.1


def test_a_row_depends_on_no_other_row(model: OpenVLA) -> None:
    tokens = rig.tokens("crane_x7")
    together = evaluate(model, pixels(), rig.prompts(), tokens)
    for row in range(rig.COUNT):
        alone = evaluate(
            model, pixels()[row : row + 1], rig.prompts()[row : row + 1], tokens[row : row + 1]
        )
        assert furthest(alone.log_probs[0], together.log_probs[row]) <= EQUAL


def test_kept_patches_give_the_same_as_pixels(model: OpenVLA) -> None:
    tokens = rig.tokens("crane_x7")
    with torch.no_grad():
        patches = model.encode(pixels())
    from_patches = evaluate(model, patches, rig.prompts(), tokens)
    from_pixels = evaluate(model, pixels(), rig.prompts(), tokens)
    assert furthest(from_patches.log_probs, from_pixels.log_probs) <= EQUAL


def gradients(model: OpenVLA) -> dict[str, Tensor]:
    model.zero_grad()
    judged = evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7"))
    (judged.log_probs.sum() + judged.entropy.sum() + judged.hidden.square().sum()).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_gradients_equal_finite_differences(model: OpenVLA) -> None:
    model = model.double()
    weight = model.language_model.model.layers[0].get_submodule("mlp.up_proj").weight
    assert isinstance(weight, Tensor)
    tokens, step = rig.tokens("crane_x7"), 1e-3  # probabilities are float32
    evaluate(model, pixels(), rig.prompts(), tokens).log_probs.sum().backward()
    assert weight.grad is not None
    slope = float(weight.grad[3, 5])
    sums = []
    for move in (step, -2 * step):
        with torch.no_grad():
            weight[3, 5] += move
            sums.append(float(evaluate(model, pixels(), rig.prompts(), tokens).log_probs.sum()))
    assert slope == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-2)


def test_recomputed_gradients_are_the_same(model: OpenVLA) -> None:
    kept = gradients(model)
    model.checkpoint_gradients()
    recomputed = gradients(model)
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        assert torch.allclose(gradient, recomputed[name], rtol=1e-4, atol=1e-6), name


def test_recomputing_keeps_less_for_the_backward_pass(model: OpenVLA) -> None:
    def kept_bytes() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7"))
        return sum(seen.values())

    vision = model.vision_backbone
    held = [kept_bytes()]
    for part in (vision.featurizer, vision.fused_featurizer, model.language_model.model):
        part.checkpointing = True
        held.append(kept_bytes())
        assert held[-1] < 0.9 * held[-2], held
    model.checkpoint_gradients(False)
    assert kept_bytes() == held[0]
    model.checkpoint_gradients()
    assert kept_bytes() == held[-1]


def test_prompts_of_unequal_length_need_no_mask(
    model: OpenVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[bool] = []
    mix = SelfAttention.mix

    def noted(self: Any, *given: Any) -> Tensor:
        masked.append(given[3] is not None)
        return mix(self, *given)

    monkeypatch.setattr(SelfAttention, "mix", noted)
    assert len({len(ids) for ids in rig.prompts()}) > 1
    evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7"))
    assert masked == [False] * (len(masked) - 1) + [True]  # a few rows, in the last layer


def test_the_last_layer_asks_for_the_positions_that_are_read_alone(model: OpenVLA) -> None:
    asked: list[int] = []
    last = model.language_model.model.layers[-1].get_submodule("self_attn.q_proj")
    last.register_forward_hook(lambda *found: asked.append(found[2].shape[1]))
    evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7"))
    assert asked == [8]


TARGETS = [
    ("all-linear", None),
    (["q_proj", "v_proj"], 4),
    (["self_attn.o_proj", "mlp.down_proj", "lm_head"], 5),
    (["featurizer.patch_embed.proj", "fc1"], None),
]


@pytest.mark.parametrize(("targets", "count"), TARGETS)
def test_adapters_go_to_any_targets_and_are_seen_by_both_paths(
    model: OpenVLA, runner: Runner, targets: list[str], count: int | None
) -> None:
    before = runner.roll_out(pixels(), rig.prompts(), 8)
    add_lora(model, LoraSettings(rank=4, alpha=8, targets=targets))
    fresh = runner.roll_out(pixels(), rig.prompts(), 8)
    assert furthest(fresh.logits, before.logits) <= EQUAL
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in learning)
    assert count is None or len(learning) == 2 * count
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    adapted = sample(runner)
    judged = evaluate(model, pixels(), rig.prompts(), adapted.tokens)
    assert furthest(adapted.logits, before.logits) > 1e-2
    assert furthest(judged.log_probs, adapted.log_probs) <= EQUAL
    grown = gradients(model)
    assert set(grown) == set(learning)
    assert all(bool(gradient.any()) for gradient in grown.values())


@pytest.mark.parametrize("off", [False, True])
def test_an_adapted_heads_action_rows_are_those_of_the_whole_head(
    model: OpenVLA, off: bool
) -> None:
    add_lora(model, LoraSettings(rank=4, alpha=8, targets=["lm_head"]))
    head: Any = model.language_model.lm_head
    with torch.no_grad():
        head.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
    head.enable_adapters(not off)
    hidden = torch.randn(2, 3, model.config.text.hidden_size)
    assert furthest(model.action_logits(hidden), head(hidden)[..., 31744:32000]) <= 1e-5


def test_switching_adapters_off_is_noticed(model: OpenVLA, runner: Runner) -> None:
    """A reference policy is the same model without its adapters; nothing cached may remain."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = runner.roll_out(pixels(), rig.prompts(), 8)
    add_lora(model, LoraSettings(rank=4, targets=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    adapted = runner.roll_out(pixels(), rig.prompts(), 8)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    reference = runner.roll_out(pixels(), rig.prompts(), 8)
    assert furthest(adapted.logits, before.logits) > 1e-2
    assert furthest(reference.logits, before.logits) <= EQUAL


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LoraSettings(rank=0), "rank is 0"),
        (LoraSettings(targets=["w_proj"]), '"w_proj" matches no linear layer.*q_proj'),
        (LoraSettings(targets=["norm"]), '"norm" matches no linear layer'),
        (LoraSettings(targets="q_proj"), "expected 'all-linear' or a list"),  # type: ignore[arg-type]
    ],
)
def test_senseless_lora_settings_are_refused(
    model: OpenVLA, settings: LoraSettings, said: str
) -> None:
    with pytest.raises(AdapterError, match=said):
        add_lora(model, settings)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.full((4, 8), 31743), "are 31743 to 31743, expected 31744 to 31999"),
        (torch.full((4, 8), 32000), "expected 31744 to 31999"),
        (torch.full((3, 8), 31800), r"shape \(3, 8\), expected \(4, dimensions\)"),
        (torch.full((4,), 31800), r"shape \(4,\)"),
        (torch.zeros(4, 0), r"shape \(4, 0\)"),
    ],
)
def test_what_are_no_action_tokens_is_refused(model: OpenVLA, tokens: Tensor, said: str) -> None:
    with pytest.raises(ActionTokenError, match=said):
        evaluate(model, pixels(), rig.prompts(), tokens)


def test_temperature_0_has_no_probabilities(model: OpenVLA) -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7"), temperature=0.0)


def test_the_pass_equals_transformers_llama(model: OpenVLA) -> None:
    """An independent implementation of the language model, on the same embeddings."""
    theirs = rig.transformers_llama(model)
    ids, tokens = rig.prompts()[0], rig.tokens("crane_x7")[:1]
    embed: nn.Module = model.language_model.model.embed_tokens
    with torch.no_grad():
        text_ids = torch.cat([ids[1:], torch.tensor([29871]), tokens[0, :-1]])
        x = torch.cat([embed(ids[:1]), model.encode(pixels()[:1])[0], embed(text_ids)])
        logits = theirs(inputs_embeds=x[None]).logits[:, -8:, 31744:32000]
        judged = evaluate(model, pixels()[:1], [ids], tokens)
    wanted = logits.log_softmax(-1).gather(-1, (tokens - 31744).unsqueeze(-1)).squeeze(-1)
    assert furthest(judged.log_probs, wanted) <= EQUAL


def test_adapters_act_as_they_are_after_an_update_in_the_same_memory(
    model: OpenVLA, runner: Runner
) -> None:
    """A captured graph reads what the engine joined, so an update must reach that memory."""
    add_lora(model, LoraSettings(rank=4, alpha=8))
    before = sample(runner)
    engine = runner.engine()
    assert all(isinstance(layer.qkv, Adapted) for layer in engine.matrices)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    after = sample(runner)
    assert runner.engine() is engine
    assert furthest(after.logits, before.logits) > 1e-2
    judged = evaluate(model, pixels(), rig.prompts(), after.tokens)
    assert furthest(judged.log_probs, after.log_probs) <= EQUAL
