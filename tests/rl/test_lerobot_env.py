"""Where LeRobot's environment is found, and what is said if it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from crane_x7_vla_rl import lerobot_env
from crane_x7_vla_rl.lerobot_env import VERSION, LerobotEnvError, interpreter


def environment(folder: Path, version: str | None) -> Path:
    """An environment with this LeRobot, as far as files tell."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").touch()
    packages = folder / "lib/python3.12/site-packages"
    packages.mkdir(parents=True)
    if version is not None:
        (packages / f"lerobot-{version}.dist-info").mkdir()
    return folder


def test_an_absent_environment_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(LerobotEnvError, match="scripts/setup-lerobot") as raised:
        interpreter(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(raised.value)
    assert "LEROBOT_VENV" in str(raised.value)


def test_without_a_name_all_usual_places_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_env, "__file__", str(tmp_path / "package/lerobot_env.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "elsewhere/.venv"))
    monkeypatch.setattr(lerobot_env, "IN_IMAGE", tmp_path / "image")
    with pytest.raises(LerobotEnvError) as raised:
        interpreter()
    for place in (".venv-lerobot", "elsewhere/.venv-lerobot", "image"):
        assert str(tmp_path / place) in str(raised.value)
    environment(tmp_path / "image", VERSION)
    assert interpreter() == tmp_path / "image/bin/python"
    environment(tmp_path / ".venv-lerobot", VERSION)
    assert interpreter() == tmp_path / ".venv-lerobot/bin/python"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.3.3", "policy_preprocessor.json"),
        ("0.5.1", "env_eval_freq"),
        ("0.7.0", "newer than this project knows"),
    ],
)
def test_another_version_is_named_with_what_changed(
    tmp_path: Path, version: str, said: str
) -> None:
    folder = environment(tmp_path / "venv", version)
    with pytest.raises(LerobotEnvError, match=f"LeRobot {version}, expected {VERSION}") as raised:
        interpreter(folder)
    assert said in str(raised.value)
    assert "scripts/setup-lerobot --force" in str(raised.value)


def test_another_patch_level_is_taken(tmp_path: Path) -> None:
    folder = environment(tmp_path / "venv", VERSION.rpartition(".")[0] + ".9")
    assert interpreter(folder) == folder / "bin/python"


def test_an_environment_without_lerobot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LerobotEnvError, match="holds no LeRobot"):
        interpreter(environment(tmp_path / "venv", None))
