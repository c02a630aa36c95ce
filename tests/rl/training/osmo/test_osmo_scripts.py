"""Each workflow's scripts, run as OSMO's controller calls them; a stand-in trains."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="needs the train extra")

from osmo_rig import CONFIGS, Controller, Task

from crane_x7_vla_rl.training.osmo.config import OsmoConfig, read

STAND_IN = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "$ROOT/calls"
ls "$ROOT/data/rosbags" > "$ROOT/seen" 2>/dev/null
ls "$ROOT/output/train-rosbag-act-run" > "$ROOT/resumed"
[ -z "$FAILS" ] || { echo "$FAILS" > "$ROOT/output/exit-code"; exit 1; }
mkdir -p "$ROOT/output/train-rosbag-act/checkpoint_005000/pretrained_model"
echo '{}' > "$ROOT/output/train-rosbag-act/checkpoint_005000/pretrained_model/config.json"
"""
"""`python` and `torchrun`: notes its words, and writes what a training writes."""
SECRETS = {
    "wandb-api-key": "k" * 40,
    "azure-storage-account": "account-of-mine",
    "azure-storage-sas": "sp=rl&sig=x",
}


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    for name in ("rosbags/rec_0", "run/checkpoints/000005"):
        (tmp_path / "storage" / name).mkdir(parents=True)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("python", "torchrun"):
        (bin_folder / name).write_text(STAND_IN)
        (bin_folder / name).chmod(0o755)
    storage = {"rosbags": tmp_path / "storage/rosbags",
               "train-rosbag-act-run": tmp_path / "storage/run"}  # fmt: skip
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return Controller(CONFIGS / "?", tmp_path / "tasks", secrets=SECRETS, storage=storage,
                      variables={"PATH": path})  # fmt: skip


def opened(controller: Controller, name: str) -> dict[str, Task]:
    controller.file = CONFIGS / f"{name}.yaml"
    return controller.tasks()


def run(controller: Controller, task: Task, **variables: str) -> int:
    controller.variables |= {"ROOT": str(task.folder), "FAILS": "", **variables}
    return controller.start(task, stderr=subprocess.STDOUT).wait(30)


def calls(task: Task) -> list[str]:
    """Return the stand-in's words, paths as in the container."""
    said = (task.folder / "calls").read_text()
    return said.replace(str(task.folder), "").splitlines()


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


RESULT = "train-rosbag-act/checkpoint_005000/pretrained_model/config.json"
TRAIN = "python /workspace/train.py --config /workspace/config.yaml"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("osmo-workflow", [TRAIN]),
     ("osmo-workflow-wandb", [f"{TRAIN} --override wandb.run_name=ur10e-act-wandb"]),
     ("osmo-workflow-train-eval", [TRAIN]),
     ("osmo-workflow-blob",
      ["python -m crane_x7_vla_rl.training.osmo download", TRAIN])],
)  # fmt: skip
def test_one_gpu_sees_bags_and_earlier_checkpoints_and_delivers(
    controller: Controller, name: str, expected: list[str]
) -> None:
    task = opened(controller, name)["train-act"]
    assert run(controller, task) == 0
    assert calls(task) == expected
    assert (task.folder / "resumed").read_text() == "checkpoints\n"
    if "blob" not in name:
        assert (task.folder / "seen").read_text() == "rec_0\n"
    assert listed(task.output) == {RESULT}


def test_a_training_that_fails_delivers_nothing_and_keeps_its_code(controller: Controller) -> None:
    task = opened(controller, "osmo-workflow")["train-act"]
    assert run(controller, task, FAILS="13") == 1
    assert listed(task.output) == set()


def test_the_first_attempt_has_nothing_to_resume(controller: Controller) -> None:
    controller.storage.pop("train-rosbag-act-run")
    task = opened(controller, "osmo-workflow")["train-act"]
    assert run(controller, task) == 0
    assert (task.folder / "resumed").read_text() == ""


def test_the_evaluation_gets_the_trained_checkpoint(controller: Controller) -> None:
    tasks = opened(controller, "osmo-workflow-train-eval")
    assert run(controller, tasks["train-act"]) == 0
    task = tasks["eval-act"]
    (task.folder / "output/train-rosbag-act-run").mkdir(parents=True)
    assert run(controller, task) == 0
    (line,) = calls(task)
    assert line == ("python -m crane_x7_vla_rl.training.osmo evaluate --checkpoint /osmo-input-0"
                    " --dataset /osmo-input-1 --output /osmo-output")  # fmt: skip
    assert RESULT in listed(task.folder / "osmo-input-0")
    own = controller.environment(task)
    assert (own["EVAL_EPISODES"], own["EVAL_DEVICE"]) == ("0 1 2 3", "cuda")


def test_ddp_starts_torchrun_on_every_node_and_the_master_alone_delivers(
    controller: Controller,
) -> None:
    controller.numbers = {"n_nodes": "3", "gpus_per_node": "2"}
    tasks = opened(controller, "osmo-workflow-ddp")
    assert [*tasks] == ["master", "worker_1", "worker_2"]
    for rank, task in enumerate(tasks.values()):
        assert run(controller, task) == 0
        (line,) = calls(task)
        assert line.startswith(
            f"torchrun --nnodes 3 --nproc_per_node 2 --node_rank {rank} --master_addr 127.0.0.1"
            " --master_port 29400 /workspace/train.py --config /workspace/config.yaml"
        )
        assert (listed(task.output) == {RESULT}) is (rank == 0)
        assert (task.folder / "resumed").read_text() == "checkpoints\n", "every node resumes"


def test_ddp_ends_with_the_code_of_the_process_that_failed(controller: Controller) -> None:
    controller.numbers = {"n_nodes": "2"}
    task = opened(controller, "osmo-workflow-ddp")["worker_1"]
    assert run(controller, task, FAILS="13") == 13, "torchrun itself ended with 1"


def test_the_sweep_has_the_published_arms_and_their_overrides_are_right(
    controller: Controller,
) -> None:
    tasks = opened(controller, "osmo-workflow-sweep")
    grid = [(lr, kl) for kl in (10.0, 1.0) for lr in (1e-5, 5e-5, 1e-4)]
    names = [f"train-lr{lr}-kl{kl}" for kl in (10, 1) for lr in ("1e5", "5e5", "1e4")]
    assert [*tasks] == names
    for (lr, kl), task in zip(grid, tasks.values(), strict=True):
        arm = task.name.removeprefix("train-")
        assert task.spec["outputs"] == [{"url": f"s3://my-bucket/ur10e/ur10e-act-sweep-{arm}/"}]
        assert run(controller, task) == 0
        (line,) = calls(task)
        words = line.split()
        overrides = [word for at, word in enumerate(words) if words[at - 1] == "--override"]
        config = read(task.folder / "workspace/config.yaml", overrides)
        assert isinstance(config, OsmoConfig)
        assert (config.training.lr, config.model.kl_weight) == (lr, kl)
        assert (config.wandb.run_name, config.wandb.tags) == (f"sweep-{arm}", ("osmo", "sweep"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("osmo-workflow*.yaml")), ids=lambda p: p.stem)
def test_osmo_uploads_what_a_later_attempt_resumes(controller: Controller, path: Path) -> None:
    for task in opened(controller, path.stem).values():
        if task.name.startswith(("worker", "eval")):
            assert "checkpoint" not in task.spec, "one task of a group writes"
            continue
        (saved,) = task.spec["checkpoint"]
        run = read(task.folder / "workspace/config.yaml").run
        assert Path(task.text(saved["path"])) == run.parent, "LeRobot makes its folder late"
        earlier = f"{saved['url']}/{run.parent.name}/"
        assert [each["url"] for each in task.spec["inputs"]][-1] == earlier
        pattern = re.compile(saved["regex"])
        name = f"{run.parent.name}/lerobot/checkpoints"
        assert pattern.match(f"{name}/001000/pretrained_model/model.safetensors")
        assert not pattern.match(f"{name}/.saving-001000/pretrained_model/model.safetensors")


def test_secrets_are_credentials_and_never_in_a_workflows_text() -> None:
    for path in CONFIGS.glob("osmo-workflow*.yaml"):
        assert not {value for value in SECRETS.values() if value in path.read_text()}
    wandb = (CONFIGS / "osmo-workflow-wandb.yaml").read_text()
    assert "wandb-api-key:\n        WANDB_API_KEY: value" in wandb
