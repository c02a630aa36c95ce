"""Speculative decoding: the tokens of one by one, their own probabilities, in fewer passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvla_rig as rig
import pytest
import torch
import training_rig
from torch import Tensor

from crane_x7_remote.policy_server.choice import model_options
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN, NO_TOKEN
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla import OpenVLA, builder
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.rollout import Rollout, Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.run.speculation import repeat_until
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Observation

D = 8


@pytest.fixture(scope="module")
def model() -> OpenVLA:
    return rig.load()


@pytest.fixture
def runner(model: OpenVLA) -> Runner:
    return Runner(model, speculate=True)


def pixels() -> Tensor:
    return rig.expected()["pixel_values"]


def seeded(temperature: float) -> Sampling:
    return Sampling(temperature, torch.Generator().manual_seed(0))


def same(found: Rollout, wanted: Rollout, within: float) -> None:
    assert torch.equal(found.tokens, wanted.tokens)
    for name in ("logits", "log_probs", "hidden"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert float((a - b).abs().max()) <= within, name


def draft_rightly(runner: Runner, answer: Rollout) -> None:
    """Let the runner draft `answer`, for one image, and not remember its prompt."""
    runner.roll_out(pixels()[:1], rig.prompts()[2:3], 2)
    (buffers,) = runner.engine()._buffers.values()
    buffers.logits.copy_(answer.logits)


@pytest.mark.parametrize(
    ("dtype", "within", "bucket", "temperature"),
    [
        (torch.float32, 2e-4, 1, 0.0),
        (torch.float32, 2e-4, 16, 1.0),
        (torch.float64, 2e-5, 16, 0.0),  # logits are a product in float32
        (torch.float64, 2e-5, 1, 3.0),
    ],
)
def test_tokens_are_those_of_one_by_one(
    dtype: torch.dtype, within: float, bucket: int, temperature: float
) -> None:
    """With the first draft, the last action, a new prompt on the same image, and nothing new."""
    model = rig.load(dtype)
    plain, fast = Runner(model), Runner(model, speculate=True)
    plain.bucket = fast.bucket = bucket
    hows = seeded(temperature), seeded(temperature)
    x, ids = pixels().to(dtype), rig.prompts()
    calls = [(x, ids), (x.flip(0), ids), (x.flip(0), ids[::-1]), (x.flip(0), ids[::-1])]
    for images, texts in [*calls, *((images[:1], texts[:1]) for images, texts in calls)]:
        wanted = plain.roll_out(images, texts, D, hows[0])
        found = fast.roll_out(images, texts, D, hows[1])
        same(found, wanted, within)
        hidden = float((found.hidden - wanted.hidden).abs().max())
        assert hidden <= (1e-10 if dtype is torch.float64 else within)
        assert 0 <= found.passes <= D - 1 == wanted.passes
        if not temperature:
            assert torch.equal(found.tokens, found.logits.argmax(-1) + FIRST_ACTION_TOKEN)


@pytest.mark.parametrize(("key", "dimensions"), rig.KEYS)
def test_greedy_tokens_are_the_originals(runner: Runner, key: str, dimensions: int) -> None:
    for index, ids in enumerate(rig.prompts()):
        found = runner.roll_out(pixels()[index : index + 1], [ids], dimensions)
        assert torch.equal(found.tokens[0], rig.tokens(key)[index])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_probabilities_are_evaluates(model: OpenVLA, runner: Runner, temperature: float) -> None:
    for _ in range(2):
        found = runner.roll_out(pixels(), rig.prompts(), D, seeded(temperature))
        judged = evaluate(model, pixels(), rig.prompts(), found.tokens, temperature)
        assert float((judged.log_probs.detach() - found.log_probs).abs().max()) <= 1e-4
        assert float((judged.hidden.detach() - found.hidden).abs().max()) <= 1e-4


def test_samples_follow_the_models_distribution(model: OpenVLA) -> None:
    """Pearson's chi-square of each token, given the tokens before it, against `evaluate`.

    The draft comes from another sample of the same prompt, so that accepting it too easily shows.
    """
    count, rounds, temperature = 256, 4, 0.3
    ids = rig.prompts()[0]
    with torch.no_grad():
        patches = model.encode(pixels()[:1])
    fast, how = Runner(model, speculate=True), seeded(temperature)
    ask = (patches.expand(count, -1, -1), [ids] * count, 3, how)
    tokens = torch.cat([fast.roll_out(*ask).tokens for _ in range(rounds)])  # (1024, 3)
    answers, which = tokens.unique(dim=0, return_inverse=True)
    with torch.no_grad():
        shown = patches.expand(len(answers), -1, -1)
        judged = evaluate(model, shown, [ids] * len(answers), answers, temperature)
    likely = judged.distribution[which].double().exp().sum(0)  # (3, 256), expected counts
    for step in range(3):
        counts = torch.bincount(tokens[:, step] - FIRST_ACTION_TOKEN, minlength=256).double()
        often = likely[step] >= 5
        wanted = torch.cat([likely[step][often], likely[step][~often].sum()[None]])
        found = torch.cat([counts[often], counts[~often].sum()[None]])
        freedom = len(found) - 1
        assert freedom >= 3
        chi_square = float(((found - wanted) ** 2 / wanted.clamp_min(1e-9)).sum())
        assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5, step


def test_a_draft_that_is_right_needs_no_pass_after_the_prefill(
    model: OpenVLA, runner: Runner
) -> None:
    first = runner.roll_out(pixels()[:1], rig.prompts()[:1], D)
    draft_rightly(runner, first)
    passes = []
    hook = model.language_model.model.norm.register_forward_hook(lambda *_: passes.append(1))
    again = runner.roll_out(pixels()[:1], rig.prompts()[:1], D)
    hook.remove()
    assert torch.equal(again.tokens, first.tokens)
    assert again.passes == 0
    assert len(passes) == 1


def test_the_same_question_again_needs_one_pass_until_the_draft_is_forgotten(
    runner: Runner,
) -> None:
    first = runner.roll_out(pixels(), rig.prompts(), D)
    again = runner.roll_out(pixels(), rig.prompts(), D)
    assert again.passes == 1 < first.passes
    same(again, first, 2e-4)
    runner.forget_draft()
    fresh = runner.roll_out(pixels(), rig.prompts(), D)
    assert fresh.passes > 1
    same(fresh, first, 2e-4)


def test_a_worst_case_takes_as_many_passes_as_one_by_one() -> None:
    runs: list[int] = []
    never = torch.zeros((), dtype=torch.bool)
    assert repeat_until(never, lambda: runs.append(1), 5) == len(runs) == 5
    assert repeat_until(~never, lambda: runs.append(1), 5) == 0


def test_short_answers_and_moving_weights_are_decoded_one_by_one(model: OpenVLA) -> None:
    """Processes that share a model must all make the same number of passes."""
    fast = Runner(model, speculate=True)
    for _ in range(2):
        assert fast.roll_out(pixels(), rig.prompts(), 2).passes == 1
    sharded = rig.load()
    sharded.owns_memory = False
    fast = Runner(sharded, speculate=True)
    for _ in range(2):
        assert fast.roll_out(pixels(), rig.prompts(), D).passes == D - 1


def test_8_bit_weights_verify_as_they_decode(model: OpenVLA) -> None:
    """Up to 16 rows, as in `low_bit`."""
    plain, fast = Runner(model, "int8"), Runner(model, "int8", speculate=True)
    for index in range(2):
        ask = (pixels()[index : index + 1], [rig.prompts()[index]], D)
        wanted = plain.roll_out(*ask)
        same(fast.roll_out(*ask), wanted, 2e-4)
    draft_rightly(fast, wanted)
    again = fast.roll_out(*ask)
    assert again.passes == 1  # the prefill that read the draft has other weights
    same(again, wanted, 2e-4)


def test_captured_steps_may_run_again(runner: Runner) -> None:
    """As in a capture, on the buffers alone; a mark in the tokens must not stop it."""
    runner.bucket = 16
    first = runner.roll_out(pixels(), rig.prompts(), D)
    (buffers,) = runner.engine()._buffers.values()
    names = [key if isinstance(key, str) else key[0] for key in buffers.replays]
    assert names == ["vision", "draft", "prefill", "verify", "finish"]
    with torch.no_grad():
        for replay in [each for each in buffers.replays.values() for _ in range(2)]:
            replay()
        assert torch.equal(buffers.tokens, first.tokens)
        buffers.logits[0, 3, 7] = torch.nan
        for _ in range(2):
            buffers.replays[("finish", D)]()
    assert (buffers.tokens[0] == NO_TOKEN).all()
    assert torch.equal(buffers.tokens[1:], first.tokens[1:])


def test_a_policy_with_the_setting_predicts_the_same_and_forgets_at_a_reset(tmp_path: Path) -> None:
    folder = builder.build(tmp_path / "tiny", training_rig.SIZES, inputs=PolicySpec())
    model = model_options(Settings(vla_model_path=str(folder), vla_speculation=True))
    assert model.speculation
    fast: Any = load_policy("openvla", replace(model, device="cpu"))
    plain = load_policy("openvla", ModelOptions(str(folder)))
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    seen = Observation(image, JointState(HOME_RAD, np.zeros(8)), "pick up the red cube", 0.0)
    wanted = plain.predict([seen])[0].position_rad
    passes = []
    roll_out = fast._actor._runner.roll_out

    def counting(*words: Any) -> Rollout:
        rollout: Rollout = roll_out(*words)
        passes.append(rollout.passes)
        return rollout

    fast._actor._runner.roll_out = counting
    for step in range(3):
        if step == 2:
            fast.reset()
        assert np.array_equal(fast.predict([seen])[0].position_rad, wanted)
    assert passes[1] == 1 < passes[0]
    assert passes[2] > 1


@pytest.mark.gpu
def test_captured_graphs_give_the_tokens_of_one_by_one() -> None:
    """The first call of each step captures it, which runs it several times."""
    model = rig.load().to("cuda")
    plain, fast = Runner(model), Runner(model, speculate=True)
    ids = [one.cuda() for one in rig.prompts()]
    for images in (pixels(), pixels().flip(0), pixels()):
        for count in (1, 4):
            ask = (images[:count].cuda(), ids[:count], D)
            found = fast.roll_out(*ask)
            same(found, plain.roll_out(*ask), 1e-3)
            assert 0 <= found.passes <= D - 1
