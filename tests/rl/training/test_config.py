"""A run is configured by file, flags and overrides, and nothing that is misspelt is swallowed."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.sft import command as sft_command
from crane_x7_vla_rl.training.sft.config import SftConfig

SEED_FLAGS = """
    --data-root data.root /workspace/data/tfrecord_logs
    --instruction data.instruction Pick and place the object
    --image-size data.image_size 224x224
    --batch-size training.batch_size 16
    --num-epochs training.num_epochs 100
    --learning-rate training.learning_rate 0.0005
    --grad-accumulation-steps training.grad_accumulation_steps 1
    --warmup-ratio training.warmup_ratio 0.1
    --gradient-checkpointing training.gradient_checkpointing False
    --use-lora lora.enabled True
    --lora-rank lora.rank 32
    --lora-alpha lora.alpha 64
    --lora-dropout lora.dropout 0.1
    --save-steps output.save_steps 500
    --use-wandb logging.use_wandb False
    --wandb-project logging.wandb_project None
    --wandb-entity logging.wandb_entity None
    --experiment-name output.experiment_name None
    --output-dir output.dir None
"""


def read(*argv: str) -> SftConfig:
    parser = argparse.ArgumentParser()
    sft_command.add_arguments(parser)
    return sft_command.read(parser.parse_args(argv))[0]


def written(folder: Path, text: str) -> str:
    path = folder / "a.yaml"
    path.write_text(text)
    return str(path)


def test_the_shipped_policy_continues_with_its_own_statistics_and_image_size() -> None:
    config = read("--config", str(ROOT / "configs/sft_small.yaml"), "--data-root", "data/mine")
    assert config.policy.statistics is not None
    shipped = ROOT / str(config.policy.model)
    stored = json.loads((shipped / "dataset_statistics.json").read_text())
    assert json.loads((ROOT / config.policy.statistics).read_text()) == stored
    sides = json.loads((shipped / "config.json").read_text())["image_sizes"]
    assert config.data.image_size == "x".join(str(side) for side in sides[:1] * 2)


@pytest.mark.parametrize("line", SEED_FLAGS.strip().splitlines())
def test_flags_of_the_former_trainer_keep_their_names_and_defaults(line: str) -> None:
    flag, key, default = line.strip().split(" ", 2)
    known = {leaf.key: leaf for leaf in leaves(SftConfig)}
    assert known[key].flag == flag
    assert str(loader.flat(read("--backend", "openvla"))[key]) == default
    assert known[key].text


def test_names_of_experiment_and_output_follow_the_backend() -> None:
    config = read("--backend", "openvla")
    assert config.experiment_name == "crane_x7_openvla"
    assert str(config.output_dir) == "outputs/crane_x7_openvla"
    named = read("--backend", "openvla", "--experiment-name", "mine")
    assert str(named.output_dir) == "outputs/mine"


def test_overrides_count_more_than_flags_and_flags_more_than_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "backend: openvla\ntraining: {batch_size: 3, num_epochs: 7, learning_rate: 5e-5}\n",
    )
    config = read(
        "--config", file, "--num-epochs", "8", "--batch-size", "4",
        "--override", "training.batch_size=5",
    )  # fmt: skip
    training = config.training
    assert (training.batch_size, training.num_epochs, training.learning_rate) == (5, 8, 5e-5)
    assert training.warmup_ratio == 0.1


def test_5e_5_is_a_number_wherever_it_stands(tmp_path: Path) -> None:
    file = written(tmp_path, "backend: openvla\ntraining:\n  learning_rate: 5e-5\n")
    assert read("--config", file).training.learning_rate == 5e-5
    assert read("--config", file, "--learning-rate", "1e-4").training.learning_rate == 1e-4
    override = "training.learning_rate=2e-4"
    assert read("--config", file, "--override", override).training.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {learnig_rate: 1}", "learnig_rate is unknown; did you mean learning_rate?"),
        ("batch_size: 4", r"batch_size is unknown; did you mean training\.batch_size\?"),
        ("training: {batch_size: many}", "training.batch_size is 'many', expected a whole number"),
        ("training: {batch_size: 1.5}", "training.batch_size is 1.5, expected a whole number"),
        ("training: {batch_size: true}", "training.batch_size is true, expected a whole number"),
        ("training: {batch_size: 0}", "training.batch_size is 0, expected 1 or more"),
        ("training: {learning_rate: fast}", "training.learning_rate is 'fast', expected a number"),
        ("training: {gradient_checkpointing: 1}", "expected true or false"),
        ("training: {precision: fp8}", "expected auto or bf16 or fp32"),
        ("data: {root: 5}", "data.root is 5, expected text"),
        ("data: {image_size: large}", "expected WxH as in 224x224"),
        ("data: {image_size: '0x224'}", "data.image_size is '0x224', expected WxH as in 224x224"),
        ("lora: {dropout: 1}", "lora.dropout is 1.0"),
        ("publish: {push_to_hub: end}", "--push-to-hub needs --hub-model-id"),
        ("training: 5", "training is 5, expected keys and values"),
        ("- 5", "holds a list, expected keys and values"),
        ("a: [", "is not YAML"),
    ],
)  # fmt: skip
def test_what_is_misspelt_or_senseless_is_refused_with_its_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read("--backend", "openvla", "--config", written(tmp_path, text))


def test_a_section_whose_lines_are_all_comments_sets_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "backend: openvla\ntraining:\n#  batch_size: 4\n")
    assert read("--config", file) == read("--backend", "openvla")


def test_the_file_with_the_error_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "lora: {rnk: 4}")
    with pytest.raises(ConfigError) as caught:
        read("--backend", "openvla", "--config", file)
    assert str(caught.value).startswith(f"{file}: lora.rnk is unknown; did you mean rank?")
    with pytest.raises(ConfigError, match=r"--override: lora\.rnk is unknown"):
        read("--backend", "openvla", "--override", "lora.rnk=4")
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        read("--backend", "openvla", "--override", "lora.rank")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora:\n  rank: 4\ntraining: {batch_size: 3}\nlora:\n  rank: 8", "lora twice.* 1 and 4;"),
        ("training:\n  batch_size: 3\n  batch_size: 4", r"training\.batch_size twice.* 2 and 3;"),
        ("training: {batch_size: 3}\ntraining.batch_size: 4", r"batch_size twice.* 1 and 2;"),
        ("training: {batch_size: 3, 'batch_size': 4}", r"batch_size twice.* 1 and 1;"),
    ],
)  # fmt: skip
def test_a_section_or_key_given_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, said: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        read("--backend", "openvla", "--config", file)
    assert str(caught.value).startswith(f"{file}: has ")


def test_an_override_given_twice_is_refused() -> None:
    twice = ("--override", "lora.rank=4", "--override", "lora.rank = 8")
    with pytest.raises(ConfigError, match=r"--override lora\.rank = 8: lora\.rank is given twice"):
        read("--backend", "openvla", *twice)
    with pytest.raises(ConfigError, match=r"the value has a twice, on lines 1 and 1"):
        read("--backend", "openvla", "--override", "lora={a: 1, a: 2}")


def test_one_key_by_section_and_by_dots_is_refused_in_overrides_and_through_aliases(
    tmp_path: Path,
) -> None:
    twice = ("--override", "lora.rank=4", "--override", "lora={rank: 8}")
    with pytest.raises(ConfigError, match=r"--override lora=.*: lora\.rank is given twice"):
        read("--backend", "openvla", *twice)
    for text in ("x: &x {rank: 4}\nlora: *x", "x: &x {rank: 4}\nlora: {<<: *x}"):
        file = written(tmp_path, f"{text}\nlora.rank: 8")
        with pytest.raises(ConfigError, match=r"lora\.rank is given twice") as caught:
            read("--backend", "openvla", "--config", file)
        assert str(caught.value).startswith(f"{file}: ")


def test_an_override_may_be_a_section() -> None:
    assert read("--backend", "openvla", "--override", "lora={rank: 8}").lora.rank == 8


def test_a_merged_key_may_be_given_again_and_an_alias_may_stand_anywhere(tmp_path: Path) -> None:
    file = written(tmp_path, "training: &t {batch_size: 3}\nlora: {rank: 4}\n<<: {lora: {rank: 8}}")
    assert read("--backend", "openvla", "--config", file).lora.rank == 4


def test_the_backend_must_be_said() -> None:
    with pytest.raises(ConfigError, match="backend is not set; give --backend"):
        read()


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    config = read(
        "--backend", "openvla", "--no-use-lora", "--learning-rate", "3e-5", "--keep", "2",
        "--push-to-hub", "--hub-model-id", "acme/tiny",
    )  # fmt: skip
    assert config.publish.push_to_hub == "end"
    path = tmp_path / "train_config.yaml"
    path.write_text(loader.to_yaml(config))
    assert loader.build(SftConfig, [loader.read_file(path)]) == config


def test_differences_are_listed_by_key() -> None:
    one = read("--backend", "openvla")
    other = read("--backend", "openvla", "--batch-size", "4", "--no-use-lora")
    assert loader.differences(one, other) == {
        "training.batch_size": (16, 4),
        "lora.enabled": (True, False),
    }


def test_openpi_trains_pi0_by_lerobot_with_the_same_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from crane_x7_vla_rl.training.lerobot import start

    found = []
    monkeypatch.setattr(start, "go", lambda *request: found.append(request) or 0)
    line = "--data-root me/data --experiment-name n --batch-size 4 --learning-rate 3e-4"
    assert cli.main(["sft", "--backend", "openpi", *line.split(), "--num-epochs", "7"]) == 0
    ((request, wish),) = found
    options = request.options
    assert options["policy.type"] == "pi0"
    assert (options["batch_size"], options["policy.optimizer_lr"]) == (4, 3e-4)
    assert (options["dataset.repo_id"], request.own.job.name) == ("me/data", "n")
    assert wish.epochs == 7
    assert cli.main(["sft", "--backend", "lerobot"]) == ExitCode.CONFIG
    assert "needs --policy-type" in capsys.readouterr().err
    smoothed = ["--policy-type", "act", "--bin-smoothing", "6"]
    assert cli.main(["sft", "--backend", "lerobot", *smoothed]) == ExitCode.CONFIG
    assert "--bin-smoothing: LeRobot has nothing like it" in capsys.readouterr().err


def test_a_misspelt_flag_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["sft", "--backend", "openvla", "--batchsize", "4"])
    assert caught.value.code == ExitCode.USAGE
    assert "--batchsize is unknown; did you mean --batch-size?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), ("sft",), ("merge",)])
def test_help_answers_at_once_and_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from crane_x7_vla_rl.training.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'mani_skill', 'transformers', 'cv2', 'wandb'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    # Of the processor: how long it took on the clock says how busy the machine was.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2


def test_all_wrong_values_and_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "backend: openvla\ntraining: {batch_sise: 3}\n")
    with pytest.raises(ConfigError) as caught:
        read("--config", file, "--lora-rank", "0", "--override", "training.learning_rate=fast")
    said = str(caught.value)
    assert said.startswith("3 problems in the configuration:")
    assert "training.batch_sise is unknown; did you mean batch_size?" in said
    assert "--lora-rank: lora.rank is 0, expected 1 or more" in said
    assert "--override: training.learning_rate is 'fast', expected a number" in said


def test_checks_across_several_sections_are_named_at_once() -> None:
    values = {"lora.dropout": 0.5, "env.colours": "purple", "ppo.epochs": "many"}
    layer = loader.Layer("a.yaml", values)
    with pytest.raises(ConfigError) as caught:
        loader.build(RlConfig, [layer])
    assert "lora.dropout is 0.5, expected 0" in str(caught.value)
    assert "env.colours has" in str(caught.value)
    assert "ppo.epochs is 'many'" in str(caught.value)
