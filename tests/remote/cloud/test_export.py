"""`cloud export` and `cloud train --template`: what other tools and web pages get.

The keys are those of SkyPilot 0.14.1 and dstack 0.22.5; their own parsers took these files once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from crane_x7_remote import cli
from crane_x7_remote.cloud import job as jobs
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.templates import split_tag

EXAMPLE = ROOT / "configs" / "train.remote.example.yaml"
IMAGE = "me/crane-x7-remote:0.1.0-lerobot"
SKY_KEYS = {"name", "resources", "secrets", "file_mounts", "run"}
SKY_RESOURCES = {
    "accelerators", "image_id", "use_spot", "disk_size", "infra", "max_hourly_cost",
}  # fmt: skip
DSTACK_KEYS = {
    "type", "name", "image", "env", "files", "commands", "resources", "spot_policy", "retry",
    "backends", "regions", "max_price", "max_duration",
}  # fmt: skip


def export(path: Path, *words: str) -> dict[str, Any]:
    flag = "--sky" if "sky" in path.name else "--dstack"
    given = ("--gpu-model", "H100", "--image", IMAGE, "--train-config", str(EXAMPLE))
    assert cli.main(["cloud", "export", flag, str(path), *given, *words]) == 0
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def test_the_file_for_skypilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobodymayseethis1234")
    task = export(
        tmp_path / "sky.yaml", "--gpus-per-instance", "4", "--provider", "verda", "--location",
        "FIN-01", "--max-price", "12",
    )  # fmt: skip
    assert task.keys() <= SKY_KEYS
    assert task["resources"].keys() <= SKY_RESOURCES
    assert task["resources"]["accelerators"] == "H100:4"
    assert task["resources"]["infra"] == "verda/FIN-01"
    assert task["resources"]["image_id"] == f"docker:{IMAGE}"
    assert task["secrets"] == {"HF_TOKEN": None, "WANDB_API_KEY": None}
    ((there, here),) = task["file_mounts"].items()
    assert there in task["run"]
    assert Path(here) == EXAMPLE
    assert "--resume auto" in task["run"]
    assert "hf_nobody" not in (tmp_path / "sky.yaml").read_text()
    shown = capsys.readouterr().out
    assert "sky jobs launch --secret HF_TOKEN" in shown
    assert "an eviction loses the whole run" in shown


def test_the_file_for_dstack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own check of the YAML is left out: it runs in the test above."""
    monkeypatch.setattr(
        jobs, "read_lerobot", lambda _file, repo_id, _values: Job(repo_id=repo_id, every_save=True)
    )
    task = export(
        tmp_path / "dstack.yaml", "--provider", "vast", "--max-hours", "1.5", "--max-price", "3",
        "--checkpoint-repo-id", "me/checkpoints", "--run-id", "1_First.Run",
    )  # fmt: skip
    assert task.keys() <= DSTACK_KEYS
    assert (task["type"], task["name"]) == ("task", "run-1-first-run")
    assert task["resources"]["gpu"] == {"name": "H100", "count": 1}
    assert task["spot_policy"] == "spot"
    assert task["backends"] == ["vastai"]
    assert task["max_duration"] == "90m"
    assert task["env"] == ["HF_TOKEN", "WANDB_API_KEY"]
    assert task["commands"][0].endswith("--checkpoint-repo-id me/checkpoints")
    on_demand = export(tmp_path / "dstack.yaml", "--on-demand")
    assert on_demand["spot_policy"] == "on-demand"
    assert "retry" not in on_demand


def test_a_wrong_key_of_the_training_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "train.yaml"
    wrong.write_text(EXAMPLE.read_text().replace("batch_size:", "batch_sise:"))
    path = tmp_path / "sky.yaml"
    words = ["--gpu-model", "H100", "--image", IMAGE, "--train-config", str(wrong)]
    assert cli.main(["cloud", "export", "--sky", str(path), *words]) == 3
    assert "batch_sise" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("provider", ["vast", "runpod"])
def test_the_template_of_a_training_is_printed(
    provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["cloud", "train", "--template", provider])
    assert caught.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    file = ROOT / "configs" / "templates" / f"{provider}-crane-x7-lerobot.json"
    assert printed == json.loads(file.read_text())


def test_the_template_takes_the_image_and_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    image = "localhost:5000/me/crane-x7-remote:2.0"
    with pytest.raises(SystemExit):
        cli.main(["cloud", "train", "--image", image, "--job", "sft", "--template", "runpod"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["imageName"] == image
    assert printed["name"] == "crane-x7-train"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("a/b:c", ("a/b", "c")),
        ("a/b", ("a/b", "")),
        ("host:5000/a/b", ("host:5000/a/b", "")),
        ("host:5000/b:1", ("host:5000/b", "1")),
        ("b:1", ("b", "1")),
    ],
)
def test_a_registrys_port_is_no_tag(image: str, parts: tuple[str, str]) -> None:
    assert split_tag(image) == parts
