"""LeRobot trains in OSMO's workflows: signals, kills, several nodes, W&B offline, the evaluation.

Every workflow's own script runs, with a tiny ACT on the CPU.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lerobot_rig
import psutil
import pytest

pytest.importorskip("rosbags", reason="needs the train extra")
pytest.importorskip("pyarrow", reason="needs the train extra")

import fake_blob
import osmo_rig
import pyarrow.parquet as pq
from osmo_rig import CONFIGS, Controller, Task, tiny
from rosbags.rosbag2 import StoragePlugin

from crane_x7_vla_rl.training.lerobot import saved

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(1800)]

PUBLISHED = {
    "config.json", "model.safetensors", "policy_preprocessor.json",
    "policy_preprocessor_step_3_normalizer_processor.safetensors", "policy_postprocessor.json",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors", "train_config.json",
}  # fmt: skip
"""Files of pretrained_model in the published package."""
WAIT_S = 600


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lerobot_rig.python()
    folder = tmp_path_factory.mktemp("storage") / "rosbags"
    for number in range(2):
        storage = StoragePlugin.SQLITE3 if number else StoragePlugin.MCAP
        osmo_rig.bag(folder / f"rec_{number}", number, seconds=0.6, storage=storage)
    return folder


def controller(kind: str, folder: Path, bags: Path, **training: object) -> Controller:
    storage = {"rosbags": bags, "train-rosbag-act-run": folder / "uploaded"}
    return Controller(CONFIGS / f"osmo-workflow{kind}.yaml", folder, storage=storage,
                      config=tiny(**training))  # fmt: skip


def trainer(process: subprocess.Popen[str]) -> psutil.Process:
    """Return train.py below a task's shell."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            if any(word.endswith("train.py") for word in child.cmdline()):
                return child
        time.sleep(0.1)
    raise AssertionError("no train.py is running")


def kill(process: subprocess.Popen[str]) -> None:
    """End a task as a container ends: every process at once. torchrun's are in other sessions."""
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
    process.wait(60)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path}"
        assert time.monotonic() < end_s, f"{path} did not come"
        time.sleep(0.05)


def upload(task: Task, folder: Path) -> None:
    """Do what OSMO does with `checkpoint:`; another attempt starts without the task's folder."""
    run = task.folder / "output/train-rosbag-act-run"
    ignored = shutil.ignore_patterns(".saving-*", "last")
    shutil.copytree(run, folder / "uploaded", dirs_exist_ok=True, ignore=ignored)
    shutil.rmtree(task.folder)


def rows(task: Task) -> list[dict[str, float]]:
    text = (task.output / "train-rosbag-act/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_stopped_killed_and_rescheduled_ends_as_published_and_is_evaluated(
    bags: Path, tmp_path: Path
) -> None:
    steps = {"steps": 24, "save_freq": 6, "scheduler": "cosine", "warmup_steps": 2, "lr": 5e-5}
    osmo = controller("-train-eval", tmp_path, bags, **steps)
    osmo.variables = {"EVAL_EPISODES": "0 1", "EVAL_DEVICE": "cpu"}

    task = osmo.tasks()["train-act"]
    run = task.folder / "output/train-rosbag-act-run/lerobot"
    with osmo.start(task, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(run / "metrics.jsonl", process)
        trainer(process).send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 13, "a training that only has to be started again"
    first = saved.newest(run)
    assert first is not None
    assert 0 < first.step < 24
    assert not any(task.output.iterdir()), "an unfinished training delivers nothing"
    upload(task, tmp_path)

    task = osmo.tasks()["train-act"]
    with osmo.start(task, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(run / f"checkpoints/{6 * (first.step // 6 + 1):06d}", process)
        kill(process)
    time.sleep(1)  # the trainer ends with its supervisor
    second = saved.newest(run)
    assert second is not None
    assert first.step < second.step
    upload(task, tmp_path)

    tasks = osmo.tasks()
    said = osmo.run(tasks["train-act"])
    assert f"resuming from {run}/checkpoints/{second.step:06d}, step {second.step}" in said
    model = tasks["train-act"].output / "train-rosbag-act/checkpoint_000024/pretrained_model"
    assert {path.name for path in model.iterdir()} == PUBLISHED
    figures = rows(tasks["train-act"])
    assert [row["step"] for row in figures] == list(range(1, 25))
    assert all({"loss", "l1_loss", "kl_loss", "learning_rate"} <= row.keys() for row in figures)
    rates = {row["step"]: row["learning_rate"] for row in figures}
    assert rates[1] < rates[2] <= 5e-5
    assert rates[24] == pytest.approx(1e-7, rel=0.2)

    evaluation = tasks["eval-act"]
    data = tasks["train-act"].folder / "output/train-rosbag-act-data"
    shutil.copytree(data, evaluation.folder / "osmo-input-1", dirs_exist_ok=True)
    osmo.run(evaluation)
    names = {path.name for path in evaluation.output.iterdir()}
    assert names == {"episode_000.parquet", "episode_001.parquet", "all_episodes.parquet",
                     "summary.json"}  # fmt: skip
    table = pq.read_table(evaluation.output / "episode_001.parquet").to_pydict()
    joint = "elbow_joint"
    state, truth = table[f"joint_position_{joint}"], table[f"gt_action_{joint}"]
    assert truth[0] == pytest.approx(state[1] - state[0], abs=1e-6), "the actions are deltas"
    error = [abs(p - t) for p, t in zip(table[f"predicted_action_{joint}"], truth, strict=True)]
    assert table[f"abs_error_{joint}"] == pytest.approx(error, abs=1e-6)
    assert min(table["inference_time_s"]) > 0
    summary = json.loads((evaluation.output / "summary.json").read_text())
    assert {*summary["mae"]} == {*osmo_rig.UR10E}


def free_port() -> int:
    """Return a port that is free, as is the one above it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def test_two_nodes_train_one_model_and_a_lost_one_makes_the_other_start_again(
    bags: Path, tmp_path: Path
) -> None:
    osmo = controller("-ddp", tmp_path, bags, steps=4, save_freq=2)
    osmo.numbers = {"n_nodes": "2", "master_port": str(free_port())}
    osmo.variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    tasks = osmo.tasks()
    said = {}
    started = {
        name: osmo.start(task, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name, task in tasks.items()
    }
    for name in reversed(started):  # a worker that fails leaves the master waiting
        process = started[name]
        said[name], _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, said[name][-6000:]
    assert "Effective batch size: 2 x 2 = 4" in said["master"]
    assert [row["step"] for row in rows(tasks["master"])] == [1, 2, 3, 4]
    assert "step 4 of 4" not in said["worker_1"], "the first process alone logs"
    run = tasks["worker_1"].folder / "output/train-rosbag-act-run"
    assert not [path for path in run.rglob("*") if path.is_file()], "the first process alone writes"
    model = tasks["master"].output / "train-rosbag-act/checkpoint_000004/pretrained_model"
    assert {path.name for path in model.iterdir()} == PUBLISHED

    upload(tasks["master"], tmp_path)
    shutil.rmtree(tasks["worker_1"].folder)
    osmo.config = tiny(steps=5000, save_freq=5000)
    osmo.numbers["master_port"] = str(free_port())
    tasks = osmo.tasks()
    figures = tasks["master"].folder / "output/train-rosbag-act-run/lerobot/metrics.jsonl"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = {name: osmo.start(task, **quiet) for name, task in tasks.items()}
    try:
        end_s = time.monotonic() + WAIT_S
        while not figures.exists() or len(figures.read_text().splitlines()) <= 4:
            assert time.monotonic() < end_s, "the second attempt does not train"
            assert started["master"].poll() is None
            time.sleep(0.2)
        kill(started["worker_1"])
        assert started["master"].wait(WAIT_S) == 13
    finally:
        for process in started.values():
            kill(process)


RANK = """
import sys
import torch.distributed as ranks
from crane_x7_vla_rl.training.osmo.trainer_process import Steps
ranks.init_process_group("gloo")
steps = Steps()
steps.noting(lambda: (int(sys.argv[1]), None, None))()
print(steps.compared_before(lambda: "trained")())
"""


@pytest.mark.parametrize("resumed", [(1000, 1000), (1000, 0)])
def test_ranks_that_resume_different_steps_end_before_the_first_one(
    resumed: tuple[int, int],
) -> None:
    """A node without the checkpoint would train other steps beside the one that has it."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(step)], text=True, cwd=lerobot_rig.ROOT,
            env={**lerobot_rig.environment(), **group, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, step in enumerate(resumed)
    ]  # fmt: skip
    for process in started:
        out, problem = process.communicate(timeout=WAIT_S)
        if resumed[0] == resumed[1]:
            assert (process.returncode, out) == (0, "trained\n"), problem
        else:
            assert process.returncode == 1
            assert "resume different steps (rank 0 1000, rank 1 0)" in problem


def test_wandb_offline_gets_the_published_figures_under_the_runs_name_and_tags(
    bags: Path, tmp_path: Path
) -> None:
    osmo = controller("-wandb", tmp_path, bags, steps=2)
    osmo.secrets = {"wandb-api-key": "0123456789" * 4}
    osmo.variables = {"WANDB_MODE": "offline"}
    task = osmo.tasks()["train-act"]
    said = osmo.run(task)
    assert osmo.secrets["wandb-api-key"] not in said
    (record,) = task.folder.rglob("run-*.wandb")
    content = record.read_bytes()
    for name in (b"loss", b"l1_loss", b"kl_loss", b"lr"):
        assert re.search(rb"(?<![\w/])" + name + rb"(?![\w/])", content), name
    assert b"ur10e-act-wandb" in content
    assert b"osmo" in content


def test_bags_from_a_blob_are_downloaded_and_trained_on(bags: Path, tmp_path: Path) -> None:
    blobs = {
        f"houston_recordings/{path.relative_to(bags).as_posix()}": path.read_bytes()
        for path in bags.rglob("*") if path.is_file()
    }  # fmt: skip
    with fake_blob.serving(fake_blob.Account(blobs=blobs)) as account:
        account.faults = [("datasets", fake_blob.BUSY)]
        osmo = controller("-blob", tmp_path, bags, steps=1)
        osmo.secrets = {"azure-storage-account": "acc", "azure-storage-sas": fake_blob.SAS}
        osmo.variables = {"AZURE_BLOB_ENDPOINT": account.address}
        task = osmo.tasks()["train-act"]
        said = osmo.run(task)
    assert fake_blob.SIGNATURE not in said
    assert (task.output / "train-rosbag-act/checkpoint_000001").is_dir()
