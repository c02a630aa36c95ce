"""Outputs come home whole: every file verified, transfers resume, names cannot lead elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_machine import CloudMachine
from sshd_rig import make_key

from crane_x7_remote.cloud import outputs as module
from crane_x7_remote.cloud.outputs import NoRoomError, Outputs
from crane_x7_remote.cloud.ssh import Host, Ssh, SshLostError
from crane_x7_remote.errors import CloudError

pytestmark = pytest.mark.usefixtures("sshd")

FILES = {
    "train.log": b"step 1\n",
    "checkpoints/000002/pretrained_model/model.safetensors": os.urandom(70_000),
    "checkpoints/000010/pretrained_model/model.safetensors": os.urandom(50_000),
    "empty": b"",
    'odd/a b"c\\d[1]*?.txt': b"odd",
    "odd/日本語.txt": "語".encode(),
    "odd/-rf": b"dash",
    "odd/$HOME.txt": b"dollar",
}


@pytest.fixture(params=["sftp", "rsync"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "rsync" and shutil.which("rsync") is None:
        # An installation without it uses sftp, which the other half of these tests proves.
        pytest.skip("no rsync on this machine; the same tests run over sftp")
    if request.param == "sftp":
        monkeypatch.setattr(module, "RSYNC", "no-such-program")
    return str(request.param)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[CloudMachine]:
    key = make_key(tmp_path / "key")
    with CloudMachine(tmp_path / "machine", key.with_name("key.pub").read_text()) as machine:
        yield machine


@pytest.fixture
def ssh(machine: CloudMachine, tmp_path: Path) -> Iterator[Ssh]:
    with Ssh(Host(machine.address, "x", tmp_path / "known_hosts", tmp_path / "key")) as ssh:
        ssh.wait_for_login(10)
        yield ssh


@pytest.fixture
def there(machine: CloudMachine) -> Path:
    folder = machine.run_folder / "outputs/train/run"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "checkpoints/last").symlink_to("000010")
    return folder


def held(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.parent.is_symlink() and "last" not in path.parts
    }


def make(ssh: Ssh, there: Path, tmp_path: Path) -> Outputs:
    return Outputs(ssh, str(there), tmp_path / "home folder", patience_s=5, pause_s=0.1)


@pytest.mark.usefixtures("way")
def test_every_file_comes_home_with_its_bytes_name_and_link(
    ssh: Ssh, there: Path, tmp_path: Path
) -> None:
    listing = make(ssh, there, tmp_path).fetch()
    home = tmp_path / "home folder"
    assert held(home) == FILES
    assert listing.total_bytes == sum(map(len, FILES.values()))
    assert os.readlink(home / "checkpoints/last") == "000010"


@pytest.mark.usefixtures("way")
def test_a_second_call_fetches_what_changed_and_nothing_else(
    ssh: Ssh, there: Path, tmp_path: Path
) -> None:
    make(ssh, there, tmp_path).fetch()
    home = tmp_path / "home folder"
    before = (home / "checkpoints/000010/pretrained_model/model.safetensors").stat().st_ino
    (there / "train.log").write_bytes(b"step 2\n")  # the same size
    (there / "new").write_bytes(b"new")
    make(ssh, there, tmp_path).fetch()
    assert (home / "train.log").read_bytes() == b"step 2\n"
    assert (home / "new").read_bytes() == b"new"
    after = (home / "checkpoints/000010/pretrained_model/model.safetensors").stat().st_ino
    assert after == before


def test_an_interrupted_transfer_resumes_where_it_was(
    ssh: Ssh, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RSYNC", "no-such-program")
    name = "checkpoints/000010/pretrained_model/model.safetensors"
    part = tmp_path / f"home folder/{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[name][:20_000])
    lines: list[str] = []
    sftp = ssh.sftp
    monkeypatch.setattr(ssh, "sftp", lambda batch, limit: lines.extend(batch) or sftp(batch, limit))
    make(ssh, there, tmp_path).fetch()
    assert held(tmp_path / "home folder") == FILES
    assert [line.split()[0] for line in lines if "000010" in line] == ["reget"]


def test_a_part_with_wrong_bytes_is_noticed_and_fetched_again(
    ssh: Ssh, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RSYNC", "no-such-program")
    name = "checkpoints/000002/pretrained_model/model.safetensors"
    part = tmp_path / f"home folder/{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(20_000))
    make(ssh, there, tmp_path).fetch()
    assert held(tmp_path / "home folder") == FILES


@pytest.mark.usefixtures("way")
def test_a_connection_that_breaks_is_taken_up_again(
    machine: CloudMachine, ssh: Ssh, there: Path, tmp_path: Path
) -> None:
    made = make(ssh, there, tmp_path)
    broken: list[int] = []

    def breaks() -> None:
        if not broken:
            broken.append(1)
            machine.sshd.kill()
            machine.sshd.start()

    made.tick = breaks
    made.fetch()
    assert broken
    assert held(tmp_path / "home folder") == FILES


def test_a_machine_that_is_gone_ends_it_after_the_patience(
    machine: CloudMachine, ssh: Ssh, there: Path, tmp_path: Path
) -> None:
    made = make(ssh, there, tmp_path)
    made.patience_s = 0.3
    machine.sshd.kill()
    with pytest.raises(SshLostError):
        made.fetch()


@pytest.mark.usefixtures("way")
def test_a_full_disk_here_is_said_before_anything_is_fetched(
    ssh: Ssh, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESERVE_BYTES", shutil.disk_usage(tmp_path).total)
    with pytest.raises(NoRoomError, match="make room on this computer's disk"):
        make(ssh, there, tmp_path).fetch()
    assert held(tmp_path / "home folder") == {}


def test_the_newest_checkpoint_comes_before_older_ones_and_logs_before_both() -> None:
    order = module._by_worth({name: len(content) for name, content in FILES.items()})
    ten, two = (order.index(f"checkpoints/{s}/pretrained_model/model.safetensors") for s in
                ("000010", "000002"))  # fmt: skip
    assert order.index("train.log") < ten < two


def test_a_folder_that_does_not_exist_is_empty(
    ssh: Ssh, machine: CloudMachine, tmp_path: Path
) -> None:
    assert not make(ssh, machine.run_folder / "nothing", tmp_path).fetch().sizes


@pytest.mark.parametrize(
    "name", [b"../../.ssh/authorized_keys", b"/etc/passwd", b"a/../../b", b"", b"a\nb", b"x.part"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: bytes) -> None:
    listing = module._listing(b"f3\t" + name + b"\0f1\tgood\0l" + name + b"\0target\0")
    assert set(listing.sizes) == {"good"}
    assert not listing.links
    assert len(listing.refused) == 1


def test_a_link_that_leads_out_of_the_folder_is_not_set(
    ssh: Ssh, there: Path, tmp_path: Path
) -> None:
    (there / "evil").symlink_to("/etc")
    (there / "evil2").symlink_to("../../..")
    make(ssh, there, tmp_path).fetch()
    assert not (tmp_path / "home folder/evil").is_symlink()
    assert not (tmp_path / "home folder/evil2").is_symlink()


def test_files_that_never_arrive_whole_are_an_error(
    ssh: Ssh, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_sha256", lambda _: "0" * 64)
    with pytest.raises(CloudError, match="never arrived whole"):
        make(ssh, there, tmp_path).fetch()
