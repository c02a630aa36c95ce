"""Checkpoints: every layout loads, every fault is named, little memory is used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES

torch = pytest.importorskip("torch")
for package in ("safetensors", "peft", "tokenizers"):
    pytest.importorskip(package, reason="needs the train extra")

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.policies.openvla import OpenVLA, builder
from crane_x7_vla_rl.policies.openvla.codec import Codec
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError, OpenVLAError
from crane_x7_vla_rl.policies.openvla.run.evaluate import evaluate
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights.loading import load

FIXTURE = FIXTURES / "openvla_tiny"
CHECKPOINT = FIXTURE / "checkpoint"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
PATCHES = "vision_backbone.featurizer.patch_embed.proj"
UNUSED = "vision_backbone.fused_featurizer.blocks.3.mlp.fc1"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(CHECKPOINT / SHARDS[0]) | load_file(CHECKPOINT / SHARDS[1])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "model", copy_function=_copy))


def _copy(source: str, target: str) -> str:
    """Copy as a file of one's own: the fixture's may be read-only."""
    return shutil.copyfile(source, target)


def _single(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Make `folder` a checkpoint in one file."""
    for name in (*SHARDS, "model.safetensors.index.json"):
        (folder / name).unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert isinstance(caught.value, PolicyLoadError)
    return str(caught.value)


def _equal(model: OpenVLA, expected: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert torch.equal(found[key], values), key


# Whole models


def test_shards_load_to_exactly_what_they_hold(weights: dict[str, torch.Tensor]) -> None:
    model = load(CHECKPOINT).model
    _equal(model, weights)
    assert not model.training
    assert not any(values.is_meta for values in model.state_dict().values())


def test_one_file_loads_like_shards(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    _equal(load(_single(copy, weights)).model, weights)


def test_the_wanted_dtype_is_cast_to_from_whatever_is_stored(
    copy: Path, weights: dict[str, torch.Tensor]
) -> None:
    model = load(CHECKPOINT, dtype=torch.bfloat16).model
    _equal(model, {key: values.bfloat16() for key, values in weights.items()})
    half = {key: values.half() for key, values in weights.items()}
    model = load(_single(copy, half)).model
    _equal(model, {key: values.float() for key, values in half.items()})


def test_loaded_weights_do_not_change_with_the_file(
    copy: Path, weights: dict[str, torch.Tensor]
) -> None:
    model = load(_single(copy, weights)).model
    with (copy / "model.safetensors").open("r+b") as file:
        file.write(bytes((copy / "model.safetensors").stat().st_size))
    _equal(model, weights)


def test_frequencies_that_old_checkpoints_store_are_no_extra_keys(
    copy: Path, weights: dict[str, torch.Tensor]
) -> None:
    stored = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    _equal(load(_single(copy, weights | stored)).model, weights)


def test_a_missing_shard_is_named_with_what_it_should_hold(copy: Path) -> None:
    (copy / SHARDS[1]).unlink()
    message = _refusal(copy)
    assert f"{copy / SHARDS[1]} is missing" in message
    assert "tensors in it" in message


@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_a_truncated_file_is_named_with_both_sizes(copy: Path, left: int) -> None:
    path = copy / SHARDS[0]
    size = path.stat().st_size
    content = path.read_bytes()
    path.write_bytes(content[:left])
    message = _refusal(copy)
    assert str(path) in message
    assert f"has {len(content[:left])} bytes" in message
    assert "truncated" in message
    assert left != -1 or f"expected {size}" in message


def test_something_else_instead_of_safetensors_is_named(copy: Path) -> None:
    (copy / SHARDS[0]).write_bytes(b"<html>not here</html>" * 1000)
    assert f"{copy / SHARDS[0]} has" in _refusal(copy)


def test_missing_and_extra_keys_are_listed(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    fewer = {key: values for key, values in weights.items() if key != EMBEDDING}
    message = _refusal(_single(copy, fewer))
    assert "1 tensors of the model in config.json are missing" in message
    assert EMBEDDING in message
    more = weights | {f"value_head.{index}": torch.ones(1) for index in range(7)}
    message = _refusal(_single(copy, more))
    assert "7 tensors do not belong to the model" in message
    assert "value_head.0, value_head.1" in message
    assert "and 2 more" in message


def test_a_key_that_its_shard_lacks_is_named(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"][EMBEDDING] = SHARDS[1]
    index.write_text(json.dumps(raw))
    assert f"{copy / SHARDS[1]} lacks {EMBEDDING}" in _refusal(copy)


@pytest.mark.parametrize("weight_map", [[1], {}, {EMBEDDING: 5}, {EMBEDDING: None}, "x"])
def test_an_index_that_names_no_files_is_refused(copy: Path, weight_map: object) -> None:
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert f"{index}: weight_map is missing, expected key → file name" in _refusal(copy)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "a header that is a list"),
        (3, "a header that is a number"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": ["a", 4]}}, "x is described by"),
    ],
)
def test_a_header_that_describes_no_tensors_is_refused(
    copy: Path, weights: dict[str, torch.Tensor], header: object, said: str
) -> None:
    text = json.dumps(header).encode()
    path = _single(copy, weights) / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    message = _refusal(copy)
    assert str(path) in message
    assert said in message


def test_a_wrong_shape_is_named_with_file_key_found_and_expected(
    copy: Path, weights: dict[str, torch.Tensor]
) -> None:
    message = _refusal(_single(copy, weights | {EMBEDDING: torch.ones(32000, 32)}))
    assert message == (
        f"{copy / 'model.safetensors'}: {EMBEDDING} has shape (32000, 32), expected (32064, 32) by"
        " its config.json"
    )


def test_pickled_weights_are_refused_with_the_remedy(copy: Path) -> None:
    for name in (*SHARDS, "model.safetensors.index.json"):
        (copy / name).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    message = _refusal(copy)
    assert "holds no weights" in message
    assert "pytorch_model.bin are not loaded: convert to safetensors" in message


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_a_config_that_is_no_json_object_is_named(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, errors="surrogateescape")
    assert str(copy / "config.json") in _refusal(copy)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    assert "holds no checkpoint: expected config.json" in _refusal(tmp_path)


def test_a_config_of_another_model_is_refused(copy: Path) -> None:
    _edit(copy / "config.json", model_type="llava")
    with pytest.raises(OpenVLAError, match=r"model_type is 'llava', expected 'openvla'"):
        load(copy)


# Statistics


def _action(dimensions: int, top: float = 1.0) -> dict[str, Any]:
    return {"action": {"q01": [0.0] * dimensions, "q99": [top] * dimensions}}


def test_dataset_statistics_update_those_of_the_config(copy: Path) -> None:
    before = load(copy).model.norm_stats
    (copy / "dataset_statistics.json").write_text(
        json.dumps({"mine": _action(8), "crane_x7": _action(8, 2.0)})
    )
    after = load(copy).model.norm_stats
    assert after["bridge_orig"] == before["bridge_orig"]
    assert after["mine"] == _action(8)
    assert after["crane_x7"] == _action(8, 2.0) != before["crane_x7"]
    (copy / "dataset_statistics.json").unlink()
    assert load(copy).model.norm_stats == before


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"q01": [0.0] * 8, "q99": [1.0] * 7}, "q99 (7,)"),
        ({"q01": [0.0] * 8, "q99": [1.0] * 8, "mask": [True] * 7}, "mask (7,)"),
        ({"q01": [0.0] * 8}, "q99 is null"),
        ({"q01": [float("nan")] * 8, "q99": [1.0] * 8}, "finite"),
        ({"q01": [], "q99": []}, "shape (0,)"),
    ],
)
def test_statistics_that_do_not_fit_are_named_with_file_and_key(
    copy: Path, action: dict[str, Any], words: str
) -> None:
    path = copy / "dataset_statistics.json"
    path.write_text(json.dumps({"mine": {"action": action}}))
    loaded = load(copy)
    with pytest.raises(CheckpointError) as caught:
        Codec.of(loaded.layout, loaded.model.norm_stats, "mine")
    assert f"{path}: mine.action" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("entry", [{"action": {"q01": [0.0]}}, {"action": {}}, {}, None, 7])
def test_malformed_statistics_of_another_data_set_are_no_reason_to_refuse_ours(
    copy: Path, entry: object, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "dataset_statistics.json").write_text(json.dumps({"mine": _action(8), "other": entry}))
    builder.train_tokenizer().save(str(copy / "tokenizer.json"))
    loaded = load(copy)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "mine")
    assert codec.action.dimensions == 8
    assert "other" in caplog.text
    assert "the other statistics are usable" in caplog.text


# Adapters


def _train(folder: Path, base: Path | str, names: list[str], **options: Any) -> OpenVLA:
    """Save an adapter with PEFT, all its weights random; return the model that it makes."""
    torch.manual_seed(3)
    config = LoraConfig(target_modules=names, init_lora_weights=False, **options)
    wrapped = get_peft_model(load(CHECKPOINT).model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.merge_and_unload()  # type: ignore[no-any-return]


NAMES = [QUERY, HEAD, PATCHES, UNUSED, "projector.fc2"]
KINDS = [
    {"r": 4, "lora_alpha": 16},
    {"r": 4, "lora_alpha": 16, "use_rslora": True},
    {"r": 4, "lora_alpha": 2, "rank_pattern": {"projector.fc2": 7}, "alpha_pattern": {HEAD: 5}},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("where", ["lora_adapters", "lora_adapter", "."])
def test_every_layout_of_adapters_merges_to_what_peft_makes_of_it(
    tmp_path: Path, where: str, options: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    expected = _train(run / where, CHECKPOINT, NAMES, **options)
    (run / "dataset_statistics.json").write_text(json.dumps({"mine": _action(8)}))
    model = load(run).model
    for key, values in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], values, rtol=1e-5, atol=1e-6)
    assert model.norm_stats["mine"] == _action(8)
    assert "bridge_orig" in model.norm_stats, "those of the base stay"
    changed = (
        model.state_dict()[f"{PATCHES}.weight"]
        - load_file(CHECKPOINT / SHARDS[0])[f"{PATCHES}.weight"]
    )
    assert changed.abs().max() > 1e-3


def test_the_adapter_folder_itself_may_be_named_and_finds_statistics_above_it(
    tmp_path: Path,
) -> None:
    expected = _train(tmp_path / "lora_adapters", CHECKPOINT, [QUERY], r=2, lora_alpha=4)
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"mine": _action(8)}))
    model = load(tmp_path / "lora_adapters").model
    torch.testing.assert_close(
        model.state_dict()[f"{QUERY}.weight"], expected.state_dict()[f"{QUERY}.weight"]
    )
    assert "mine" in model.norm_stats


@pytest.mark.parametrize("options", KINDS)
def test_an_applied_adapter_computes_as_a_merged_one_and_can_be_trained(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    _train(tmp_path, CHECKPOINT, NAMES, **options)
    merged, applied = load(tmp_path).model, load(tmp_path, adapter_use="apply").model
    trained = [name for name, values in applied.named_parameters() if values.requires_grad]
    assert len(trained) == 2 * len(NAMES)
    assert all("lora_" in name for name in trained)
    pixels = load_file(FIXTURE / "expected.safetensors")["pixel_values"][:1]
    ids = [torch.tensor([1, 512, 29901, 1724])]
    tokens = Runner(merged).roll_out(pixels, ids, 8).tokens
    one, other = (evaluate(model, pixels, ids, tokens) for model in (merged, applied))
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)
    other.log_probs.sum().backward()
    gradient = applied.get_submodule(QUERY).lora_B["default"].weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_a_full_head_in_the_adapter_replaces_the_base_before_its_pair_is_added(
    tmp_path: Path,
) -> None:
    _train(tmp_path, CHECKPOINT, [HEAD], r=2, lora_alpha=4)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    head = torch.randn(32064, 32)
    prefix = f"base_model.model.{HEAD}"
    save_file(tensors | {f"{prefix}.base_layer.weight": head}, path)
    a, b = (tensors[f"{prefix}.lora_{half}.weight"] for half in "AB")
    model = load(tmp_path).model
    torch.testing.assert_close(model.state_dict()[f"{HEAD}.weight"], head + 2.0 * (b @ a))


def test_a_merged_model_with_its_adapter_beside_it_is_not_adapted_twice(
    copy: Path, weights: dict[str, torch.Tensor]
) -> None:
    _train(copy / "lora_adapter", CHECKPOINT, [QUERY], r=2, lora_alpha=4)
    _equal(load(copy).model, weights)


def test_a_whole_model_and_an_adapter_in_one_folder_say_which_is_used(
    copy: Path, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    _train(copy, CHECKPOINT, [QUERY], r=2, lora_alpha=4)
    _equal(load(copy).model, weights)
    assert "a whole model and an adapter (adapter_config.json); the model is used" in (caplog.text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_alpha": None}, "lora_alpha is null, expected a number"),
        ({"lora_alpha": "16"}, 'lora_alpha is "16", expected a number'),
        ({"alpha_pattern": {QUERY: None}}, f"alpha_pattern['{QUERY}'] is null, expected a number"),
        ({"rank_pattern": {QUERY: "x"}}, f"rank_pattern['{QUERY}'] is \"x\", expected a number"),
        ({"rank_pattern": [4]}, "rank_pattern is [4], expected an object"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern has '('"),
    ],
)
def test_figures_of_an_adapter_that_are_none_are_named_with_their_file(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    _train(tmp_path, CHECKPOINT, [QUERY], r=2, lora_alpha=4)
    path = tmp_path / "adapter_config.json"
    _edit(path, **change)
    assert f"{path}: {said}" in _refusal(tmp_path)


def test_the_base_may_be_given_relative_to_the_adapter(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "base", copy_function=_copy)
    _train(tmp_path / "run", "../base", [QUERY], r=2, lora_alpha=4)
    assert load(tmp_path / "run").layout.base.samefile(tmp_path / "base")


def test_a_base_that_is_nowhere_is_named_with_the_file_that_names_it(tmp_path: Path) -> None:
    _train(tmp_path, "/models/none here", [QUERY], r=2)
    message = _refusal(tmp_path)
    config = tmp_path / "adapter_config.json"
    assert f"{config}: the base of this adapter cannot be loaded" in message
    assert "/models/none here" in message


def _adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{key}": values for key, values in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(CHECKPOINT)}
    (folder / "adapter_config.json").write_text(json.dumps(raw | config))
    return folder


def _halves(module: str, out: int, rank: int, into: int) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.ones(rank, into),
        f"{module}.lora_B.weight": torch.ones(out, rank),
    }


def test_an_adapter_for_another_base_is_refused_by_shape_and_by_module(tmp_path: Path) -> None:
    message = _refusal(_adapter(tmp_path, _halves(QUERY, 4096, 2, 4096)))
    assert f"{QUERY}.lora_A.weight has shape (2, 4096), expected (2, 32)" in message
    assert "belongs to another base model" in message
    message = _refusal(_adapter(tmp_path, _halves(QUERY.replace("0", "31"), 32, 2, 32)))
    assert "layers.31.self_attn.q_proj, which the base does not have" in message
    message = _refusal(_adapter(tmp_path, {f"{HEAD}.base_layer.weight": torch.ones(4, 4)}))
    assert "has shape (4, 4), expected (32064, 32)" in message


@pytest.mark.parametrize(("rank", "said"), [(0, "0"), (-1, "-1"), (None, "null"), ("4", "'4'")])
def test_rank_0_is_refused(tmp_path: Path, rank: object, said: str) -> None:
    message = _refusal(_adapter(tmp_path, _halves(QUERY, 32, 2, 32), r=rank))
    assert f"r is {said}, expected a rank of 1 or more" in message


def test_a_rank_unlike_the_config_says_is_refused(tmp_path: Path) -> None:
    message = _refusal(_adapter(tmp_path, _halves(QUERY, 32, 3, 32)))
    assert "has rank 3, expected 2 as in adapter_config.json" in message
    message = _refusal(_adapter(tmp_path, _halves(QUERY, 32, 0, 32)))
    assert "has rank 0, expected 2" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is true"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
    ],
)
def test_adapters_of_another_kind_are_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    assert words in _refusal(_adapter(tmp_path, _halves(QUERY, 32, 2, 32), **config))


def test_half_a_pair_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    halves = _halves(QUERY, 32, 2, 32)
    half = {f"{QUERY}.lora_A.weight": halves[f"{QUERY}.lora_A.weight"]}
    assert f"{QUERY} has no lora_B" in _refusal(_adapter(tmp_path, half))
    strange = halves | {f"{QUERY}.lora_magnitude_vector": torch.ones(32)}
    assert "belongs to a kind of adapter" in _refusal(_adapter(tmp_path, strange))


def test_an_adapter_without_its_weights_is_refused(tmp_path: Path) -> None:
    _adapter(tmp_path, _halves(QUERY, 32, 2, 32))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "adapter_model.safetensors is missing" in _refusal(tmp_path)


# In separate processes


def _run(code: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_code_in_a_checkpoint_is_never_opened_compiled_or_run(copy: Path) -> None:
    """Python's own audit events tell, from before the first import to the action."""
    evil = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch(); raise SystemExit(3)"
    names = ("modeling_prismatic", "configuration_prismatic", "processing_prismatic", "__init__")
    for name in (*names, "torch", "json", "sitecustomize"):
        (copy / f"{name}.py").write_text(evil)
    remote = {"AutoConfig": f"{names[1]}.Config", "AutoModelForVision2Seq": f"{names[0]}.Model"}
    for name in ("config.json", "preprocessor_config.json"):
        _edit(copy / name, auto_map=remote)
    output = _run(
        """
        import sys
        folder, seen = sys.argv[1], []
        def note(event, arguments):
            if event in ("open", "exec", "compile", "import"):
                words = [getattr(arg, "co_filename", arg) for arg in arguments]
                if any(isinstance(word, str) and word.startswith(folder) for word in words):
                    seen.append((event, *words[:1]))
        sys.addaudithook(note)
        open(folder + "/config.json").close()
        assert seen.pop() == ("open", folder + "/config.json"), "the hook sees nothing"
        import numpy as np
        from crane_x7_vla_rl.policies.openvla.run.runner import Runner
        from crane_x7_vla_rl.policies.openvla.weights.loading import load
        model = load(folder).model
        pixels = model.preprocess([np.zeros((9, 9, 3), np.uint8)])
        import torch
        rollout = Runner(model).roll_out(pixels, [torch.tensor([1, 5])], 7)
        assert rollout.tokens.shape == (1, 7)
        assert seen, "nothing was opened"
        for event, name in seen:
            assert event == "open" and not name.endswith((".py", ".pyc")), (event, name)
        print("clean")
        """,
        copy,
    )
    assert output == "clean\n"
    assert not list(copy.glob("*.ran"))


MEASURE = """
import sys, torch
from pathlib import Path
from crane_x7_vla_rl.policies.openvla.weights.loading import load

def peak(name):
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith(name))) * 1024

small, large, device, dtype = sys.argv[1:]
options = dict(device=device, dtype=getattr(torch, dtype))
load(small, **options)
Path("/proc/self/clear_refs").write_text("5")
before = peak("VmRSS")
model = load(large, **options).model
taken = sum(values.nbytes for values in model.state_dict().values() if device == "cpu")
print(peak("VmHWM") - before - taken)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A checkpoint of three shards, and the size of the largest."""
    from crane_x7_vla_rl.policies.openvla.builder import Sizes, build

    folder = build(tmp_path_factory.mktemp("large"), Sizes(hidden=640, layers=16, mlp=1536))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for key, values in tensors.items():
        least = min(shards, key=lambda shard: sum(one.nbytes for one in shard.values()))
        least[key] = values
    index = {}
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"{number}.safetensors")
        index |= dict.fromkeys(shard, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder, max(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_the_model_itself_the_host_holds_at_most_one_shard(
    large: tuple[Path, int], dtype: str
) -> None:
    folder, shard = large
    assert shard > 80_000_000
    assert int(_run(MEASURE, CHECKPOINT, folder, "cpu", dtype)) < 1.2 * shard


@pytest.mark.gpu
def test_on_the_way_to_the_gpu_the_host_holds_at_most_one_shard(large: tuple[Path, int]) -> None:
    folder, shard = large
    assert int(_run(MEASURE, CHECKPOINT, folder, "cuda", "bfloat16")) < 1.2 * shard
