"""What platforms put into variables: secrets, words for "none", quotes and byte order marks."""

from __future__ import annotations

import pytest

from crane_x7_remote import settings
from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl import variables
from crane_x7_vla_rl.training import settings as training_settings

TOKEN = "hf_AbCdEfGhIjKlMnOp"
ENDS = ["{}\n", "{}\r\n", " {}", "\t{} \n", "\ufeff{}", "{}\u200b", '"{}"', "'{}'\n", "{}\xa0"]


@pytest.mark.parametrize("written", ENDS)
def test_a_secret_is_stripped_where_it_enters(written: str) -> None:
    came = written.format(TOKEN)
    assert variables.secret(came) == TOKEN
    loaded = settings.load(environ={"HF_TOKEN": came, "WANDB_API_KEY": came, "TS_AUTHKEY": came})
    for one in (loaded.hf_token, loaded.wandb_api_key, loaded.ts_authkey):
        assert one is not None
        assert one.get_secret_value() == TOKEN
    by_flag = settings.load({"hf_token": came}, {}).hf_token
    assert by_flag is not None
    assert by_flag.get_secret_value() == TOKEN


@pytest.mark.parametrize("inside", ["\n", " ", "\t", "\x00", "\x1b", "\u202e", "\xa0", "é"])
@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"])
def test_a_secret_with_something_else_inside_is_refused_by_name_alone(
    name: str, inside: str
) -> None:
    came = f"hf_First{inside}Second"
    with pytest.raises(SettingsError) as caught:
        settings.load(environ={name: came})
    text = str(caught.value)
    assert f"{name}=***: holds" in text
    assert "character 9 of 15" in text
    assert "First" not in text
    assert "Second" not in text
    assert len(text.splitlines()) == 2, "one line of the list"


def test_a_file_with_the_tailnets_key_may_lie_in_a_folder_with_blanks() -> None:
    key = settings.load(environ={"TS_AUTHKEY": "file:/my keys/鍵\n"}).ts_authkey
    assert key is not None
    assert key.get_secret_value() == "file:/my keys/鍵"


UNSET = ["null", "None", "NULL", "undefined", "nil", '""', "''", " ", '"null"', "<no value>"]


@pytest.mark.parametrize("word", UNSET)
@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "TS_AUTHKEY", "PUBLIC_KEY", "SSH_PUBLIC_KEY", "TS_HOSTNAME",
     "ROSBRIDGE_PROXY", "ROSBRIDGE_HOST", "VLA_MODEL_PATH", "VLA_POLICY", "HF_HOME", "WANDB_DIR",
     "SSH_LISTEN_ADDRESS", "LIFT_BACKEND"],
)  # fmt: skip
def test_a_word_for_none_means_unset(name: str, word: str) -> None:
    field = name.lower()
    assert getattr(settings.load(environ={name: word}), field) == (
        settings.Settings.model_fields[field].default
    )


def test_where_the_word_may_be_meant_it_is_left_alone() -> None:
    loaded = settings.load(environ={"VLA_TASK_INSTRUCTION": "none", "VLA_UNNORM_KEY": "null"})
    assert (loaded.vla_task_instruction, loaded.vla_unnorm_key) == ("none", "null")
    with pytest.raises(SettingsError, match="MAX_JUMP='none'"):
        settings.load(environ={"MAX_JUMP": "none"})


def test_an_empty_state_folder_keeps_its_own_meaning() -> None:
    assert settings.load(environ={"TS_STATE_DIR": ""}).ts_state_dir is None
    assert settings.load(environ={"TS_STATE_DIR": "null"}).ts_state_dir == "/var/lib/tailscale"


def test_the_old_name_counts_where_the_new_one_is_null() -> None:
    key = settings.load(environ={"TS_AUTHKEY": "null", "TS_AUTH_KEY": "tskey-abc\n"}).ts_authkey
    assert key is not None
    assert key.get_secret_value() == "tskey-abc"


DIRTY = {
    "HF_TOKEN": f"{TOKEN}\n",
    "HUGGING_FACE_HUB_TOKEN": f'"{TOKEN}"',
    "WANDB_API_KEY": "null",
    "HF_HOME": "undefined",
    "WANDB_DIR": '"/outputs"',
    "MY_OWN": " null ",
    "VLA_TASK_INSTRUCTION": "none ",
}


def test_children_and_libraries_are_handed_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DIRTY.items():
        monkeypatch.setenv(name, value)
    seen = settings.inherited()
    assert seen["HF_TOKEN"] == seen["HUGGING_FACE_HUB_TOKEN"] == TOKEN
    assert not {"WANDB_API_KEY", "HF_HOME"} & seen.keys()
    assert seen["WANDB_DIR"] == "/outputs"
    assert (seen["MY_OWN"], seen["VLA_TASK_INSTRUCTION"]) == (" null ", "none ")


@pytest.mark.parametrize(
    "tidy", [settings.tidy_environment, training_settings.tidy_environment], ids=["remote", "rl"]
)
def test_a_command_tidies_its_own_environment(
    tidy: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for name, value in DIRTY.items():
        monkeypatch.setenv(name, value)
    assert callable(tidy)
    tidy()
    assert os.environ["HF_TOKEN"] == os.environ["HUGGING_FACE_HUB_TOKEN"] == TOKEN
    assert not {"WANDB_API_KEY", "HF_HOME"} & os.environ.keys()
    assert os.environ["MY_OWN"] == " null "


def test_training_takes_null_for_unset_too() -> None:
    assert training_settings.layers({"VLA_MODEL_PATH": "null", "LIFT_BACKEND": '""'}) == []
    (layer,) = training_settings.layers({"VLA_MODEL_PATH": " owner/name\n"})
    assert list(layer.values.values()) == ["owner/name"]


@pytest.mark.parametrize("came", ["lift\x1b[2Jit", "a\u202eb", "lift\x00it", "x" * 1025])
def test_an_instruction_of_the_environment_goes_through_the_same_check(came: str) -> None:
    with pytest.raises(SettingsError, match="VLA_TASK_INSTRUCTION=") as caught:
        settings.load(environ={"VLA_TASK_INSTRUCTION": came})
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_instruction_of_the_environment_becomes_one_line() -> None:
    loaded = settings.load(environ={"VLA_TASK_INSTRUCTION": " lift it\nOut: 1 \n"})
    assert loaded.vla_task_instruction == "lift it Out: 1"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "outputs"),
        ({"OUTPUT_ROOT": ""}, "outputs"),
        ({"OUTPUT_ROOT": "null"}, "outputs"),
        ({"OUTPUT_ROOT": " '/mnt/results' "}, "/mnt/results"),
    ],
)
def test_output_root_is_a_folder_of_the_working_folder_unless_set(
    environ: dict[str, str], folder: str
) -> None:
    assert variables.output_root(environ) == folder
