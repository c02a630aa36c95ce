"""A wrong device or model is refused from small files, before torch and any weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import REPOSITORY, FakeHub
from places import ROOT

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from crane_x7_vla_rl.policies import cuda_devices, preflight
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.openvla.keys import refusal
from crane_x7_vla_rl.training import preflight as training_preflight

TOOL = {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}
JOINTS = {"action": {"q01": [0.0] * 8, "q99": [1.0] * 8}}
INFER = """
import sys
from crane_x7_remote.cli import main
code = main(["infer", "--rosbridge-host", "127.0.0.1", *sys.argv[1:]])
print("torch" in sys.modules)
sys.exit(code)
"""


def described(folder: Path, known: dict[str, Any]) -> Path:
    """Write what describes a model, without its weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"norm_stats": known}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"never read")
    return folder


SAID = """
import sys
from crane_x7_vla_rl.policies import about
print(about.said_by(sys.argv[1]).get("task"))
"""


def test_of_a_checkpoint_on_the_hub_the_files_that_say_its_scene_alone_are_fetched(
    tmp_path: Path,
) -> None:
    files = {
        "model.safetensors": b"never read", "tokenizer.json": b"{}", "config.json": b"{}",
        "train_config.yaml": b"env: {env_id: PickPlace-CRANE-X7}",
    }  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "VLA_"))}
    with FakeHub(files) as hub:
        environ = kept | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        done = subprocess.run(
            [sys.executable, "-c", SAID, REPOSITORY],
            env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert "PickPlace-CRANE-X7" in done.stdout, done.stderr
    fetched = {request.rpartition("/")[2].split()[0] for request in hub.requests}
    assert {"train_config.yaml", "config.json"} <= fetched  # the latter names a LeRobot camera
    assert not fetched & {"model.safetensors", "tokenizer.json"}


def test_infer_refuses_a_base_model_from_the_hub_before_any_weights(tmp_path: Path) -> None:
    folder = described(tmp_path / "model", {"bridge_orig": TOOL, "fractal": TOOL})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with FakeHub(files) as hub:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "VLA_"))}
        environ = kept | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
        model = ("--vla-model-path", REPOSITORY, "--vla-device", "cpu")
        done = subprocess.run(
            [sys.executable, "-c", INFER, *model],
            env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "known: bridge_orig, fractal. The model has never seen this arm" in done.stderr
    assert f"crane-x7-vla-rl sft --backend openvla --model {REPOSITORY}" in done.stderr
    assert "VLA_UNNORM_KEY=bridge_orig, with --dry-run" in done.stderr
    assert not [request for request in hub.requests if "safetensors" in request]
    assert done.stdout == "False\n", "torch was imported for an answer that needs none"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {"vla": {"base_vlm": "prism-qwen25-extra-dinosiglip-224px+0_5b"}},
            "is in the format of Prismatic's trainer .'prism-qwen25-extra",
        ),
        ({"text_config": {"model_type": "qwen2"}}, "text_config.model_type is 'qwen2'"),
    ],
)
def test_minivla_is_refused_for_its_architecture_and_not_for_its_statistics(
    tmp_path: Path, config: dict[str, Any], what: str
) -> None:
    described(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyLoadError, match=f"{what}.*MiniVLA .Qwen 2.5. does not load") as said:
        preflight.check(ModelOptions(str(tmp_path), device="cpu"))
    assert "never seen this arm" not in str(said.value)
    (trained,) = training_preflight.model(str(tmp_path), "--model")
    assert str(trained).startswith("--model: ")
    assert "MiniVLA" in str(trained)


def test_wrong_device_and_wrong_model_are_said_at_once(tmp_path: Path) -> None:
    options = ModelOptions(str(tmp_path / "nowhere"), device="cpux")
    with pytest.raises(PolicyLoadError) as caught:
        preflight.check(options)
    assert "2 problems; nothing" in str(caught.value)
    assert "VLA_DEVICE=cpux: expected auto, cuda, cuda:1 or cpu" in str(caught.value)
    assert f"VLA_MODEL_PATH: {tmp_path / 'nowhere'}: this folder does not exist" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("there", "device", "refused"),
    [(0, "cuda", True), (1, "cuda", False), (1, "cuda:7", True), (None, "cuda:7", False)],
)
def test_a_gpu_that_is_surely_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, there: int | None, device: str, refused: bool
) -> None:
    monkeypatch.setattr(cuda_devices, "count", lambda: there)
    found = cuda_devices.problems(device, "--device")
    assert [str(error).partition(":")[0] for error in found] == ["--device=cuda"] * refused


def test_an_adapter_is_judged_by_its_own_statistics_and_its_bases(tmp_path: Path) -> None:
    described(tmp_path / "base", {"bridge_orig": TOOL})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "../base"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    options = ModelOptions(str(adapter))
    (error,) = preflight.model_problems(options)
    assert "known: bridge_orig" in str(error)
    (adapter / "dataset_statistics.json").write_text(json.dumps({"crane_x7": JOINTS}))
    assert preflight.model_problems(options) == []


def test_a_key_of_tool_steps_is_not_offered_as_angles_of_joints() -> None:
    said = refusal("acme/model", {"arm": JOINTS, "bridge_orig": TOOL}, "crane_x7", "--unnorm-key")
    assert "--unnorm-key=bridge_orig, with --dry-run" in said
    assert "not angles of the 8 joints but steps of another robot's tool" in said
