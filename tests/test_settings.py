"""Settings: one place, all mistakes at once, flags over variables, secrets never shown."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from crane_x7_remote import settings
from crane_x7_remote.errors import ExitCode, SettingsError

ROOT = Path(__file__).parent.parent


def test_defaults_are_those_of_the_published_tables() -> None:
    loaded = settings.load(environ={})
    assert loaded.rosbridge_host == "crane-x7-local"
    assert loaded.rosbridge_port == 9090
    assert loaded.peer_wait_timeout == 300
    assert loaded.vla_task_instruction == "pick up the object"
    assert loaded.vla_device == "cuda"
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


def test_documentation_lists_exactly_the_settings() -> None:
    """To renew: python -c 'from crane_x7_remote import settings as s; print(s.as_markdown(), end="")' > docs/settings.md"""  # noqa: E501
    assert (ROOT / "docs/settings.md").read_text() == settings.as_markdown()


def test_the_environment_is_read_in_one_place_only() -> None:
    root = Path(settings.__file__).parent.parent
    sources = [*root.glob("crane_x7_remote/**/*.py"), *root.glob("crane_x7_vla_rl/**/*.py")]
    readers = {
        path.name
        for path in sources
        if re.search(r"os\.(environ|getenv)|from os import .*(environ|getenv)", path.read_text())
    }
    assert len(sources) > 50
    assert readers == {"settings.py"}
