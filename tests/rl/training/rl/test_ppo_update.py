"""One update of a tiny policy: what moves, what must not, and what is noticed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ppo_rig as rig
import pytest
import torch
import training_rig
from accelerate import Accelerator
from torch import Tensor

from crane_x7_vla_rl.policies.openvla.errors import ImageError
from crane_x7_vla_rl.policies.openvla.run.bindings import Bindings
from crane_x7_vla_rl.policies.openvla.run.evaluate import Evaluation
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.training.checkpoints.policy_files import write_tensors
from crane_x7_vla_rl.training.errors import NotFiniteError, PpoError, ResumeError
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl import value_head as value
from crane_x7_vla_rl.training.rl.agent import Agent
from crane_x7_vla_rl.training.rl.buffer import Buffer, shuffled
from crane_x7_vla_rl.training.rl.ppo_config import ValueConfig
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.training.rl.value_head import ValueHead

FIRST = UpdateIndex(0)
WHOLE = replace(rig.EVERYTHING, minibatch_size=1000, micro_batch_size=1000, epochs=1)


@pytest.fixture
def agent() -> Agent:
    return rig.agent(rig.EVERYTHING)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_17_minibatches_hold_every_step_once_and_all_environments_evenly() -> None:
    found = shuffled(5, 6, torch.Generator().manual_seed(0))
    assert sorted(found.tolist()) == list(range(30))
    for row in found.view(5, 6):
        assert sorted((row % 6).tolist()) == list(range(6))
    other = shuffled(5, 6, torch.Generator().manual_seed(1))
    assert not torch.equal(found, other)


def test_18_before_the_first_step_ratios_are_1_and_values_the_rollouts(agent: Agent) -> None:
    found = update(agent, rig.collect(agent), rig.EVERYTHING, FIRST)
    assert found.ratio_error <= 1e-4
    assert found.value_error <= 1e-4
    assert found.samples == 10
    assert found.minibatches == 6
    assert not found.stopped_early


def test_18_other_pixels_or_prompts_than_the_rollouts_are_seen(agent: Agent) -> None:
    buffer = rig.collect(agent)
    other = replace(buffer, images=buffer.images.flip(0))
    assert update(agent, other, WHOLE, FIRST).ratio_error > 1e-2


def test_18_bytes_and_images_become_the_same_pixels(agent: Agent) -> None:
    images = rig.collect(agent).images[0]
    for crop in (False, True):
        agent.policy.crop = crop
        wanted = agent.policy.preprocess([image.numpy() for image in images])
        assert torch.equal(agent.policy.normalise(images), wanted)
    with pytest.raises(ImageError, match=r"expected uint8 of \(B, 32, 32, 3\)"):
        agent.policy.normalise(images.float())


def test_an_update_moves_adapters_and_value_head_and_nothing_else(agent: Agent) -> None:
    everything = {name: x.detach().clone() for name, x in agent.core.state_dict().items()}
    update(agent, rig.collect(agent), rig.EVERYTHING, FIRST)
    moved = changed(everything, agent.core.state_dict())
    kept = {name for name in everything if "lora_" in name or name.startswith("value_head.")}
    assert moved == kept


def test_rollouts_notice_that_a_fused_step_has_moved_adapters(agent: Agent) -> None:
    bindings = Bindings(agent.policy)
    before = bindings.version()
    for parameter in agent.policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    agent.step(1.0, 1.0)
    assert bindings.version() > before


def test_19_an_update_ends_before_the_step_that_goes_too_far(agent: Agent) -> None:
    hasty = replace(rig.EVERYTHING, learning_rate=1e-2, target_kl=1e-3)
    for group, rate in zip(agent.optimizer.param_groups, (1e-2, 1e-3), strict=True):
        group[agents.RATE] = rate
    found = update(agent, rig.collect(agent), hasty, FIRST)
    assert found.stopped_early
    assert 1 <= found.minibatches < 6
    assert found.approx_kl > 1e-3


@contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, fault: Any) -> Iterator[None]:
    """Change what the model thinks of actions."""
    honest = agents.evaluate

    def evaluate(*given: Any) -> Evaluation:
        found = honest(*given)
        return found._replace(log_probs=fault(found.log_probs))

    with monkeypatch.context() as patch:
        patch.setattr(agents, "evaluate", evaluate)
        yield


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(torch.zeros_like, id="zero"),
        pytest.param(lambda x: x * 0.0, id="times-zero"),
        pytest.param(Tensor.detach, id="detached"),
    ],
)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_20_log_probabilities_that_do_not_depend_on_weights_are_caught(
    monkeypatch: pytest.MonkeyPatch, fault: Any, algorithm: Any
) -> None:
    config = replace(rig.EVERYTHING, algorithm=algorithm)
    agent = rig.agent(config, moved=False)
    buffer, before = rig.collect(agent), rig.weights(agent)
    with planted(monkeypatch, fault), pytest.raises(PpoError, match=r"update 8.*exactly 0"):
        update(agent, buffer, config, UpdateIndex(7))
    assert not changed(before, rig.weights(agent))
    assert update(agent, buffer, config, UpdateIndex(7)).policy_grad_norm > 0


def test_20_nothing_to_learn_is_no_error(agent: Agent) -> None:
    buffer = rig.collect(agent)
    alike = replace(buffer, advantages=torch.full_like(buffer.advantages, 0.3))
    assert update(agent, alike, rig.EVERYTHING, FIRST).policy_grad_norm == 0


def test_21_policy_and_value_head_have_their_own_learning_rates() -> None:
    for rates in ((0.0, 1e-3), (1e-3, 0.0)):
        config = replace(
            rig.EVERYTHING, learning_rate=rates[0],
            value=replace(rig.EVERYTHING.value, learning_rate=rates[1]),
        )  # fmt: skip
        agent = rig.agent(config)
        before = rig.weights(agent)
        update(agent, rig.collect(agent), config, FIRST)
        moved = changed(before, rig.weights(agent))
        adapters = {name for name in before if "lora_" in name}
        assert moved == (adapters if rates[0] else before.keys() - adapters)


def test_21_learning_rates_follow_the_schedule_and_all_that_learns_is_float32(
    agent: Agent,
) -> None:
    update(agent, rig.collect(agent), rig.EVERYTHING, UpdateIndex(0, rate=0.25))
    assert [group["lr"] for group in agent.optimizer.param_groups] == [2.5e-4, 2.5e-4]
    learning = [p for p in agent.core.parameters() if p.requires_grad]
    assert {p.dtype for p in learning} == {torch.float32}
    grouped = [p for group in agent.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in learning}


def test_21_the_gradient_is_shortened_as_a_whole(agent: Agent) -> None:
    short = replace(agent, max_grad_norm=1e-12)
    before = rig.weights(agent)
    update(short, rig.collect(agent), WHOLE, FIRST)
    assert furthest(before, rig.weights(agent)) < 1e-6


@pytest.mark.parametrize("name", ["advantages", "returns", "log_probs", "values"])
def test_22_a_rollout_with_nan_ends_before_anything_moves(agent: Agent, name: str) -> None:
    buffer = rig.collect(agent)
    before = rig.weights(agent)
    getattr(buffer, name)[2, 3] = torch.nan
    with pytest.raises(NotFiniteError, match=f"update 5: {name} of step 2 in environment 3"):
        update(agent, buffer, rig.EVERYTHING, UpdateIndex(4))
    assert not changed(before, rig.weights(agent))
    getattr(buffer, name)[2, 3] = 0
    getattr(buffer, name)[0, 1] = torch.nan  # a discarded step
    update(agent, buffer, rig.EVERYTHING, UpdateIndex(4))


def test_22_a_loss_that_is_nan_ends_before_its_step(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, before = rig.collect(agent), rig.weights(agent)
    control = replace(rig.EVERYTHING, policy_coefficient=0.0)  # without the probe
    with planted(monkeypatch, lambda x: x * torch.nan):
        with pytest.raises(NotFiniteError, match="update 5, minibatch 1: the policy loss is nan"):
            update(agent, buffer, control, UpdateIndex(4))
        with pytest.raises(NotFiniteError, match="update 5: the policy gradient is nan"):
            update(agent, buffer, rig.EVERYTHING, UpdateIndex(4))
    assert not changed(before, rig.weights(agent))
    assert all(parameter.grad is None for parameter in agent.core.parameters())


def test_23_in_warmup_the_value_head_learns_alone(agent: Agent) -> None:
    config = replace(rig.EVERYTHING, value=replace(rig.EVERYTHING.value, warmup=1))
    before, buffer = rig.weights(agent), rig.collect(agent)
    update(agent, buffer, config, UpdateIndex(0))
    moved = changed(before, rig.weights(agent))
    assert moved
    assert not any("lora_" in name for name in moved)
    update(agent, buffer, config, UpdateIndex(1))
    assert any("lora_" in name for name in changed(before, rig.weights(agent)))


def test_24_recomputed_probabilities_make_the_first_ratio_1(agent: Agent) -> None:
    buffer = rig.collect(agent)
    rough = replace(buffer, log_probs=buffer.log_probs + 0.05, values=buffer.values - 0.5)
    assert update(agent, rough, replace(WHOLE, learning_rate=0), FIRST).ratio_error > 0.1
    again = rig.agent(rig.EVERYTHING)
    found = update(again, rough, replace(WHOLE, old_log_probs="recomputed"), FIRST)
    assert found.ratio_error <= 1e-6
    assert found.value_error <= 1e-6


def test_25_micro_batches_change_nothing() -> None:
    results = []
    for size in (1, 3, 1000):
        config = replace(rig.EVERYTHING, micro_batch_size=size)
        agent = rig.agent(config)
        found = update(agent, rig.collect(agent), config, FIRST)
        results.append((rig.weights(agent), found))
    for weights, found in results[:2]:
        assert furthest(weights, results[2][0]) <= 1e-5
        for name, figure in vars(results[2][1]).items():
            assert getattr(found, name) == pytest.approx(figure, rel=1e-4, abs=1e-5), name


def test_gradient_checkpointing_changes_nothing(agent: Agent) -> None:
    update(agent, rig.collect(agent), WHOLE, FIRST)
    again = rig.agent(rig.EVERYTHING)
    again.policy.checkpoint_gradients()
    update(again, rig.collect(again), WHOLE, FIRST)
    assert furthest(rig.weights(agent), rig.weights(again)) <= 1e-5


def test_a_policy_in_bfloat16_learns_with_adapters_and_head_in_float32() -> None:
    model = load(training_rig.base(), dtype=torch.bfloat16).model
    add_lora(model, LoraSettings(rank=4, alpha=8))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    agent = agents.build(model, rig.EVERYTHING, Accelerator(cpu=True))
    rig.wake(agent)
    buffer, before = rig.collect(agent), rig.weights(agent)
    found = update(agent, buffer, replace(rig.EVERYTHING, old_log_probs="recomputed"), FIRST)
    assert found.ratio_error <= 1e-6
    assert {x.dtype for x in before.values()} == {torch.float32}
    assert all(math.isfinite(x) for x in vars(found).values())
    moved = changed(before, rig.weights(agent))
    assert any("lora_B" in name for name in moved)
    assert any(name.startswith("layers.") for name in moved)


def test_kl_to_the_start_is_0_for_adapters_that_do_nothing_yet() -> None:
    config = replace(WHOLE, kl_coefficient=0.1)
    fresh = rig.agent(config, moved=False)
    assert update(fresh, rig.collect(fresh), config, FIRST).ref_kl == pytest.approx(0, abs=1e-6)
    moved = rig.agent(config)
    assert update(moved, rig.collect(moved), config, FIRST).ref_kl > 1e-4


def test_adapters_are_on_and_learn_after_they_were_off(agent: Agent) -> None:
    learning = [name for name, p in agent.policy.named_parameters() if p.requires_grad]
    before = rig.collect(agent).log_probs
    with agents.adapters_off(agent.policy):
        assert not torch.allclose(rig.collect(agent).log_probs, before, atol=1e-3)
    with pytest.raises(ZeroDivisionError), agents.adapters_off(agent.policy):
        1 / 0  # noqa: B018
    assert torch.equal(rig.collect(agent).log_probs, before)
    assert learning == [name for name, p in agent.policy.named_parameters() if p.requires_grad]


def test_without_adapters_all_weights_learn_but_there_is_no_start_to_return_to() -> None:
    model = load(training_rig.base()).model
    agent = agents.build(model, WHOLE, Accelerator(cpu=True))
    buffer = rig.collect(agent)
    with pytest.raises(PpoError, match="the policy has no adapters to switch off"):
        update(agent, buffer, WHOLE, FIRST)
    free = replace(WHOLE, kl_coefficient=0.0)
    before = rig.weights(agent)
    update(agent, buffer, free, FIRST)
    assert "language_model.model.layers.0.mlp.up_proj.weight" in changed(before, rig.weights(agent))


def test_grpo_needs_no_value_head() -> None:
    config = replace(rig.EVERYTHING, algorithm="grpo", level="token")
    agent = rig.agent(config, moved=False)
    assert agent.core.value_head is None
    before = rig.weights(agent)
    found = update(agent, rig.collect(agent), config, FIRST)
    assert found.value_loss == 0
    assert any("lora_B" in name for name in changed(before, rig.weights(agent)))
    with pytest.raises(PpoError, match="no value head"):
        agent.value(torch.zeros(1, 32))


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    agent = rig.agent(rig.EVERYTHING)
    buffer = rig.collect(agent)
    update(agent, buffer, rig.EVERYTHING, UpdateIndex(0))
    policy, others = agent.tensors(0)
    write_tensors(tmp_path / value.FILE, others[value.FILE])
    torch.save({"policy": policy, "optimizer": agent.optimizer_state()}, tmp_path / "s.pt")
    second = update(agent, buffer, rig.EVERYTHING, UpdateIndex(1))

    resumed = rig.agent(rig.EVERYTHING)
    stored = torch.load(tmp_path / "s.pt", weights_only=True)
    resumed.policy.load_state_dict(stored["policy"], strict=False)
    assert resumed.core.value_head is not None
    value.read(tmp_path, resumed.core.value_head)
    resumed.restore_optimizer(stored["optimizer"])
    assert update(resumed, buffer, rig.EVERYTHING, UpdateIndex(1)) == second
    assert furthest(rig.weights(agent), rig.weights(resumed)) == 0


def test_a_value_head_of_another_size_is_not_loaded(tmp_path: Path) -> None:
    other = ValueHead(32, ValueConfig(hidden=8))
    write_tensors(tmp_path / value.FILE, other.state_dict())
    with pytest.raises(ResumeError, match=r"value_head.safetensors: does not fit the value head"):
        value.read(tmp_path, ValueHead(32, ValueConfig(hidden=16)))


def test_a_new_value_head_says_0_and_computes_in_float32() -> None:
    head = ValueHead(32, ValueConfig(hidden=8))
    with torch.autocast("cpu", torch.bfloat16):
        found = head(torch.randn(3, 32, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert found.tolist() == [0, 0, 0]


def test_dropout_is_refused() -> None:
    model = load(training_rig.base()).model
    add_lora(model, LoraSettings(rank=4, dropout=0.1))
    with pytest.raises(PpoError, match=r"drops 0.1 of its inputs.*set lora.dropout to 0"):
        agents.build(model, WHOLE, Accelerator(cpu=True))


def test_a_policy_that_cannot_learn_is_refused() -> None:
    model = load(training_rig.base()).model.requires_grad_(False)
    with pytest.raises(PpoError, match="the policy has no trainable weights"):
        agents.build(model, WHOLE, Accelerator(cpu=True))


def test_rollouts_of_odd_shapes_are_refused(agent: Agent) -> None:
    buffer = rig.collect(agent)
    with pytest.raises(PpoError, match=r"tokens is \(3, 4, 3\), expected \(3, 4, 4\)"):
        replace(buffer, tokens=buffer.tokens[..., :3])
    with pytest.raises(PpoError, match=r"values is \(2, 4\), expected \(3, 4\)"):
        replace(buffer, values=buffer.values[:2])
    with pytest.raises(PpoError, match=r"prompts 2 times.*expected 3 times 4"):
        replace(buffer, prompts=buffer.prompts[:2])


@pytest.mark.parametrize(
    ("algorithm", "said"), [("ppo", "all steps were lost"), ("grpo", "ended differently")]
)
def test_a_rollout_without_a_sample_to_learn_from_changes_nothing(
    agent: Agent, caplog: pytest.LogCaptureFixture, algorithm: Any, said: str
) -> None:
    """Such as grpo's where all episodes failed: the next rollout may have something to say."""
    buffer = rig.collect(agent)
    before = {name: p.detach().clone() for name, p in agent.core.named_parameters()}
    lost: Buffer = replace(buffer, valid=torch.zeros_like(buffer.valid))
    metrics = update(agent, lost, replace(WHOLE, algorithm=algorithm), FIRST)
    assert (metrics.samples, metrics.minibatches) == (0, 0)
    assert all(torch.equal(p, before[name]) for name, p in agent.core.named_parameters())
    assert "update 1: nothing to learn from" in caplog.text
    assert said in caplog.text


def test_the_optimizer_counts_the_policy_s_steps_from_the_end_of_the_warm_up(agent: Agent) -> None:
    """Adam divides by a mean of squares: with zeros of the warm-up in it, steps are too long."""
    config = replace(WHOLE, value=replace(WHOLE.value, warmup=1), epochs=5)
    buffer = rig.collect(agent)
    update(agent, buffer, config, FIRST)
    update(agent, buffer, replace(config, epochs=2), UpdateIndex(1))
    assert agent.core.value_head is not None
    counted = {
        kind: {int(agent.optimizer.state[each]["step"]) for each in weights}
        for kind, weights in (
            ("critic", list(agent.core.value_head.parameters())),
            ("policy", [each for each in agent.policy.parameters() if each.requires_grad]),
        )
    }
    assert counted == {"critic": {7}, "policy": {2}}
