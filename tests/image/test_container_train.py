"""The image teaches: role `sft` makes a policy of mounted demonstrations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for package in ("torch", "pyarrow", "tokenizers", "av"):
    pytest.importorskip(package, reason="needs the train extra")

import training_rig as rig
from containers import Container, Network, Workshop

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode

pytestmark = pytest.mark.container
VLA = 1000
"""The user in the image."""


@pytest.mark.slow  # some GB of packages are installed
@pytest.mark.timeout(3600, func_only=True)
def test_role_sft_makes_a_policy_of_mounted_demonstrations(
    workshop: Workshop, whole_image: str, network: Network, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    os.chown(outputs, VLA, VLA)
    mounts = {
        rig.data(): "/workspace/data/lift:ro",
        rig.base(): "/workspace/base:ro",
        outputs: "/workspace/vla-rl/outputs",
    }
    command = (
        "sft", "--backend", "openvla", "--data-root", "/workspace/data/lift",
        "--model", "/workspace/base", "--image-size", f"{rig.SIDE}x{rig.SIDE}", "--no-use-lora",
        "--output-dir", "/workspace/vla-rl/outputs/lift", "--max-steps", "2", "--batch-size", "2",
        "--device", "cpu",
    )  # fmt: skip
    volumes = [f"--volume={folder}:{there}" for folder, there in mounts.items()]
    with Container(workshop, whole_image, network, command, options=volumes) as container:
        assert container.wait(600) == ExitCode.OK, container.logs()
    run = outputs / "lift"
    assert len(rig.losses(run)) == 2
    assert checkpoint.step_of(run / "last") == 2
    assert (run / "last" / "model.safetensors").stat().st_uid == VLA
    load_policy("openvla", ModelOptions(path=str(run / "last")))


def test_role_train_says_in_a_word_what_is_missing(
    workshop: Workshop, image: str, network: Network
) -> None:
    """This image is the one without what training needs."""
    with Container(workshop, image, network, ("train", "--backend", "cpu")) as container:
        assert container.wait() == ExitCode.USAGE
        assert "missing packages: torch" in container.logs()
        assert "Traceback" not in container.logs()
