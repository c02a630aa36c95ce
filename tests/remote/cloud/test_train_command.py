"""`cloud train` refuses what is wrong before anything is rented, the cheapest mistakes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from cloud.fake_verda import fake_verda
from cloud.server import FakeServer
from cloud.world import FakeVolume

from crane_x7_remote import cli
from crane_x7_remote.cloud import train_command
from crane_x7_remote.cloud.hub_state import HubState
from crane_x7_remote.cloud.job import Job

WORDS = ["--gpu-model", "H100", "--train-config", "train.yaml"]


@pytest.fixture
def verda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.chdir(tmp_path)
    with fake_verda() as server:
        Path(".env").write_text(
            f"DATACRUNCH_CLIENT_ID=client\nDATACRUNCH_CLIENT_SECRET={server.key}\n"
        )
        monkeypatch.setenv("VERDA_BASE_URL", server.url)
        monkeypatch.setenv("CLOUD_LEDGER", str(tmp_path / "ledger"))
        yield server


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A YAML and a Hub that are right, and disks that a run would start from."""
    begun: list[str | None] = []
    monkeypatch.setattr(train_command.jobs, "read_lerobot", lambda *_: Job())
    monkeypatch.setattr(HubState, "check", lambda *_, **__: None)
    monkeypatch.setattr(
        train_command.attempts, "run", lambda plan, *_: begun.append(plan.os_volume_id)
    )
    return begun


def run(capsys: pytest.CaptureFixture[str], *words: str, action: str = "train") -> tuple[int, str]:
    code = cli.main(["cloud", action, *WORDS, *words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--env-file", "missing"], 3, r".env.example"),
        (["--run-id", "a b"], 3, "--run-id 'a b': expected"),
        (["--gpus-per-instance", "0"], 3, "expected 1 or more"),
        (["--remote-dir", "run"], 3, "--remote-dir run: expected an absolute path"),
        (["--provider", "vast"], 41, "VAST_API_KEY"),
        (["wordless"], 3, "words are for --job sft and --job train"),
        (["--train-config", "other.yaml"], 3, "configs/train.remote.example.yaml"),
    ],
)
def test_a_mistake_is_answered_with_its_cure_and_rents_nothing(
    words: list[str], code: int, says: str, verda: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = run(capsys, *words)
    assert (found, says in text) == (code, True), text
    assert not [each for each in verda.world.requests if each.startswith("POST /v1/instances")]


@pytest.mark.usefixtures("trained")
def test_a_wrong_key_is_said_before_anything_is_rented(
    verda: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_text("DATACRUNCH_CLIENT_ID=client\nDATACRUNCH_CLIENT_SECRET=wrongOne1\n")
    code, text = run(capsys)
    assert code == 41
    assert "wrongOne1" not in text
    assert not verda.world.machines


def test_a_new_run_never_overwrites_the_outputs_of_another(
    verda: FakeServer, trained: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/first/outputs").mkdir(parents=True)
    assert run(capsys, "--run-id", "first")[0] == 0
    Path("runs/first/outputs/train.log").write_text("x")
    code, text = run(capsys, "--run-id", "first")
    assert (code, "holds outputs of an earlier run" in text) == (3, True)
    assert run(capsys, "--run-id", "first", action="resume")[0] == 0
    assert len(trained) == 2
    assert not verda.world.machines


def test_the_disk_of_resume_local_is_chosen_from_a_table_or_named(
    verda: FakeServer,
    trained: list[str | None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, text = run(capsys, action="resume_local")
    assert (code, "has no detached OS disk" in text) == (40, True)
    ids = [f"0000000{n}-0000-4000-8000-000000000000" for n in range(4)]
    for volume_id, attached, is_os in zip(ids, (None, "m", None, None), (1, 1, 1, 0), strict=True):
        verda.world.volumes[volume_id] = FakeVolume(
            volume_id, f"disk {volume_id[7]}", "ICE-01", machine_id=attached, is_os=bool(is_os)
        )
    monkeypatch.setattr("builtins.input", lambda _: "2")
    assert cli.main(["cloud", "resume_local", *WORDS]) == 0
    assert trained == [ids[2]]
    table = capsys.readouterr().out
    assert ids[0] in table
    assert "ICE-01" in table
    assert ids[1] not in table
    assert ids[3] not in table
    monkeypatch.setattr("builtins.input", lambda _: "9")
    assert "is not a number of the table" in run(capsys, action="resume_local")[1]
    assert "is attached to" in run(capsys, "--os-volume-id", ids[1], action="resume_local")[1]
    assert "has no such volume" in run(capsys, "--os-volume-id", "x", action="resume_local")[1]
    assert run(capsys, "--os-volume-id", ids[0], action="resume_local")[0] == 0
    assert trained == [ids[2], ids[0]]


def test_words_after_two_dashes_reach_our_own_trainer(
    verda: FakeServer, trained: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    del verda
    seen: list[object] = []
    monkeypatch.setattr(
        train_command.jobs, "read_own", lambda kind, words, _: seen.append((kind, words)) or Job()
    )
    words = ["cloud", "train", "--gpu-model", "H100", "--job", "sft", "--", "--backend", "openvla"]
    assert cli.main(words) == 0
    assert seen == [("sft", ["--backend", "openvla"])]
    assert len(trained) == 1
