"""Settings: one place, all mistakes at once, flags over variables, secrets never shown."""

from __future__ import annotations

import argparse
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from places import ROOT

from crane_x7_remote import settings
from crane_x7_remote.boot import role
from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.files import Files
from crane_x7_remote.boot.sshd import session_environment
from crane_x7_remote.errors import ExitCode, SettingsError
from crane_x7_vla_rl.fields import leaves
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training import settings as training_settings
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.errors import ExitCode as TrainingExit
from crane_x7_vla_rl.training.rl import command as rl_command
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.sft import command as sft_command


def test_defaults_are_those_of_the_published_tables() -> None:
    loaded = settings.load(environ={})
    assert loaded.rosbridge_host == "crane-x7-local"
    assert loaded.rosbridge_port == 9090
    assert loaded.peer_wait_timeout == 300
    assert loaded.vla_task_instruction == "pick up the object"
    assert loaded.vla_device == "auto"
    assert loaded.vla_inference_rate == 10.0
    assert loaded.vla_unnorm_key == "crane_x7"
    assert loaded.vla_model_path is None


def test_all_mistakes_are_reported_at_once() -> None:
    environ = {
        "ROSBRIDGE_PORT": "none",
        "VLA_INFERENCE_RATE": "nan",
        "VLA_INFERENCE_RTE": "5",
        "VLA_TASK_INSTRUCTION": " ",
    }
    with pytest.raises(SettingsError) as caught:
        settings.load(environ=environ)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.SETTINGS
    assert "ROSBRIDGE_PORT='none'" in message
    assert "VLA_INFERENCE_RATE='nan'" in message
    assert "VLA_INFERENCE_RTE is unknown; did you mean VLA_INFERENCE_RATE?" in message
    assert "VLA_TASK_INSTRUCTION=' ': is blank" in message


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "1e9", "ten"])
def test_impossible_rate_is_refused(rate: str) -> None:
    with pytest.raises(SettingsError, match="VLA_INFERENCE_RATE"):
        settings.load(environ={"VLA_INFERENCE_RATE": rate})


@pytest.mark.parametrize(
    ("words", "environ", "wanted"),
    [
        ([], {}, None),
        ([], {"VLA_CENTER_CROP": ""}, None),
        ([], {"VLA_CENTER_CROP": "true"}, True),
        (["--no-vla-center-crop"], {"VLA_CENTER_CROP": "true"}, False),
        (["--vla-center-crop"], {}, True),
    ],
)
def test_a_switch_can_be_on_off_or_unset(
    words: list[str], environ: dict[str, str], wanted: bool | None
) -> None:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser, ["vla_center_crop"])
    loaded = settings.load(vars(parser.parse_args(words)), environ)
    assert loaded.vla_center_crop is wanted


def test_flag_wins_over_variable_and_variable_over_default() -> None:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser, ["rosbridge_host", "rosbridge_port", "dry_run"])
    args = parser.parse_args(["--rosbridge-host", "flag", "--dry-run"])
    flags = vars(args)
    loaded = settings.load(flags, {"ROSBRIDGE_HOST": "variable", "ROSBRIDGE_PORT": "1234"})
    assert loaded.rosbridge_host == "flag"
    assert loaded.rosbridge_port == 1234
    assert loaded.dry_run is True


@pytest.mark.parametrize("name", settings.OF_CHECKPOINTS)
def test_an_empty_number_that_a_checkpoint_may_decide_is_unset(name: str) -> None:
    loaded = settings.load(environ={name.upper(): ""})
    assert name not in loaded.model_fields_set
    assert getattr(loaded, name) == getattr(settings.load(environ={}), name)


def test_empty_optional_variable_means_unset() -> None:
    assert settings.load(environ={"VLA_MODEL_PATH": "", "HF_TOKEN": ""}).hf_token is None


def test_secret_is_never_printed() -> None:
    loaded = settings.load(environ={"HF_TOKEN": "hf_verysecret"})
    assert "hf_verysecret" not in repr(loaded)
    assert loaded.hf_token is not None
    assert loaded.hf_token.get_secret_value() == "hf_verysecret"


def test_settings_are_frozen() -> None:
    loaded = settings.load(environ={})
    with pytest.raises(ValueError, match="frozen"):
        loaded.rosbridge_port = 1  # type: ignore[misc]


def test_the_page_lists_every_setting_and_the_commands_that_take_it_as_a_flag() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "render-settings"))
    page = (ROOT / "docs/settings.md").read_text()
    assert page == script["render"](), "run scripts/render-settings"
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert rows.keys() == {name.upper() for name in settings.Settings.model_fields}
    assert "`--rosbridge-host` of infer, " in rows["ROSBRIDGE_HOST"]
    assert "`--backend` of train" in rows["LIFT_BACKEND"]
    assert "`--output-root` of sft" in rows["OUTPUT_ROOT"]
    for name in settings.OF_CHECKPOINTS:
        assert re.search(r"[Uu]nset: .*(checkpoint|model)", rows[name.upper()]), name
    assert rows["TS_AUTHKEY"].endswith("| – |")


def test_training_and_simulation_are_set_as_in_the_published_tables() -> None:
    loaded = settings.load(environ={})
    assert (loaded.lift_simulator, loaded.lift_backend) == ("maniskill", "gpu")
    assert loaded.lift_render == "auto"
    given = {"LIFT_SIMULATOR": "genesis", "LIFT_BACKEND": "cpu", "LIFT_RENDER": "gpu"}
    loaded = settings.load(environ=given)
    assert (loaded.lift_simulator, loaded.lift_backend) == ("genesis", "cpu")
    assert loaded.lift_render == "gpu"
    assert settings.load(environ={"LIFT_BACKEND": ""}).lift_backend == "gpu"
    with pytest.raises(SettingsError) as caught:
        settings.load(environ={"LIFT_SIMULATOR": "mujoco", "LIFT_BACKND": "cpu"})
    assert "LIFT_SIMULATOR='mujoco': expected maniskill or genesis" in str(caught.value)
    assert "LIFT_BACKND is unknown; did you mean LIFT_BACKEND?" in str(caught.value)


def test_what_training_reads_again_are_settings_with_the_same_choices() -> None:
    options = {leaf.key: leaf for leaf in leaves(RlConfig)}
    for variable, key in training_settings.VARIABLES.items():
        field, option = settings.Settings.model_fields[variable.lower()], options[key]
        if field.default is not None:
            assert field.default == option.default
            assert set(get_args(field.annotation)) == set(get_args(option.kind.base))


def test_variables_are_above_defaults_and_below_files_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "rl.yaml"
    environ = {"LIFT_BACKEND": "cpu", "LIFT_SIMULATOR": "genesis", "VLA_MODEL_PATH": "owner/name"}
    given = training_settings.layers(environ | {"LIFT_RENDER": "gpu"})
    config = loader.build(RlConfig, given)
    assert config.env.world(10).render == "gpu"
    assert (config.env.backend, config.env.simulator) == ("cpu", "genesis")
    assert config.start.model == "owner/name"
    file.write_text("env: {backend: gpu}\nstart: {sft_checkpoint: here}\n")
    config = loader.build(RlConfig, [*given, loader.read_file(file)])
    assert (config.env.backend, config.env.simulator) == ("gpu", "genesis")
    assert config.start.model == "here"
    assert training_settings.layers({"LIFT_BACKEND": "", "VLA_DEVICE": "cpu"}) == []
    with pytest.raises(ConfigError, match=r"LIFT_BACKEND: env\.backend is 'cuda', expected cpu or"):
        loader.build(RlConfig, training_settings.layers({"LIFT_BACKEND": "cuda"}))


def test_train_and_its_templates_heed_the_variables_they_are_started_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only below `boot`: a provider's start script runs the command itself."""
    for variable, value in (("LIFT_BACKEND", "cpu"), ("VLA_MODEL_PATH", "owner/name")):
        monkeypatch.setenv(variable, value)
    parser = argparse.ArgumentParser()
    rl_command.add_arguments(parser)
    config, _ = rl_command.read(parser.parse_args([]))
    assert (config.env.backend, config.start.model) == ("cpu", "owner/name")
    config, _ = rl_command.read(parser.parse_args(["--backend", "gpu", "--pretrained", "mine"]))
    assert (config.env.backend, config.start.model) == ("gpu", "mine")
    assert cli.main(["config", "--template", "full"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert (written["env"]["backend"], written["start"]["pretrained"]) == ("cpu", "owner/name")
    monkeypatch.setenv("LIFT_BACKEND", "cuda")
    assert cli.main(["train"]) == TrainingExit.CONFIG
    assert "LIFT_BACKEND: env.backend is 'cuda'" in capsys.readouterr().err


def test_one_variable_moves_what_every_command_writes_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def parsed(add_arguments: Callable[[Any], None], *argv: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return parser.parse_args(argv)

    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    rl, _ = rl_command.read(parsed(rl_command.add_arguments))
    sft, _ = sft_command.read(parsed(sft_command.add_arguments, "--backend", "openvla"))
    assert (rl.output_dir.parent, sft.output_dir.parent) == (tmp_path, tmp_path)
    assert training_settings.output_root() == tmp_path
    assert settings.output_root() == tmp_path
    monkeypatch.setenv("OUTPUT_ROOT", "null")
    assert training_settings.output_root() == Path("outputs")
    assert settings.output_root() == Path("outputs")


def test_a_session_and_a_role_are_handed_what_training_reads() -> None:
    """Both get the environment of the container; the tailnet's key alone is kept back."""
    given = dict.fromkeys(training_settings.VARIABLES, "cpu") | {"TS_AUTHKEY": "secret"}
    given |= {"WANDB_DIR": "/outputs", "HF_TOKEN": "hf"}
    loaded = settings.load(environ={"TS_AUTHKEY": "secret"})
    files = Files(Path("/run"), Path("/state"), Path("/ssh"), Path("/ts.sock"))
    account = Account("vla", 1000, 1000, Path("/home/vla"), "/bin/bash")
    seen = role.environment(given, loaded, files, account)
    session, left_out = session_environment(seen)
    assert given.items() - {("TS_AUTHKEY", "secret")} <= session.items() & seen.items()
    assert not left_out


READERS = {
    "crane_x7_remote/settings.py",
    "crane_x7_vla_rl/training/settings.py",
    "crane_x7_vla_rl/training/lerobot/save_whole.py",
}
"""The second one: training may begin where no command of the first one's package ran before. The
third one runs alone, in LeRobot's environment."""


def test_the_environment_is_read_in_settings_only() -> None:
    root = Path(settings.__file__).parent.parent
    sources = [*root.glob("crane_x7_remote/**/*.py"), *root.glob("crane_x7_vla_rl/**/*.py")]
    readers = {
        path.relative_to(root).as_posix()
        for path in sources
        if re.search(r"os\.(environ|getenv)|from os import .*(environ|getenv)", path.read_text())
    }
    assert len(sources) > 50
    assert readers == READERS
