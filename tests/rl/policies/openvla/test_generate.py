"""Greedy and sampled tokens: single, batched, cached, over every kind of buffer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openvla_rig as rig
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crane_x7_vla_rl.policies.openvla import OpenVLA
from crane_x7_vla_rl.policies.openvla.errors import ImageError, PromptError
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner

LOGITS = 2e-4


@pytest.fixture
def model() -> OpenVLA:
    return rig.load()


@pytest.fixture
def runner(model: OpenVLA) -> Runner:
    return Runner(model)


def pixels() -> Tensor:
    return rig.expected()["pixel_values"]


@contextmanager
def counting_calls(model: OpenVLA, name: str) -> Iterator[list[int]]:
    """Yield a list that grows by one for each pass through a submodule."""
    calls: list[int] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def close(ours: Rollout, theirs: Rollout) -> bool:
    near = float((ours.logits - theirs.logits).abs().max()) <= LOGITS
    return near and torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize(("key", "dimensions"), rig.KEYS)
def test_single_images_give_the_originals_tokens(runner: Runner, key: str, dimensions: int) -> None:
    for index, ids in enumerate(rig.prompts()):
        rollout = runner.roll_out(pixels()[index : index + 1], [ids], dimensions)
        assert torch.equal(rollout.tokens[0], rig.tokens(key)[index])
        wanted = rig.action_logits()[index, :dimensions]
        assert float((rollout.logits[0] - wanted).abs().max()) <= LOGITS


@pytest.mark.parametrize("bucket", [1, 16, 64])
@pytest.mark.parametrize(("key", "dimensions"), rig.KEYS)
def test_a_batch_of_unequal_prompts_gives_the_originals_tokens(
    runner: Runner, key: str, dimensions: int, bucket: int
) -> None:
    runner.bucket = bucket
    rollout = runner.roll_out(pixels(), rig.prompts(), dimensions)
    assert torch.equal(rollout.tokens, rig.tokens(key))
    assert float((rollout.logits - rig.action_logits()[:, :dimensions]).abs().max()) <= LOGITS


def test_prompts_of_one_length_get_no_pads_and_no_mask(runner: Runner) -> None:
    """A bucket would pad them, and a mask keeps attention from CUDA's fastest kernel."""
    equal = [rig.prompts()[0]] * 2
    exact = runner.roll_out(pixels()[:2], equal, 8)
    runner.forget()
    runner.bucket = 64
    with Masks() as masks:
        found = runner.roll_out(pixels()[:2], equal, 8)
    assert masks.found
    assert not any(masks.found)
    assert torch.equal(found.logits, exact.logits)
    with Masks() as masks:
        runner.roll_out(pixels()[:2], rig.prompts()[:2], 8)
    assert any(masks.found)


class Masks(TorchDispatchMode):
    """Keeps whether each attention had a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "scaled_dot_product" in str(func):
            self.found.append((kwargs or {}).get("attn_mask") is not None)
        return func(*args, **(kwargs or {}))


def test_generate_returns_the_tokens(runner: Runner) -> None:
    tokens = runner.roll_out(pixels(), rig.prompts(), action_dim=8).tokens
    assert torch.equal(tokens, rig.tokens("crane_x7"))


def test_a_final_29871_may_come_along(runner: Runner) -> None:
    ids = [torch.cat([ids, torch.tensor([29871])]) for ids in rig.prompts()]
    assert torch.equal(runner.roll_out(pixels(), ids, 8).tokens, rig.tokens("crane_x7"))


def test_a_result_stays_when_the_next_is_computed(runner: Runner) -> None:
    first = runner.roll_out(pixels()[:1], rig.prompts()[:1], 8)
    kept = copy.deepcopy(first)
    runner.roll_out(pixels()[1:2], rig.prompts()[1:2], 8)
    assert torch.equal(first.tokens, kept.tokens)
    assert torch.equal(first.hidden, kept.hidden)
    assert torch.equal(first.logits, kept.logits)


def test_a_new_instruction_on_the_same_image_skips_vision_and_stays_exact(
    model: OpenVLA, runner: Runner
) -> None:
    swapped = rig.prompts()[::-1]
    fresh = Runner(rig.load()).roll_out(pixels(), swapped, 8)
    runner.roll_out(pixels(), rig.prompts(), 8)
    with counting_calls(model, "vision_backbone") as seen:
        assert close(runner.roll_out(pixels().clone(), swapped, 8), fresh)
    assert not seen


def test_a_longer_instruction_on_the_same_image_is_exact(runner: Runner) -> None:
    longer = [torch.cat([ids, torch.arange(5000, 5100)]) for ids in rig.prompts()]
    fresh = Runner(rig.load()).roll_out(pixels(), longer, 8)
    runner.roll_out(pixels(), rig.prompts(), 8)
    assert close(runner.roll_out(pixels(), longer, 8), fresh)


def test_the_same_question_again_only_decodes(model: OpenVLA, runner: Runner) -> None:
    first = runner.roll_out(pixels(), rig.prompts(), 8)
    with counting_calls(model, "language_model.model.norm") as passes:
        again = runner.roll_out(pixels(), rig.prompts(), 8)
    assert len(passes) == 7
    assert torch.equal(again.logits, first.logits)


@pytest.mark.parametrize("remember", [True, False])
def test_images_are_compared_with_those_before_only_where_that_is_wanted(
    model: OpenVLA, runner: Runner, remember: bool
) -> None:
    runner.remember = remember
    first = runner.roll_out(pixels(), rig.prompts(), 8)
    with counting_calls(model, "vision_backbone") as calls:
        again = runner.roll_out(pixels(), rig.prompts(), 8)
    assert len(calls) == (0 if remember else 1)
    assert torch.equal(again.logits, first.logits)


def test_a_new_image_is_seen(runner: Runner) -> None:
    runner.roll_out(pixels(), rig.prompts(), 8)
    other = pixels().flip(0)
    assert close(
        runner.roll_out(other, rig.prompts(), 8),
        Runner(rig.load()).roll_out(other, rig.prompts(), 8),
    )


def by_optimiser(model: OpenVLA) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluate(model, pixels(), rig.prompts(), rig.tokens("crane_x7")).log_probs.sum().backward()
    optimiser.step()


def by_loading(model: OpenVLA) -> None:
    model.load_state_dict({key: value * 1.1 for key, value in model.state_dict().items()})


def by_replacing(model: OpenVLA) -> None:
    attention = model.language_model.model.layers[0].get_submodule("self_attn")
    attention.register_module("q_proj", torch.nn.Linear(32, 32, bias=False))


@pytest.mark.parametrize("change", [by_optimiser, by_loading, by_replacing])
def test_changed_weights_are_used_at_once(
    model: OpenVLA, runner: Runner, change: Callable[[OpenVLA], None]
) -> None:
    """Cached prefixes and joined weights must not outlive what they came from."""
    before = runner.roll_out(pixels(), rig.prompts(), 8)
    change(model)
    after = runner.roll_out(pixels(), rig.prompts(), 8)
    judged = evaluate(model, pixels(), rig.prompts(), after.tokens)
    assert not torch.allclose(before.logits, after.logits, atol=1e-2)
    assert float((judged.log_probs.detach() - after.log_probs).abs().max()) <= 1e-4


def test_a_cast_model_generates_in_its_new_dtype(model: OpenVLA, runner: Runner) -> None:
    runner.roll_out(pixels(), rig.prompts(), 8)
    model.double()
    exact = runner.roll_out(pixels(), rig.prompts(), 8)
    assert exact.hidden.dtype == torch.float64
    assert torch.equal(exact.tokens, rig.tokens("crane_x7"))


def test_joined_weights_still_save_one_by_one(
    model: OpenVLA, runner: Runner, tmp_path: Path
) -> None:
    runner.roll_out(pixels(), rig.prompts(), 8)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fresh = rig.load().state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())


def test_patches_may_come_instead_of_pixels(model: OpenVLA, runner: Runner) -> None:
    with torch.no_grad():
        patches = model.encode(pixels())
    assert torch.equal(runner.roll_out(patches, rig.prompts(), 8).tokens, rig.tokens("crane_x7"))


def test_several_images_per_sample_stand_one_after_the_other(model: OpenVLA) -> None:
    pair = torch.cat([pixels()[:2], pixels()[2:]], dim=1)
    with torch.no_grad():
        apart = torch.cat([model.encode(pixels()[:2]), model.encode(pixels()[2:])], dim=1)
        together = model.encode(pair)
    assert together.shape == (2, 512, 32)
    assert torch.allclose(together, apart, atol=1e-5)


def test_temperature_draws_from_the_softmax(model: OpenVLA, runner: Runner) -> None:
    """One image a thousand times: first tokens are as frequent as they are likely."""
    count, temperature = 1000, 2.0
    with torch.no_grad():
        patches = model.encode(pixels()[:1]).expand(count, -1, -1)
    sampling = Sampling(temperature, torch.Generator().manual_seed(0))
    rollout = runner.roll_out(patches, [rig.prompts()[0]] * count, 1, sampling)
    wanted = (rollout.logits[0, 0] / temperature).softmax(-1)
    counts = torch.bincount(rollout.tokens[:, 0] - 31744, minlength=256)
    spread = (count * wanted * (1 - wanted)).sqrt()
    assert bool(((counts - count * wanted).abs() <= 5 * spread + 3).all())


def test_a_seed_repeats_a_sample(runner: Runner) -> None:
    def draw(seed: int) -> Tensor:
        sampling = Sampling(1.5, torch.Generator().manual_seed(seed))
        return runner.roll_out(pixels(), rig.prompts(), 8, sampling).tokens

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_an_instruction_longer_than_the_context_is_refused(runner: Runner) -> None:
    long = torch.cat([rig.prompts()[0], torch.full((2000,), 4000)])
    with pytest.raises(
        PromptError, match=r"prompt 1 has 2014 tokens.* more than the context of 2048"
    ):
        runner.roll_out(pixels()[:2], [rig.prompts()[0], long], 8)


def test_an_instruction_that_just_fits_is_taken(model: OpenVLA, runner: Runner) -> None:
    room = model.config.context - 257 - 8 - 1
    ids = torch.cat([torch.tensor([1]), torch.full((room,), 4000)])
    assert runner.roll_out(pixels()[:1], [ids], 8).tokens.shape == (1, 8)
    with pytest.raises(PromptError, match="shorten the instruction by 1 tokens"):
        runner.roll_out(pixels()[:1], [torch.cat([ids, ids[-1:]])], 8)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.tensor([5, 6]), r"begins with id 5, expected 1 \(BOS\)"),
        (torch.tensor([1, 32064]), "holds ids 1 to 32064, expected 0 to 32063"),
        (torch.tensor([1.0]), "float32, expected a 1-D tensor of ids"),
        (torch.tensor([[1, 2]]), r"\(1, 2\) of torch.int64"),
        (torch.tensor([], dtype=torch.int64), r"\(0,\)"),
    ],
)
def test_what_is_no_prompt_is_refused(runner: Runner, ids: Tensor, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        runner.roll_out(pixels()[:1], [ids], 8)


def test_images_and_prompts_must_be_as_many(runner: Runner) -> None:
    with pytest.raises(ImageError, match=r"shape \(4, 6, 224, 224\), expected pixels \(3, 6"):
        runner.roll_out(pixels(), rig.prompts()[:3], 8)


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (1, 6, 200, 224), (1, 256, 31), (6, 224, 224)])
def test_pixels_of_another_shape_are_refused(runner: Runner, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="expected pixels"):
        runner.roll_out(torch.zeros(shape), rig.prompts()[:1], 8)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_senseless_temperature_is_refused(runner: Runner, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        runner.roll_out(pixels()[:1], rig.prompts()[:1], 8, Sampling(temperature))


def test_no_action_dimension_is_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match="action_dim is 0"):
        runner.roll_out(pixels()[:1], rig.prompts()[:1], 0)


class NoWait(TorchDispatchMode):
    """Refuses what would make a CUDA graph's capture wait for the device."""

    FORBIDDEN = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        assert not name.startswith(self.FORBIDDEN), f"{name} would wait inside a captured graph"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_captured_steps_never_wait_and_never_move(runner: Runner, temperature: float) -> None:
    """Each step runs again on its buffers alone, as a graph's replay would."""
    runner.bucket = 16
    sampling = Sampling(temperature, torch.Generator().manual_seed(0))
    first = runner.roll_out(pixels(), rig.prompts(), 8, sampling)
    (buffers,) = runner.engine()._buffers.values()
    assert [key if isinstance(key, str) else key[0] for key in buffers.replays] == [
        "vision",
        "prefill",
        "decode",
    ]
    with torch.no_grad(), NoWait():
        for replay in buffers.replays.values():
            replay()
    assert torch.equal(buffers.tokens, first.tokens)
    assert torch.equal(buffers.logits, first.logits)
