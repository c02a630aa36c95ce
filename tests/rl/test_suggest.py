"""An unknown name is answered with the nearest that exist, and with nothing where none is near."""

from __future__ import annotations

import re

import pytest

from crane_x7_vla_rl import old_names
from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.suggest import did_you_mean, nearest

KNOWN = ["learning_rate", "Lift-CRANE-X7", "gpu", "cpu"]


def test_the_nearest_name_is_found_whatever_its_capitals() -> None:
    assert nearest("learnig_rate", KNOWN) == ["learning_rate"]
    assert nearest("lift-cranex7", KNOWN) == ["Lift-CRANE-X7"]


def test_several_names_may_be_near_and_the_best_is_first() -> None:
    assert did_you_mean("gpuu", KNOWN, cutoff=0.5, most=3) == "; did you mean gpu or cpu?"


def test_nothing_is_said_where_no_name_is_near() -> None:
    assert did_you_mean("xyz", KNOWN) == ""


@pytest.mark.parametrize(
    ("command", "override", "said"),
    [
        ("sft", "training.lr=5e-5", "training.lr is unknown; it is now training.learning_rate"),
        ("train", "training.lr=5e-5", "training.lr is unknown; it is now ppo.learning_rate"),
        ("sft", "wandb.enabled=true", "wandb.enabled is unknown; it is now logging.use_wandb"),
        ("sft", "policy.n_action_steps=80", "is unknown; it is now policy.chunk_steps"),
        ("train", "offline.steps=9", "offline.steps is unknown; it is now training.num_updates"),
        ("sft", "training.zz=1", "training.zz is unknown; known: backend"),
    ],
)
def test_a_key_of_older_documents_is_answered_with_todays(
    command: str, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from crane_x7_vla_rl.training import cli

    words = ["--backend", "openvla"] if command == "sft" else []
    assert cli.main([command, *words, "--override", override]) == 3
    assert said in capsys.readouterr().err


def test_train_with_the_backend_of_fine_tuning_names_sft(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from crane_x7_vla_rl.training import cli

    with pytest.raises(SystemExit):
        cli.main(["train", "--backend", "openvla", "--data-root", "x"])
    assert "type: crane-x7-vla-rl sft --backend openvla" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sft", "--backend", "openvla", "--lr", "1e-4"])
    assert "--lr is unknown; it is now --learning-rate (sft)" in capsys.readouterr().err


def test_the_flag_that_resumed_elsewhere_names_todays(capsys: pytest.CaptureFixture[str]) -> None:
    from crane_x7_vla_rl.training import cli

    for command in (("sft", "--backend", "openvla"), ("train",)):
        assert cli.main([*command, "--resume=true"]) == 3
        assert "type: --resume auto" in capsys.readouterr().err


def test_a_variable_of_older_documents_is_a_warning_without_its_value(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crane_x7_remote import cli as remote
    from crane_x7_vla_rl.training import cli

    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_secretOfMine")
    monkeypatch.setenv("EVAL_DEVICE", "")
    for main, words in (
        (cli.main, ["train", "--resume", "nowhere"]),
        (remote.main, ["infer", "--policy", "color-servo", "--camera-pose", "/nowhere.yaml"]),
    ):
        caplog.clear()
        assert main(words) == 3
        said = caplog.text
        assert "the variable HUGGINGFACE_HUB_TOKEN is not read; it is now HF_TOKEN" in said
        assert "hf_secretOfMine" not in said
        assert "EVAL_DEVICE" not in said


def test_every_old_flag_and_variable_has_a_flag_of_today() -> None:
    from crane_x7_vla_rl import command_line
    from crane_x7_vla_rl.training import cli

    known, lerobots = (
        {
            flag
            for name in names
            for action in command_line._parser(cli.PROGRAM, name)[0]._subparsers._group_actions  # type: ignore[union-attr]
            for flag in action.choices[name]._option_string_actions  # type: ignore[union-attr, call-overload, index]
        }
        for names in (("sft", "train", "evaluate"), ("lerobot",))
    )
    texts = [*old_names.FLAGS.values(), *old_names.VARIABLES.values()]
    said = {word for text in texts for word in re.findall(r"--[a-z][\w-]+", text)}
    assert said - {"--nproc-per-node", "--override"} <= known | lerobots
    assert not known & old_names.FLAGS.keys()


def test_every_old_key_has_a_key_of_today() -> None:
    from crane_x7_vla_rl.training.rl.config import RlConfig
    from crane_x7_vla_rl.training.sft.config import SftConfig

    known = {leaf.key for cls in (SftConfig, RlConfig) for leaf in leaves(cls)}
    assert {name for names in old_names.KEYS.values() for name in names} <= known
    assert not known & old_names.KEYS.keys()
