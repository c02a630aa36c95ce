"""Bags from Azure: everything that is listed arrives whole, whatever the network does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("azure.storage.blob", reason="needs the azure extra")

import fake_blob
from fake_blob import BUSY, CUT, SAS, SHORT, SLOW, Account

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.training.errors import ConfigError, TrainingError
from crane_x7_vla_rl.training.osmo import blob
from crane_x7_vla_rl.training.osmo.__main__ import main
from crane_x7_vla_rl.training.osmo.blob import Source, check_token, download

PREFIX = "houston_recordings/"
LIBRARY_TRIES = 3
"""How often azure-storage-blob itself reads a piece."""
BLOBS = {
    f"{PREFIX}rec_0/metadata.yaml": b"a: b\n",
    f"{PREFIX}rec_0/rec_0.db3": bytes(range(256)) * 700,
    f"{PREFIX}rec_1/empty file.mcap": b"",
    f"{PREFIX}rec_1/データ.mcap": b"x" * 5000,
    f"{PREFIX}rec_2/last.mcap": b"y",
    "others/not-mine": b"z",
}


@pytest.fixture
def account() -> Iterator[Account]:
    with fake_blob.serving(Account(blobs=dict(BLOBS))) as found:
        yield found


def source(account: Account, **changes: str) -> Source:
    given = {"account": "", "sas": SAS, "prefix": PREFIX, "endpoint": account.address, **changes}
    return Source(**given)


def fetch(account: Account, folder: Path, **changes: str) -> list[float]:
    """Download; return the pauses between attempts."""
    pauses: list[float] = []
    download(source(account, **changes), folder, pauses.append)
    return pauses


def assert_whole(folder: Path) -> None:
    for name, content in BLOBS.items():
        if name.startswith(PREFIX):
            assert (folder / name.removeprefix(PREFIX)).read_bytes() == content
    assert not [*folder.rglob("*.partial")]


def test_every_page_of_the_prefix_arrives_and_nothing_else(
    account: Account, tmp_path: Path
) -> None:
    assert fetch(account, tmp_path) == []
    assert_whole(tmp_path)
    assert not (tmp_path / "others").exists()
    assert sum(path == "datasets" for path, _ in account.requests) == 3, "pages of the listing"


def test_a_second_call_fetches_nothing_and_a_changed_blob_again(
    account: Account, tmp_path: Path
) -> None:
    fetch(account, tmp_path)
    account.requests.clear()
    fetch(account, tmp_path)
    assert {path for path, _ in account.requests} == {"datasets"}
    name = f"{PREFIX}rec_2/last.mcap"
    account.blobs[name], account.versions[name] = b"!", 2
    fetch(account, tmp_path)
    assert (tmp_path / "rec_2/last.mcap").read_bytes() == b"!"


def test_busy_servers_are_tried_again_longer_each_time(account: Account, tmp_path: Path) -> None:
    account.faults = [("datasets", BUSY), ("datasets", SLOW), ("rec_0.db3", BUSY)]
    assert fetch(account, tmp_path) == [0.5, 1.0, 0.5]
    assert_whole(tmp_path)


def test_a_cut_file_is_continued_where_it_ends(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob, "PIECE_BYTES", 1 << 16)
    account.faults = [("rec_0.db3", ""), *[("rec_0.db3", CUT)] * LIBRARY_TRIES]
    assert fetch(account, tmp_path) == [0.5]
    assert_whole(tmp_path)
    ranges = [part for path, part in account.requests if path.endswith("rec_0.db3")]
    assert "bytes=65536-131071" in ranges
    assert ranges.count("bytes=0-65535") == 1, "what was whole is not fetched again"


def test_a_killed_download_is_continued(account: Account, tmp_path: Path) -> None:
    fetch(account, tmp_path)
    whole = tmp_path / "rec_0/rec_0.db3"
    whole.with_name("rec_0.db3.partial").write_bytes(whole.read_bytes()[:1000])
    whole.unlink()
    account.requests.clear()
    fetch(account, tmp_path)
    assert_whole(tmp_path)
    (part,) = [part for path, part in account.requests if path.endswith("rec_0.db3")]
    assert part.startswith("bytes=1000-")


def test_a_file_that_never_has_the_listed_length_fails(account: Account, tmp_path: Path) -> None:
    account.faults = [("datasets", SHORT)]
    with pytest.raises(TrainingError, match=r"metadata\.yaml: .*(of 6 bytes|416)"):
        fetch(account, tmp_path)
    assert not (tmp_path / "rec_0/metadata.yaml").exists()


def test_a_service_that_stays_down_is_named(account: Account, tmp_path: Path) -> None:
    account.faults = [("datasets", BUSY)] * blob.RETRIES
    with pytest.raises(TrainingError, match=r"list .*houston_recordings/: failed 8 times"):
        fetch(account, tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [({"container": "nowhere"}, DataError, "ContainerNotFound.*AZURE_BLOB_CONTAINER"),
     ({"prefix": "nothing/"}, DataError, "no blob there; check AZURE_BLOB_CONTAINER and"),
     ({"sas": SAS.replace("sig=", "sig=x")}, ConfigError, "refused .AuthenticationFailed.*SAS")],
)  # fmt: skip
def test_a_wrong_place_or_token_ends_at_once(
    account: Account, tmp_path: Path, changes: dict[str, str], kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        fetch(account, tmp_path, **changes)
    assert fake_blob.SIGNATURE not in str(caught.value)
    assert len(account.requests) == 1, "no retry helps"


@pytest.mark.parametrize(
    ("sas", "expected"),
    [("sv=2024", "holds no signature"), ("", "holds no signature"),
     ("?sp=r&sig=x", r"allows 'r' \(sp\), expected read and list"),
     ("sp=rl&se=2026-11-27T10%3A00Z&sig=x", "has expired at 2026-11-27 10:00 UTC"),
     ("sp=rl&se=2026-11-27&sig=x", "has expired at 2026-11-27 00:00 UTC")],
)  # fmt: skip
def test_a_token_that_cannot_work_is_refused_before_anything_is_sent(
    sas: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_token(sas, datetime(2026, 11, 28, tzinfo=UTC))
    check_token(SAS)


def test_a_name_that_leads_out_of_the_folder_is_refused(account: Account, tmp_path: Path) -> None:
    account.blobs = {f"{PREFIX}../../evil": b"x"}
    with pytest.raises(DataError, match="leads out of"):
        fetch(account, tmp_path / "inner")
    assert not (tmp_path / "evil").exists()


def test_the_command_takes_the_published_variables(
    account: Account,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AZURE_BLOB_PREFIX", PREFIX)
    monkeypatch.setenv("BLOB_DEST_DIR", str(tmp_path))
    monkeypatch.setenv("AZURE_BLOB_ENDPOINT", account.address)
    assert main(["download"]) == 3
    assert "AZURE_STORAGE_SAS_TOKEN is not set" in capsys.readouterr().err
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    logging.getLogger("azure").setLevel(logging.WARNING)
    assert main(["download"]) == 0
    assert_whole(tmp_path)
    said = capsys.readouterr()
    assert fake_blob.SIGNATURE not in said.out + said.err
