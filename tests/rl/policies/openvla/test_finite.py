"""Weights and logits that are NaN or infinite: no prediction, and the weights are named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("safetensors", "tokenizers", "peft"):
    pytest.importorskip(package, reason="needs the train extra")

import oft_rig
import openvla_rig as rig
import spoilt_rig
import training_rig
from loop_rig import FaultyRobot, RunningLoop
from safetensors.torch import load_file, save_file
from spoilt_rig import PARTS, VALUES, spoil

from crane_x7_remote.inference.hold import HoldReason
from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN, NO_TOKEN, tokens_to_normalised
from crane_x7_vla_rl.policies import base
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla import builder, finite
from crane_x7_vla_rl.policies.openvla.codec import PolicySpec
from crane_x7_vla_rl.policies.openvla.errors import NotFiniteError
from crane_x7_vla_rl.policies.openvla.run.buffers import Answer
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, load_oft
from crane_x7_vla_rl.policies.openvla.run.rollout import Sampling
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.run.sequence import Span
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.lora import LoraSettings, add_lora
from crane_x7_vla_rl.policies.openvla.weights.merged import Merged
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import ship
from crane_x7_vla_rl.training.checkpoints.policy_files import Base, write_adapter
from crane_x7_vla_rl.training.config.sections import LoraConfig
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
SIDE = training_rig.SIDE


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tower's last block, which is never computed, is not the first one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finite") / "tiny"
    inputs = PolicySpec(state_tokens=True, chunk_steps=2, period_s=0.2)
    return builder.build(folder, training_rig.SIZES, inputs=inputs)


def observe(seed: int = 0) -> Observation:
    image = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Observation(image, JointState(HOME_RAD, np.zeros(8)), "pick up the red cube", 0.0)


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 6, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def prompts(count: int) -> list[torch.Tensor]:
    """Of unequal length, so that some rows have pads."""
    return [torch.tensor([1, *range(300, 303 + row % 3)]) for row in range(count)]


# Weights in files


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_is_refused_and_the_weight_named(
    tiny: Path, tmp_path: Path, part: str, value: str
) -> None:
    folder = spoilt_rig.copied(tiny, tmp_path / "damaged", PARTS[part], VALUES[value])
    total = load_file(folder / "model.safetensors")[PARTS[part]].numel()
    with pytest.raises(PolicyLoadError) as caught:
        load_policy("openvla", ModelOptions(str(folder)))
    kind = value.removeprefix("-")
    assert f"weights hold {kind}: {PARTS[part]} (1 of {total} values)" in str(caught.value)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_all_of_a_diverged_model_is_counted_and_some_of_it_named(
    tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged", copy_function=shutil.copyfile)
    path = folder / "model.safetensors"
    tensors = {name: torch.full_like(x, torch.nan) for name, x in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=rf"and {len(tensors) - finite.NAMED} more tensors"):
        loading.load(folder)


def test_a_weight_beyond_the_dtype_it_is_loaded_in_is_named(tiny: Path, tmp_path: Path) -> None:
    """The largest float32 is rounded to infinity in bfloat16."""
    largest = torch.finfo(torch.float32).max
    folder = spoilt_rig.copied(tiny, tmp_path / "large", PARTS["mlp"], largest)
    assert loading.load(folder).model is not None
    with pytest.raises(NotFiniteError, match=f"weights hold Inf: {PARTS['mlp']}"):
        loading.load(folder, dtype=torch.bfloat16)


def test_sums_that_overflow_are_no_reason_to_refuse() -> None:
    large = torch.full((8,), torch.finfo(torch.float32).max)
    small = torch.full((9, 9), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert (
        finite.find_non_finite([("large", large), ("small", small), ("none", torch.empty(0))]) == []
    )
    assert finite.find_non_finite([("ids", torch.tensor([1]))]) == []


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter of the tiny model."""
    folder = tmp_path_factory.mktemp("finite") / "adapter"
    folder.mkdir()
    loaded = loading.load(tiny)
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSettings(2, 4, targets=["q_proj", "lm_head"]))
    learning = {name: x for name, x in loaded.model.named_parameters() if x.requires_grad}
    lora = LoraConfig(rank=2, alpha=4)
    write_adapter(folder, folder, learning, lora, Base.of(str(tiny), loaded.layout))
    return folder


@pytest.mark.parametrize("use", ["merge", "apply"])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_an_adapter_is_refused_and_its_matrix_named(
    adapter: Path, tmp_path: Path, use: Any, half: str
) -> None:
    key = f"base_model.model.{Q_PROJ}.{half}.weight"
    folder = shutil.copytree(adapter, tmp_path / "damaged", copy_function=shutil.copyfile)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[key][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    pattern = rf"{re.escape(str(path))}: weights hold NaN: {re.escape(key)} \(1 of \d+ values\)"
    with pytest.raises(NotFiniteError, match=pattern):
        loading.load(folder, adapter_use=use)


@pytest.mark.parametrize("kind", ["action_head", "proprio_projector"])
def test_a_head_of_openvla_oft_is_refused_and_its_matrix_named(tmp_path: Path, kind: str) -> None:
    folder = oft_rig.write(tmp_path / "oft")
    (path,) = folder.glob(f"{kind}--*")
    weights = torch.load(path)
    name = next(key for key in weights if key.endswith("fc2.weight"))
    weights[name][0, 3] = torch.inf
    torch.save(weights, path)
    short = name.removeprefix("module.")
    with pytest.raises(NotFiniteError, match=rf"{kind}.*weights hold Inf: {short} \(1 of"):
        load_oft(folder)


# Answers


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part", PARTS)
def test_no_answer_leaves_a_model_that_is_spoilt_in_memory(
    tiny: Path, part: str, value: str
) -> None:
    policy: Any = load_policy("openvla", ModelOptions(str(tiny)))
    policy.predict([observe()])  # what is held from before must not be taken for an answer
    spoil(policy._model.get_parameter(PARTS[part]), PARTS[part], VALUES[value])
    with pytest.raises(NotFiniteError, match=rf"weights hold .*: {re.escape(PARTS[part])} \(1 of"):
        policy.predict([observe()])
    with pytest.raises(NotFiniteError, match=re.escape(PARTS[part])):
        policy.predict([observe(), observe(1), observe(2)])


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_neither_sampling_nor_8_bits_nor_speculation_hide_it(
    tiny: Path, kind: Any, temperature: float, speculate: bool
) -> None:
    model = loading.load(tiny).model
    runner, how = Runner(model, kind, speculate), Sampling(temperature)
    runner.roll_out(pixels(2), prompts(2), 4, how)
    spoil(model.get_parameter(PARTS["mlp"]), PARTS["mlp"], torch.nan)
    for count in (1, 2):
        with pytest.raises(NotFiniteError, match=PARTS["mlp"]):
            runner.roll_out(pixels(count), prompts(count), 4, how)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("value", VALUES)
@torch.no_grad()
def test_8_bit_weights_of_what_is_no_number_are_found_in_decode(
    tiny: Path, kind: Any, value: str
) -> None:
    """Their scales are, even where the prefill's weights have been mended meanwhile."""
    model = loading.load(tiny).model
    weight = model.get_parameter(PARTS["mlp"])
    before = weight.detach().clone()
    spoil(weight, PARTS["mlp"], VALUES[value])
    engine = Runner(model, kind).engine()
    weight.copy_(before)
    chosen = engine(pixels(1), prompts(1), 4, Sampling())
    assert (chosen.tokens == NO_TOKEN).all()
    with pytest.raises(NotFiniteError, match="weights are finite"):
        model.on_host(chosen.tokens)


def test_the_adapters_of_a_model_that_learns_are_named(tiny: Path) -> None:
    model = loading.load(tiny).model
    add_lora(model, LoraSettings(2, 4, targets=["q_proj", "lm_head"]))
    name = f"{Q_PROJ}.lora_A.default.weight"
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match=re.escape(name)):
        Runner(model).roll_out(pixels(1), prompts(1), 2)
    with pytest.raises(NotFiniteError, match=re.escape(f"{Q_PROJ}.weight")):
        Runner(Merged(model).model).roll_out(pixels(1), prompts(1), 2)


def test_finite_weights_are_said_to_be_and_the_sample_is_named(tiny: Path) -> None:
    model = loading.load(tiny).model
    seen = model.encode(pixels(4)).detach()
    seen[2, 5, 0] = torch.nan
    runner = Runner(model)
    with pytest.raises(NotFiniteError, match=r"weights are finite.* sample 2 of 4"):
        runner.roll_out(seen, prompts(4), 3)
    assert runner.roll_out(seen[:2], prompts(2), 3).tokens.min() >= FIRST_ACTION_TOKEN


def test_a_mark_travels_in_the_tokens_of_its_row_alone() -> None:
    logits = torch.zeros(4, 3, 256)
    logits[1, 2, 7], logits[3, 0, 0] = -torch.inf, torch.nan
    tokens = torch.full((4, 3), 31800)
    marked = finite.marked(tokens, logits)
    assert marked.tolist() == [[31800] * 3, [NO_TOKEN] * 3, [31800] * 3, [NO_TOKEN] * 3]


def test_tokens_from_a_gpu_are_checked_where_they_are_read(tiny: Path) -> None:
    """There `roll_out` does not wait to see whether they are marked."""
    model = loading.load(tiny).model
    marked = torch.tensor([[31800, 31801] * 4, [NO_TOKEN] * 8])
    for ask in (model.on_host, lambda tokens: model.decode_actions(tokens, "crane_x7")):
        with pytest.raises(NotFiniteError, match="sample 1 of 2"):
            ask(marked)
    with pytest.raises(ValueError, match="-1, which is not a token"):
        tokens_to_normalised(marked)


@torch.no_grad()
def test_the_runner_marks_and_waits_for_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be captured reads no value on the host."""
    model = loading.load(tiny).model
    engine = Runner(model).engine()
    spoil(model.get_parameter(PARTS["norm"]), PARTS["norm"], torch.nan)

    def refuse(*_: object) -> object:
        raise AssertionError("a value was read on the host")

    buffers = engine._take_buffers(1, 1 + model.count_patches(pixels(1), 1), 8, 4)
    prompt = engine._pack(prompts(1), buffers.prefix, 4)
    engine._take_images(buffers, pixels(1))
    engine._take_prompts(buffers, prompt, False)
    span = Span(buffers.prefix, 0, buffers.prefix + prompt.length)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    engine._decode(buffers, Answer(span, prompt.padded, 4, False))
    monkeypatch.undo()
    assert (buffers.tokens == NO_TOKEN).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_a_captured_graph_marks_what_is_no_number(
    tiny: Path, part: str, dtype: torch.dtype
) -> None:
    """Replayed with weights that were damaged in place after the capture."""
    model = loading.load(tiny, device="cuda", dtype=dtype).model
    runner = Runner(model)
    draw = torch.Generator().manual_seed(1)

    def answer(count: int) -> torch.Tensor:
        shown = torch.randn(count, 6, SIDE, SIDE, generator=draw).to("cuda", dtype)
        return runner.roll_out(shown, [ids.cuda() for ids in prompts(count)], 4).tokens

    for count in (1, 3):
        assert min(int(answer(count).min()) for _ in range(3)) >= FIRST_ACTION_TOKEN
    spoil(model.get_parameter(PARTS[part]), PARTS[part], torch.nan)
    for count in (1, 3):
        with pytest.raises(NotFiniteError, match=re.escape(PARTS[part])):
            model.on_host(answer(count))


@pytest.mark.parametrize(
    "name", ["head.model.fc2.weight", "proprio.fc1.bias", "base.projector.fc3.weight"]
)
@pytest.mark.parametrize("value", VALUES)
def test_openvla_oft_names_head_projector_or_base(tmp_path: Path, name: str, value: str) -> None:
    model = load_oft(oft_rig.write(tmp_path / "oft"), settings=ChunkSettings(oft_rig.STEPS))
    shown = rig.expected()["pixel_values"][:2]
    ask = (shown, rig.prompts()[:2], oft_rig.KEY, np.zeros((2, oft_rig.STATE_DIM)))
    model.predict(*ask)
    spoil(model.get_parameter(name), name, VALUES[value])
    with pytest.raises(NotFiniteError, match=rf"weights hold .*: {name} \(1 of"):
        model.predict(*ask)


def test_openvla_oft_refuses_a_state_that_is_no_number(tmp_path: Path) -> None:
    model = load_oft(oft_rig.write(tmp_path / "oft"), settings=ChunkSettings(oft_rig.STEPS))
    state = np.zeros((1, oft_rig.STATE_DIM))
    state[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"state is .*nan.*, expected finite numbers"):
        model.predict(rig.expected()["pixel_values"][:1], rig.prompts()[:1], oft_rig.KEY, state)


def test_targets_that_are_no_numbers_name_joint_and_step() -> None:
    targets = np.tile(HOME_RAD, (3, 1))
    targets[2, 7] = np.inf
    with pytest.raises(base.NotFiniteError, match=r"inf for crane_x7_gripper.* in step 3 of 3"):
        base.only_numbers(ActionChunk(targets, 0.1), "stop")


def test_sampled_answers_begin_anew_after_a_reset(tiny: Path) -> None:
    policy = load_policy("openvla", ModelOptions(str(tiny), temperature=1.0))

    def answers() -> list[list[float]]:
        return [policy.predict([observe()])[0].position_rad.tolist() for _ in range(2)]

    first = answers()
    assert first[0] != first[1]
    assert answers() != first
    policy.reset()
    assert answers() == first


def test_while_driving_a_spoilt_model_holds(tiny: Path) -> None:
    policy: Any = load_policy("openvla", ModelOptions(str(tiny)))
    with (
        FaultyRobot() as robot,
        RunningLoop(robot.port, policy, policy_timeout_s=5.0, validity_s=2.0) as running,
    ):
        running.wait_driving(20.0)
        spoil(policy._model.get_parameter(PARTS["query"]), PARTS["query"], torch.nan)
        running.wait_hold(HoldReason.POLICY_RAISED)
        sent = running.sent()
        running.wait_hold(HoldReason.POLICY_RAISED, ticks=5)
        assert running.sent() == sent
        robot.assert_nothing_bad_arrived()


# Commands


def test_infer_ends_with_code_5_and_the_weight(tiny: Path, tmp_path: Path) -> None:
    folder = spoilt_rig.copied(tiny, tmp_path / "damaged", PARTS["query"], torch.nan)
    done = infer(folder)
    assert done.returncode == 5, done.stderr
    assert f"weights hold NaN: {PARTS['query']} (1 of 1024 values)" in done.stderr
    assert "Traceback" not in done.stderr


def test_infer_ends_with_code_5_where_weights_are_numbers_but_answers_are_none(
    tiny: Path, tmp_path: Path
) -> None:
    done = infer(spoilt_rig.too_large(tiny, tmp_path / "damaged"))
    assert done.returncode == 5, done.stderr
    assert "weights are finite" in done.stderr
    assert "Traceback" not in done.stderr


def test_infer_names_a_model_that_does_not_look_and_drives(tiny: Path, tmp_path: Path) -> None:
    """Without what comes after vision, every picture is the same."""
    folder = shutil.copytree(tiny, tmp_path / "blind", copy_function=shutil.copyfile)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["projector.fc3.weight"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    with FaultyRobot() as robot:
        done = infer(
            folder, "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(robot.port),
            "--policy-timeout", "5", "--trajectory-validity", "2", "--max-frame-age", "2",
            "--duration", "4",
        )  # fmt: skip
        robot.assert_nothing_bad_arrived()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not depend on the image") == 1


def infer(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    clean = {key: x for key, x in os.environ.items() if not key.startswith(("VLA_", "ROSBRIDGE_"))}
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "infer", "--vla-device", "cpu", *flags],
        capture_output=True, text=True, timeout=115, check=False,
        env=clean | {"VLA_MODEL_PATH": str(folder)},
    )  # fmt: skip


def test_merge_writes_nothing_and_names_the_weight(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt_rig.copied(tiny, tmp_path / "damaged", PARTS["dinov2"], torch.inf)
    assert cli.main(["merge", str(folder), str(tmp_path / "merged")]) == 5
    assert f"weights hold Inf: {PARTS['dinov2']}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_merge_writes_no_weight_that_bfloat16_cannot_hold(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    largest = torch.finfo(torch.float32).max
    folder = spoilt_rig.copied(tiny, tmp_path / "large", PARTS["mlp"], largest)
    assert cli.main(["merge", str(folder), str(tmp_path / "merged")]) == 5
    assert f"weights hold Inf: {PARTS['mlp']}" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_ship_writes_nothing_and_names_the_weight(tiny: Path, tmp_path: Path) -> None:
    folder = spoilt_rig.copied(tiny, tmp_path / "damaged", PARTS["lm_head"], torch.nan)
    (tmp_path / "out").mkdir()
    with pytest.raises(NotFiniteError, match=f"weights hold NaN: {PARTS['lm_head']}"):
        ship.write(str(folder), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def evaluate(folder: Path, output: Path) -> int:
    return cli.main(
        [
            "evaluate", "--checkpoint", str(folder), "--num-episodes", "1", "--processes", "1",
            "--slots", "1", "--videos", "0", "--image-size", "64x64", "--output", str(output),
        ]
    )  # fmt: skip


def test_evaluate_of_a_spoilt_model_is_no_0_percent(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt_rig.copied(tiny, tmp_path / "damaged", PARTS["siglip"], torch.nan)
    assert evaluate(folder, tmp_path / "out") == 5
    found = capsys.readouterr()
    assert f"weights hold NaN: {PARTS['siglip']}" in found.err
    assert "%" not in found.out
    assert not (tmp_path / "out" / "results.json").exists()


def test_evaluate_of_weights_that_are_too_large_is_no_0_percent(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spoilt_rig.too_large(tiny, tmp_path / "damaged")
    assert evaluate(folder, tmp_path / "out") == 5
    assert "weights are finite" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
