"""`cloud list | down | sweep`, as typed: against all three stand-ins at once."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud.clients import FAKES, QUICK, billed, order_of
from cloud.server import FakeServer

from crane_x7_remote import cli
from crane_x7_remote.cloud import down_command, sweep_command
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.rental import rented
from crane_x7_remote.cloud.stop_signals import Stopped
from crane_x7_remote.cloud.types import Budget

Servers = dict[str, FakeServer]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Servers]:
    """All stand-ins, with their keys in the environment and short waits."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(make()) for name, make in FAKES.items()}
        for name, value in environment(servers, tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        for module in (down_command, sweep_command):
            monkeypatch.setattr(module, "Timing", lambda: QUICK)
        yield servers


def environment(servers: Servers, tmp_path: Path) -> dict[str, str]:
    return {
        "DATACRUNCH_CLIENT_ID": "client",
        "DATACRUNCH_CLIENT_SECRET": servers["verda"].key,
        "VAST_API_KEY": servers["vast"].key,
        "RUNPOD_API_KEY": servers["runpod"].key,
        "VERDA_BASE_URL": servers["verda"].url,
        "VAST_BASE_URL": servers["vast"].url,
        "RUNPOD_BASE_URL": servers["runpod"].url,
        "CLOUD_LEDGER": str(tmp_path / "ledger"),
    }


@pytest.fixture
def own(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def interrupted(server: FakeServer, ledger: Ledger, run_id: str, keep: bool = False) -> str:
    """Leave a machine behind as a killed process would, and return its label."""
    child = os.fork()
    if child == 0:
        provider = server.client()
        order = order_of(provider, run_id)
        with rented(provider, order, Ledger(ledger.folder), run_id, QUICK, Budget()) as each:
            each.wait_for_address()
            if keep:
                each.keep_volumes = True
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return ledger.runs(run_id)[-1].label


def cloud(*words: str) -> int:
    return cli.main(["cloud", *words])


def test_list_shows_everything_of_all_providers_and_whose_it_is(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["verda"], own, "first")
    provider = servers["vast"].client()
    unknown = order_of(provider, "elsewhere")
    provider.create(unknown)
    provider.close()
    provider = servers["runpod"].client()
    other = provider.create(order_of(provider))
    provider.close()
    servers["runpod"].world.machines[other].label = "my-notebook"
    assert cloud("list") == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()[0] in FAKES}
    assert out.count("verda") == 2  # the machine and its disk
    assert "first" in lines["verda"]
    assert "interrupted (created)" in lines["verda"]
    assert "another ledger" in lines["vast"]
    assert unknown.label in lines["vast"]
    assert "not ours" in lines["runpod"]
    assert re.search(r"3 machines, 1 volume: \$\d+\.\d\d per hour", out)
    for server in servers.values():
        assert server.key not in out


def test_list_as_json_adds_up(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["vast"], own, "first")
    assert cloud("list", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    (thing,) = document["things"]
    assert thing["run"] == "first"
    assert document["per_hour"] == pytest.approx(float(thing["$/h"]), abs=1e-4)
    assert document["problems"] == {}


def test_a_provider_that_does_not_answer_is_an_error_with_the_others_shown(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["verda"], own, "first")
    servers["vast"].world.faults.rates["list_html"] = 1.0
    assert cloud("list") == 44
    shown = capsys.readouterr()
    assert "first" in shown.out
    assert "vast: no list of machines" in shown.err


def test_list_without_a_key_names_all_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUD_LEDGER", str(tmp_path / "ledger"))
    assert cloud("list") == 41
    text = capsys.readouterr().err
    for name in ("DATACRUNCH_CLIENT_SECRET", "VAST_API_KEY", "RUNPOD_API_KEY"):
        assert name in text


def test_keys_may_be_in_an_env_file(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("VAST_API_KEY")
    (tmp_path / ".env").write_text(f'export VAST_API_KEY="{servers["vast"].key}"\r\n')
    provider = servers["vast"].client()
    provider.create(order_of(provider))
    provider.close()
    assert cloud("list") == 0
    assert "vast" in capsys.readouterr().out


def test_down_ends_an_interrupted_run(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["verda"], own, "first")
    interrupted(servers["vast"], own, "second")
    assert cloud("down", "first") == 0
    assert "all gone" in capsys.readouterr().out
    assert billed(servers["verda"]) == []
    assert len(billed(servers["vast"])) == 1
    assert cloud("down", "--all") == 0
    assert billed(servers["vast"]) == []


def test_down_of_a_kept_volume_wants_an_answer(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    label = interrupted(servers["verda"], own, "first", keep=True)
    assert cloud("down", "first") == 40
    assert "add --yes" in capsys.readouterr().err
    (volume,) = own.read(label).kept_volume_ids
    assert billed(servers["verda"]) == [f"volume {volume} {label}"]
    assert cloud("down", "first", "--yes") == 0
    assert billed(servers["verda"]) == []
    assert own.read(label).kept_volume_ids == ()


def test_down_tells_a_living_process_to_end_in_order(servers: Servers, own: Ledger) -> None:
    server = servers["verda"]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        provider = server.client()
        order = order_of(provider)
        code = 1
        try:
            with rented(provider, order, Ledger(own.folder), "first", QUICK, Budget()) as each:
                each.wait_for_address()
                os.write(write, b"!")
                time.sleep(30)
        except Stopped:
            code = 7
        os._exit(code)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    assert cloud("down", "first") == 0
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert billed(server) == []


@pytest.mark.parametrize("words", [[], ["first", "--all"]])
def test_down_wants_a_run_or_all(
    servers: Servers, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert servers
    assert cloud("down", *words) == 40
    assert "--all" in capsys.readouterr().err


def test_down_of_an_unknown_run_names_the_known_ones(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["vast"], own, "first")
    assert cloud("down", "frist") == 40
    assert "runs there: first" in capsys.readouterr().err
    assert cloud("down", "first") == 0


def test_sweep_removes_what_was_left_and_nothing_else(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = interrupted(servers["verda"], own, "kept", keep=True)
    assert cloud("down", "kept") == 40  # ends the machine, keeps the volume
    interrupted(servers["verda"], own, "first")
    for name in ("vast", "runpod"):
        provider = servers[name].client()
        mine = provider.create(order_of(provider))
        if name == "runpod":
            servers[name].world.machines[mine].label = "my-notebook"
        provider.close()
    capsys.readouterr()
    assert cloud("sweep", "--yes") == 0
    out = capsys.readouterr().out
    assert "not deleted: add --kept" in out
    assert "not deleted: add --others" in out
    assert "per hour" in out
    (volume,) = own.read(kept).kept_volume_ids
    assert billed(servers["verda"]) == [f"volume {volume} {kept}"]
    assert len(billed(servers["vast"])) == 1
    assert cloud("sweep", "--kept", "--others") == 0
    assert billed(servers["verda"]) == []
    assert billed(servers["vast"]) == []
    assert len(billed(servers["runpod"])) == 1  # somebody's own
    capsys.readouterr()
    assert cloud("sweep") == 0
    assert "nothing is left over" in capsys.readouterr().out


def test_sweep_without_a_terminal_deletes_nothing(
    servers: Servers, own: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(servers["vast"], own, "first")
    assert cloud("sweep") == 40
    assert "nothing was deleted; add --yes" in capsys.readouterr().err
    assert len(billed(servers["vast"])) == 1


@pytest.mark.parametrize(("typed", "left"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
def test_sweep_asks_at_a_terminal(
    servers: Servers, own: Ledger, tmp_path: Path, typed: bytes, left: int
) -> None:
    interrupted(servers["vast"], own, "first")
    leader, follower = pty.openpty()
    program = (
        "import sys; from crane_x7_remote.cloud import sweep_command as s;"
        f" s.Timing = lambda: __import__('crane_x7_remote.cloud.types').cloud.types.{QUICK!r};"
        " from crane_x7_remote import cli; sys.exit(cli.main(['cloud', 'sweep']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment(servers, tmp_path),
        cwd=tmp_path,
    )
    os.close(follower)
    os.write(leader, typed)
    out, _ = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 0, out
    assert b"left by interrupted runs" in out
    assert b"per hour" in out
    assert len(billed(servers["vast"])) == left


def test_sweep_leaves_a_living_run_alone(servers: Servers, own: Ledger) -> None:
    server = servers["vast"]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        provider = server.client()
        order = order_of(provider)
        with rented(provider, order, Ledger(own.folder), "first", QUICK, Budget()) as each:
            each.wait_for_address()
            os.write(write, b"!")
            time.sleep(30)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    try:
        assert cloud("sweep", "--yes", "--kept", "--others") == 0
        assert len(billed(server)) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert cloud("sweep", "--yes") == 0
    assert billed(server) == []
