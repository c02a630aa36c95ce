"""train.remote.yaml, flags of `sft` and LeRobot's own words → the same words of lerobot-train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.config.loader import Layer
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode
from crane_x7_vla_rl.training.lerobot import options, plan, request

EXAMPLE = Path(__file__).parents[4] / "configs" / "train.remote.example.yaml"
DATA = {"dataset.repo_id": "me/data", "policy.type": "act"}


def words(values: dict[str, object], gpus: int = 0) -> list[str]:
    made = plan.make(request.build([Layer("test", {**DATA, **values})]), plan.Machine(gpus))
    return [*made.launcher, *made.words]


def test_every_key_of_the_yaml_becomes_a_word_or_a_way_to_start(tmp_path: Path) -> None:
    found = words(
        {
            "dataset.root": "/d", "policy.type": "pi0", "policy.empty_cameras": 1,
            "policy.rename_map.observation.images.base": "observation.images.base_0_rgb",
            "job.name": "n", "job.output_dir": str(tmp_path / "o"), "training.steps": 9,
            "training.batch_size": 2, "training.save_freq": 3, "training.save_checkpoint": True,
            "checkpoint.repo_id": "me/ckpt", "checkpoint.upload_every_save": True,
            "checkpoint.upload_poll_seconds": 60, "wandb.enable": True, "wandb.project": "p",
            "accelerate.use": True, "accelerate.num_processes": 4, "accelerate.num_machines": 2,
            "accelerate.mixed_precision": "bf16", "torch.nightly": False,
        }
    )  # fmt: skip
    for word in (
        "--multi_gpu", "--num_processes=4", "--num_machines=2", "--mixed_precision=bf16",
        "--dataset.root=/d", "--policy.type=pi0", "--policy.empty_cameras=1", "--job_name=n",
        '--rename_map={"observation.images.base": "observation.images.base_0_rgb"}', "--steps=9",
        "--batch_size=2", "--save_freq=3", "--save_checkpoint=true", "--wandb.enable=true",
        "--wandb.project=p", "--policy.push_to_hub=false", f"--output_dir={tmp_path / 'o'}",
    ):  # fmt: skip
        assert word in found


def test_pi0_gets_the_base_weights_and_what_they_need_unless_the_file_says_otherwise() -> None:
    preset = words({"policy.type": "pi0"})
    for word in ("pretrained_path=lerobot/pi0_base", "compile_model=true", "dtype=bfloat16",
                 "gradient_checkpointing=true"):  # fmt: skip
        assert f"--policy.{word}" in preset
    own = words(
        {"policy.type": "pi0", "policy.compile_model": False, "policy.pretrained_path": None}
    )
    assert "--policy.compile_model=false" in own
    assert "--policy.pretrained_path=null" in own
    assert not any("pretrained_path" in word for word in words({}))


def test_5e_5_is_a_number_and_is_written_so_that_yaml_reads_one() -> None:
    import yaml

    (word,) = [w for w in words({"training.lr": "5e-5"}) if "optimizer_lr" in w]
    assert word == "--policy.optimizer_lr=5.0e-05"
    assert yaml.safe_load(word.partition("=")[2]) == 5e-5


def test_a_wrong_key_is_answered_with_the_nearest_and_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        words(
            {
                "training.savefreq": 1, "policy.empty_camera": 1, "torch.nigtly": True,
                "wandbb.enable": True, "training.steps": "many", "policy.chunk_sice": 3,
            }
        )  # fmt: skip
    for text in (
        "did you mean training.save_freq?", "did you mean policy.chunk_size?",
        "did you mean nightly?", "the section wandbb is unknown; did you mean wandb?",
        "training.steps is 'many', expected a whole number",
    ):  # fmt: skip
        assert text in str(caught.value)


def test_an_option_of_another_policy_names_the_policies_that_have_it() -> None:
    with pytest.raises(ConfigError, match=r"empty_cameras is no option of act.*pi0.*smolvla"):
        words({"policy.empty_cameras": 1})
    with pytest.raises(ConfigError, match="did you mean smolvla"):
        words({"policy.type": "smolVLA"})


def test_a_policy_with_a_path_brings_its_own_type() -> None:
    found = words({"policy.path": "me/policy"})
    assert "--policy.path=me/policy" in found
    assert not any(word.startswith("--policy.type") for word in found)
    with pytest.raises(ConfigError, match="both set"):
        words({"policy.path": "me/policy", "policy.pretrained_path": "me/other"})


def test_rename_map_without_a_pretrained_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename_map needs a pretrained policy"):
        words({"policy.rename_map.a": "b"})


def test_several_gpus_are_used_unless_the_file_turns_it_off() -> None:
    assert words({}, gpus=4)[:2] == ["--multi_gpu", "--num_processes=4"]
    assert words({"accelerate.num_processes": 2}, gpus=4)[1] == "--num_processes=2"
    assert words({"accelerate.use": False}, gpus=4)[0].startswith("--dataset")
    assert words({}, gpus=1)[0].startswith("--dataset")


def test_a_precision_that_contradicts_the_policy_is_refused() -> None:
    both = {"policy.type": "pi0", "accelerate.mixed_precision": "bf16"}
    assert "--policy.dtype=bfloat16" in words(both)
    with pytest.raises(ConfigError, match=r"policy\.dtype is float32"):
        words({**both, "policy.dtype": "float32"})


def test_the_example_file_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lerobot", "--config", str(EXAMPLE), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("lerobot-train \\\n")
    assert "--policy.optimizer_lr=5.0e-05" in said


def test_lerobots_own_commands_work_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--dataset.repo_id=lerobot/pusht --policy.type=diffusion --env.type=pusht"
    assert cli.main(["lerobot", *line.split(), "--dry-run"]) == 0
    said = capsys.readouterr().out.replace(" \\\n    ", " ")
    assert said.startswith(f"lerobot-train {line} ")


def test_variables_override_the_file_and_words_override_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(
        "dataset: {repo_id: me/data}\npolicy: {type: act}\ntraining: {steps: 5}\n"
        "accelerate: {num_processes: 2}\n"
    )
    monkeypatch.setenv("LEROBOT_TRAIN_CONFIG", str(file))
    monkeypatch.setenv("LEROBOT_ACCELERATE_NUM_PROCESSES", "3")
    assert cli.main(["lerobot", "--steps=7", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "--num_processes=3" in said
    assert "--steps=7" in said


def test_nothing_to_train_names_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lerobot"]) == ExitCode.CONFIG
    assert "train.remote.example.yaml" in capsys.readouterr().err


def test_a_table_of_options_is_there_for_the_pinned_release() -> None:
    from crane_x7_vla_rl.lerobot_env import VERSION

    assert options.table()["lerobot"] == VERSION
    assert {"act", "diffusion", "smolvla", "pi0", "pi05"} <= {*options.policy_types()}
    assert json.loads(options.FILE.read_text())["top"]["steps"] == "int"


def test_weights_that_are_nowhere_are_refused_before_lerobot_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_rig import FPS, episode

    from crane_x7_vla_rl.data.lerobot import LeRobotWriter
    from crane_x7_vla_rl.training.lerobot import start

    with LeRobotWriter(tmp_path / "data", FPS, (48, 32)) as writer:
        writer.add(episode(0))
    monkeypatch.setattr(start, "interpreter", lambda: Path("python"))
    words = [f"--dataset.root={tmp_path / 'data'}", f"--output_dir={tmp_path / 'run'}"]
    assert cli.main(["lerobot", *words, f"--policy.path={tmp_path / 'none'}"]) == 5
    assert "policy.path: " in capsys.readouterr().err


def test_a_missing_environment_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEROBOT_VENV", str(tmp_path))
    words = ["--dataset.repo_id=me/data", "--policy.type=act"]
    assert cli.main(["lerobot", *words]) == ExitCode.USAGE
    assert "run scripts/setup-lerobot" in capsys.readouterr().err


def test_recordings_that_lerobot_cannot_read_are_converted_first(tmp_path: Path) -> None:
    from tfrecord_rig import logger_steps, write_log

    from crane_x7_vla_rl.data.convert import convert
    from crane_x7_vla_rl.training.lerobot import dataset

    logs, older, run = tmp_path / "logs", tmp_path / "older", tmp_path / "run"
    for number in range(2):
        write_log(logs, number, logger_steps(seed=number))
    convert(logs, older, "", resume=False, form="lerobot-v2.1")
    for source in (logs, older):
        found = dataset.prepare({"dataset.repo_id": str(source)}, run)
        assert found.root == tmp_path / "run-data"
        assert found.info["codebase_version"] == "v3.0"
        assert found.frames == 12
        again = dataset.prepare({"dataset.root": str(found.root)}, run)
        assert again.options == {
            "dataset.repo_id": "local/run-data", "dataset.root": str(found.root)
        }  # fmt: skip


def test_policy_io_says_what_the_data_set_says(caplog: pytest.LogCaptureFixture) -> None:
    import yaml

    from crane_x7_remote.policy_server import policy_io_file
    from crane_x7_vla_rl.robot import JOINT_NAMES
    from crane_x7_vla_rl.training.lerobot import describe

    joints = {"dtype": "float32", "shape": [8], "names": list(JOINT_NAMES)}
    interleaved = [f"{name}.{what}" for name in JOINT_NAMES for what in ("pos", "vel")]
    info = {
        "fps": 30, "robot_type": "crane_x7",
        "features": {
            "observation.state": {"shape": [16], "names": interleaved}, "action": joints,
            "observation.images.top": {"shape": [64, 96, 3]},
        },
    }  # fmt: skip
    text = describe.policy_io(info, {"chunk_size": 20}, "deg")
    assert text is not None
    content = yaml.safe_load(text)
    read = policy_io_file.from_map(content, "test")
    assert read.action.columns.places == tuple(range(8))
    assert read.state[0].columns.places == tuple(n for k in range(8) for n in (k, None))
    assert (read.action.chunk_steps, read.action.columns.unit) == (20, "deg")
    assert read.action.period_s == pytest.approx(1 / 30, abs=1e-6)
    assert read.images[0].form.size == (96, 64)
    info["features"]["action"] = {"shape": [6], "names": list("abcdef")}  # type: ignore[index]
    assert describe.policy_io(info, {}) is None
    assert "set POLICY_IO" in caplog.text
