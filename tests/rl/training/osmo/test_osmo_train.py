"""What is around LeRobot's training: the result's folder, torchrun's variables, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="needs the train extra")
pytest.importorskip("pyarrow", reason="needs the train extra")

import lerobot_saves

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import TrainingError, UnfinishedError, exit_code
from crane_x7_vla_rl.training.lerobot import output, saved
from crane_x7_vla_rl.training.lerobot.dataset import DataSet
from crane_x7_vla_rl.training.lerobot.plan import Plan
from crane_x7_vla_rl.training.lerobot.start import Settled
from crane_x7_vla_rl.training.osmo import evaluate_command, train
from crane_x7_vla_rl.training.osmo.__main__ import main
from crane_x7_vla_rl.training.osmo.config import OsmoConfig, read


@pytest.fixture
def config(tmp_path: Path) -> OsmoConfig:
    return read(None, [f"output.dir={tmp_path}/act", "training.steps=10"])


def test_the_newest_checkpoint_is_delivered_under_its_published_name(config: OsmoConfig) -> None:
    for step in (5, 10):
        lerobot_saves.save(config.run, step)
    (config.run / "metrics.jsonl").write_text("{}\n")
    meta = config.dataset / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps({"features": {"action": {"names": ["a", "b"]}}}))
    assert train.train(config) == config.result, "all steps are done: nothing is trained"
    (checkpoint,) = config.result.glob("checkpoint_*")
    assert checkpoint.name == "checkpoint_000010"
    newest = saved.newest(config.run)
    assert newest is not None
    for path in newest.model.iterdir():
        assert (checkpoint / "pretrained_model" / path.name).samefile(path), "a link, not a copy"
    assert read(checkpoint / "config.yaml").data.joints == ("a", "b")
    assert (config.result / "metrics.jsonl").is_file()
    assert train.train(config) == config.result, "a second delivery replaces the first"
    assert evaluate_command.find(config.result) == checkpoint / "pretrained_model"


def test_a_process_that_is_not_the_first_delivers_nothing(
    config: OsmoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    lerobot_saves.save(config.run, 10)
    assert train.train(config) is None
    assert not config.result.exists()


def test_other_processes_have_a_folder_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    plan = Plan({"steps": 1, "output_dir": str(tmp_path)}, tmp_path)
    settled = Settled(plan, Path("python"), DataSet("local/x", tmp_path, {}), None, None)
    other = train._elsewhere(settled)
    assert other.plan.output_dir == tmp_path.with_name(f"{tmp_path.name}-unused-3")
    assert other.plan.options["output_dir"] == str(other.plan.output_dir)
    assert not other.plan.output_dir.exists()


def test_a_trainer_below_torchrun_makes_its_own_store_on_the_next_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "master", "MASTER_PORT": "29400",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = settings.worker_environment({"A": "b"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["A"]) == ("master", "29401", "b")
    assert (found["RANK"], found["WORLD_SIZE"]) == ("1", "2")
    assert not [name for name in found if name.startswith("TORCHELASTIC")]


@pytest.mark.parametrize(
    "line",
    ["torch.distributed.DistBackendError: NCCL error in: ncclRemoteError",
     "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1",
     "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely",
     "[rank0]: RuntimeError: [pair.cc] Read error [127.0.0.1]: Connection reset by peer"],
)  # fmt: skip
def test_a_lost_process_is_no_fault_of_the_training(line: str) -> None:
    error = output.failure(1, ["Traceback", line])
    assert isinstance(error, UnfinishedError)
    assert exit_code(error) == 13
    assert isinstance(output.failure(1, ["ValueError: x"]), TrainingError)
    assert exit_code(output.failure(1, ["ValueError: x"])) == 1


def test_the_code_of_the_first_failure_is_left_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "exit-code"
    words = ["train", "--override", f"data.path={tmp_path}/nowhere", "--override",
             f"output.dir={tmp_path}/act", "--exit-code-file", str(file)]  # fmt: skip
    assert main(words) == 4
    assert file.read_text() == "4\n"
    assert main(["train", "--override", "a.b=1", "--exit-code-file", str(file)]) == 3
    assert file.read_text() == "4\n", "the first one"
    assert "nowhere does not exist" in capsys.readouterr().err


def test_an_evaluation_refuses_what_does_not_fit_before_lerobot_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "checkpoint_000010/pretrained_model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model.parent / "config.yaml").write_text("data: {joints: [a, b], action: position}\n")
    data = tmp_path / "data"
    words = ["evaluate", "--checkpoint", str(tmp_path), "--dataset", str(data), "--output",
             str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 4
    assert "holds no LeRobotDataset (meta/info.json)" in capsys.readouterr().err
    (data / "meta").mkdir(parents=True)
    info = data / "meta/info.json"
    info.write_text(json.dumps({"features": {"action": {"names": ["b", "a"]}}}))
    assert main(words) == 4
    assert "columns b, a, the policy was trained with a, b" in capsys.readouterr().err
    info.write_text(json.dumps({"features": {"action": {"names": ["a", "b"]}}}))
    monkeypatch.setenv("EVAL_EPISODES", "0 one")
    assert main(words) == 3
    assert "'one' is no episode, expected numbers such as 0 1 2 3" in capsys.readouterr().err
    assert main([*words, "--episodes", "0", "--device", "gpu"]) == 3
    assert "'gpu', expected auto, cpu, cuda or cuda:0" in capsys.readouterr().err
    (tmp_path / "second/pretrained_model").mkdir(parents=True)
    (tmp_path / "second/pretrained_model/config.json").write_text("{}")
    assert main(words) == 3
    assert "expected one pretrained_model folder there, found" in capsys.readouterr().err
