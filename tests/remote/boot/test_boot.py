"""Boot as whoever runs the tests: it ends as its role does, stops in order, tells its health.

What needs root, such as sshd and user vla, is in test_boot_machine.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import signal
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError

import pytest
from tailnet_rig import free_port

from crane_x7_remote import settings as settings_module
from crane_x7_remote.boot import command, status
from crane_x7_remote.boot import files as files_module
from crane_x7_remote.boot import role as role_module
from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.command import ROLE_SHARE_S, STOP_BUDGET_S, Boot, BootPlan
from crane_x7_remote.errors import (
    ExitCode,
    SettingsError,
    SshdError,
    StateError,
    TailscaledError,
    UnhealthyError,
)


def _plan(folder: Path, words: Sequence[str], **environ: str) -> BootPlan:
    """A plan whose role runs as we do; there is no sshd, which would write into our own home."""
    entry = pwd.getpwuid(os.geteuid())
    account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, folder, "/bin/sh")
    environ = {
        "PATH": os.environ["PATH"],
        "BOOT_RUN_DIR": str(folder / "run"),
        "TS_STATE_DIR": str(folder / "state"),
        "TS_ENABLE_HEALTH_CHECK": "false",
    } | environ
    settings = settings_module.load(environ=environ)
    files = files_module.prepare(settings)
    seen = role_module.environment(environ, settings, files, account)
    role = role_module.resolve(role_module.choose(words, settings, files), seen)
    return BootPlan(settings, files, account, role, seen, {"PATH": os.environ["PATH"]})


async def _when(path: Path) -> None:
    async with asyncio.timeout(30):
        while not path.exists():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("script", "code"), [("exit 41", 41), ("kill -KILL $$", 137), (":", 0)])
async def test_exit_code_of_the_role_is_boots(tmp_path: Path, script: str, code: int) -> None:
    assert await Boot(_plan(tmp_path, ["sh", "-c", script])).run() == code


async def test_sigterm_reaches_the_role_and_its_verdict_counts(tmp_path: Path) -> None:
    script = 'trap "exit 7" TERM; touch "$BOOT_RUN_DIR/ready"; while :; do sleep 0.05; done'
    plan = _plan(tmp_path, ["sh", "-c", script])
    boot = asyncio.create_task(Boot(plan).run())
    await _when(plan.files.run / "ready")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(boot, 30) == 7


async def test_deaf_role_is_killed_within_the_budget(tmp_path: Path) -> None:
    script = 'trap "" TERM; touch "$BOOT_RUN_DIR/ready"; while :; do sleep 0.05; done'
    plan = _plan(tmp_path, ["sh", "-c", script])
    boot = asyncio.create_task(Boot(plan).run())
    await _when(plan.files.run / "ready")
    before_s = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(boot, 60) == 128 + signal.SIGKILL
    assert time.monotonic() - before_s >= ROLE_SHARE_S
    assert ROLE_SHARE_S < STOP_BUDGET_S < 10


async def test_a_training_that_saves_for_longer_is_not_killed_and_the_tailnet_is_left_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(command, "ROLE_SHARE_S", 0.1)
    caplog.set_level(logging.INFO)
    script = (
        'trap "while [ ! -e $BOOT_RUN_DIR/left ]; do sleep 0.05; done; exit 7" TERM;'
        'touch "$BOOT_RUN_DIR/ready"; while :; do sleep 0.05; done'
    )
    plan = _plan(tmp_path, ["sh", "-c", script, "train"])
    running = Boot(plan)

    async def leave() -> None:
        await asyncio.sleep(0.1)
        (plan.files.run / "left").touch()

    monkeypatch.setattr(running, "_log_out", leave)
    boot = asyncio.create_task(running.run())
    await _when(plan.files.run / "ready")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(boot, 30) == 7
    assert "boot waits until it has saved its checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("words", "saves"),
    [
        ("train --backend gpu", True),
        ("sft", True),
        ("torchrun --nproc-per-node 2 -m crane_x7_vla_rl.training.cli train", True),
        ("infer --vla-task-instruction train", False),
        ("evaluate", False),
        ("sleep 600", False),
    ],
)
def test_only_a_training_may_take_its_time(tmp_path: Path, words: str, saves: bool) -> None:
    settings = settings_module.load(environ={"BOOT_RUN_DIR": str(tmp_path)})
    files = files_module.prepare(settings)
    assert role_module.choose(words.split(), settings, files).saves == saves


async def test_health_is_told_on_the_socket_and_on_the_port_while_boot_lives(
    tmp_path: Path,
) -> None:
    port = free_port()
    plan = _plan(
        tmp_path,
        ["sleep", "600"],
        TS_ENABLE_HEALTH_CHECK="true",
        TS_LOCAL_ADDR_PORT=f"127.0.0.1:{port}",
    )
    boot = asyncio.create_task(Boot(plan).run())
    await _when(files_module.status_socket(plan.files.run))

    def answer() -> dict[str, object]:
        return status.ask(str(plan.files.run))

    def by_port(path: str) -> tuple[int, dict[str, object]]:
        url = f"http://127.0.0.1:{port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return response.status, json.loads(response.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    async with asyncio.timeout(30):
        while (await asyncio.to_thread(answer))["role"]["state"] != "up":  # type: ignore[index]
            await asyncio.sleep(0.05)
    code, told = await asyncio.to_thread(by_port, "/healthz")
    elsewhere, _ = await asyncio.to_thread(by_port, "/secrets")
    boot.cancel()
    await asyncio.gather(boot, return_exceptions=True)
    assert code == 200
    assert elsewhere == 404
    assert told["healthy"] is True
    assert {name: told[name]["state"] for name in ("tunnel", "sshd", "role", "robot")} == {  # type: ignore[index]
        "tunnel": "off", "sshd": "off", "role": "up", "robot": "off",
    }  # fmt: skip
    with pytest.raises(UnhealthyError, match="no boot answers"):
        await asyncio.to_thread(answer)


async def test_infer_is_unhealthy_until_the_robot_answers(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        [],
        VLA_POLICY="color-servo",
        ROSBRIDGE_HOST="127.0.0.1",
        ROSBRIDGE_PORT=str(free_port()),
        PEER_WAIT_TIMEOUT="5",
    )
    plan.files.for_role.mkdir()
    boot = asyncio.create_task(Boot(plan).run())
    seen = {}
    async with asyncio.timeout(60):
        while seen.get("role", {}).get("state") != "up":
            await asyncio.sleep(0.1)
            seen = await asyncio.to_thread(status.ask, str(plan.files.run))
    assert seen["robot"]["state"] == "starting"
    assert "PEER_WAIT_TIMEOUT=5 s" in seen["robot"]["advice"]
    assert seen["healthy"] is False
    assert await asyncio.wait_for(boot, 60) == ExitCode.PEER_UNREACHABLE


async def test_health_port_in_use_is_named(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    plan = _plan(tmp_path, ["true"], TS_ENABLE_HEALTH_CHECK="true", TS_LOCAL_ADDR_PORT=address)
    async with server:
        with pytest.raises(SettingsError, match=f"TS_LOCAL_ADDR_PORT={address}"):
            await Boot(plan).run()


async def test_missing_programs_end_boot_with_their_own_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(tmp_path, ["true"], TS_AUTHKEY="tskey-none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TailscaledError, match="tailscaled and tailscale is not on PATH") as caught:
        await Boot(plan).run()
    assert caught.value.exit_code == ExitCode.TAILSCALED
    assert SshdError("").exit_code == ExitCode.SSHD


async def test_key_in_a_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tailscale", "tailscaled"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    plan = _plan(tmp_path, ["true"], TS_AUTHKEY="file:/nowhere/key")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SettingsError, match="TS_AUTHKEY=file:/nowhere/key: the file cannot be"):
        await Boot(plan).run()


def test_state_folder_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    with pytest.raises(StateError, match="TS_STATE_DIR") as caught:
        _plan(tmp_path, ["true"])
    assert caught.value.exit_code == ExitCode.STATE
