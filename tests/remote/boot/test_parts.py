"""What boot decides before it starts anything, and what it makes of what it hears."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crane_x7_remote import settings as settings_module
from crane_x7_remote.boot import robot_link, role, sshd, tailscale_cli
from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.files import Files
from crane_x7_remote.boot.status import as_text
from crane_x7_remote.boot.status_board import StatusBoard
from crane_x7_remote.errors import RoleError, SettingsError
from crane_x7_remote.settings import Settings

VLA = Account("vla", 1000, 1000, Path("/home/vla"), "/bin/bash")
FILES = Files(Path("/run/x7"), Path("/state"), Path("/state/ssh"), Path("/run/ts.sock"))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhKhPXbfF4DRRVIvIpQO1bMuFrPzIAm3pJ2GVaPUUeJ me"


def _settings(**environ: str) -> Settings:
    return settings_module.load(environ=environ)


# --- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SSH_PUBLIC_KEY": f"{KEY}\nssh-ed25519 AAAA cut"}, "line 2 is a damaged or truncated"),
        ({"PUBLIC_KEY": "# mine\n\n/root/.ssh/id_rsa.pub"}, "line 3 is not a public key"),
        ({"SSH_PUBLIC_KEY": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "line 1 is a private key"),
        ({"SSH_PUBLIC_KEY": KEY.replace("ssh-ed25519", "ssh-rsa")}, "line 1 is a damaged"),
        ({"SSH_PORT": "0"}, "SSH_PORT='0'"),
        ({"TS_SOCKS5_SERVER": ":1055"}, "would let anyone into the tailnet"),
        ({"TS_SOCKS5_SERVER": "0.0.0.0:1055"}, "would let anyone into the tailnet"),
        ({"TS_OUTBOUND_HTTP_PROXY_LISTEN": "[::]:80"}, "would let anyone into the tailnet"),
        ({"TS_LOCAL_ADDR_PORT": "9002"}, "expected address:port"),
        ({"TS_EXTRA_ARGS": "--ssh --authkey=tskey-x"}, "which `ps` would show; use TS_AUTHKEY"),
        ({"TS_TAILSCALED_EXTRA_ARGS": "--port '1"}, "No closing quotation"),
        ({"TS_HOSTNAME": "my gpu"}, "expected up to 63 letters, digits and dashes"),
        ({"TS_AUTHKYE": "tskey-x"}, "TS_AUTHKYE is unknown; did you mean TS_AUTHKEY?"),
        ({"SSH_PUBLIC_KEYS": KEY}, "SSH_PUBLIC_KEYS is unknown; did you mean SSH_PUBLIC_KEY?"),
    ],
)
def test_wrong_setting_is_named_and_its_secret_is_not(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_module.load(environ=environ)
    assert message in str(caught.value)
    assert "tskey" not in str(caught.value)
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["TS_DEST_IP", "TS_DEBUG_USE_DERP_HTTP", "SSH_CONNECTION", "SSH_AUTH_SOCK", "SSH_TTY"]
)
def test_variables_of_others_are_left_alone(name: str) -> None:
    assert settings_module.load(environ={name: "x"}) == settings_module.load(environ={})


def test_old_name_of_the_key_still_works_and_the_new_one_wins() -> None:
    old = _settings(TS_AUTH_KEY="old").ts_authkey
    both = _settings(TS_AUTH_KEY="old", TS_AUTHKEY="new").ts_authkey
    assert old is not None
    assert both is not None
    assert (old.get_secret_value(), both.get_secret_value()) == ("old", "new")


def test_every_secret_is_kept_from_daemons() -> None:
    assert {"TS_AUTHKEY", "TS_AUTH_KEY", "HF_TOKEN", "WANDB_API_KEY"} <= (
        settings_module.secret_variables()
    )


# --- role -----------------------------------------------------------------------------------------
MODEL, HOST = {"VLA_MODEL_PATH": "openvla/openvla-7b"}, {"ROSBRIDGE_HOST": "crane-x7-local"}


@pytest.mark.parametrize(
    ("words", "environ", "name"),
    [
        ([], {}, "sshd"),
        ([], MODEL, "sshd"),
        ([], HOST, "sshd"),
        ([], MODEL | HOST, "infer"),
        ([], {"VLA_POLICY": "color-servo"} | HOST, "infer"),
        ([], {"VLA_MODEL_PATH": ""} | HOST, "sshd"),
        (["sshd"], MODEL | HOST, "sshd"),
        (["--", "train", "--resume", "x"], {}, "train"),
        (["nvidia-smi"], MODEL | HOST, "nvidia-smi"),
    ],
)
def test_role_comes_from_the_words_or_from_what_is_set(
    words: list[str], environ: dict[str, str], name: str
) -> None:
    assert role.choose(words, _settings(**environ), FILES).name == name


def test_training_roles_are_the_trainers_own_commands() -> None:
    for name in ("train", "sft", "evaluate"):
        chosen = role.choose([name, "--seed", "1"], _settings(), FILES)
        assert chosen.argv[1:] == ("-m", "crane_x7_vla_rl.training.cli", name, "--seed", "1")


def test_sshd_has_no_process_of_its_own_but_sshd_with_arguments_has() -> None:
    assert role.choose(["sshd"], _settings(), FILES).argv == ()
    assert role.choose(["sshd", "-T"], _settings(), FILES).argv == ("sshd", "-T")


@pytest.mark.parametrize(
    ("words", "metrics"),
    [
        (["infer"], "/run/x7/role/metrics.json"),
        (["infer", "--metrics", "/a.json"], "/a.json"),
        (["infer", "--metrics=/b.json"], "/b.json"),
    ],
)
def test_loop_always_writes_the_metrics_that_boot_reads(words: list[str], metrics: str) -> None:
    chosen = role.choose(words, _settings(), FILES)
    assert chosen.metrics == Path(metrics)
    assert metrics in " ".join(chosen.argv)


def test_unknown_program_is_refused_with_the_roles_named() -> None:
    wrong = role.choose(["infre"], _settings(), FILES)
    with pytest.raises(RoleError, match="'infre': this program is not on PATH; expected infer, t"):
        role.resolve(wrong, {"PATH": "/usr/bin:/bin"})


def test_name_on_the_tailnet_follows_the_role() -> None:
    infer, other = role.Role("infer"), role.Role("sshd")
    assert role.hostname(infer, _settings()) == "crane-x7-inference"
    assert role.hostname(other, _settings()) == "crane-x7-vla-rl"
    assert role.hostname(infer, _settings(TS_HOSTNAME="mine")) == "mine"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({"ROSBRIDGE_HOST": "crane-x7-local"}, "socks5h://127.0.0.1:1055"),
        ({"ROSBRIDGE_HOST": "100.64.0.7"}, "socks5h://127.0.0.1:1055"),
        ({"ROSBRIDGE_HOST": "fd7a:115c:a1e0::7"}, "socks5h://127.0.0.1:1055"),
        ({"ROSBRIDGE_HOST": "localhost"}, None),
        ({"ROSBRIDGE_HOST": "127.0.0.1"}, None),
        ({"ROSBRIDGE_HOST": "192.168.1.5"}, None),
        ({"TS_SOCKS5_SERVER": "[::1]:1080"}, "socks5h://[::1]:1080"),
        ({"TS_SOCKS5_SERVER": ""}, None),
        ({"ROSBRIDGE_PROXY": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080"),
        ({"TS_USERSPACE": "false", "TS_ACCEPT_DNS": "true"}, None),
        ({"TS_USERSPACE": "false"}, "socks5h://127.0.0.1:1055"),
    ],
)
def test_robot_on_the_tailnet_is_reached_through_its_proxy(
    environ: dict[str, str], proxy: str | None
) -> None:
    environ = {"TS_AUTHKEY": "secret"} | environ
    seen = role.environment(environ, _settings(**environ), FILES, VLA)
    assert seen.get("ROSBRIDGE_PROXY") == proxy


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"POLICY_SERVER": "ws://gpu-box:8000"}, "socks5h://127.0.0.1:1055"),
        ({"POLICY_SERVER": "gpu-box:8000"}, "socks5h://127.0.0.1:1055"),
        ({"POLICY_SERVER": "ws://[fd7a:115c:a1e0::7]:8000"}, "socks5h://127.0.0.1:1055"),
        ({"POLICY_SERVER": "ws://192.168.1.5:8000"}, None),
        ({"POLICY_SERVER": "ws://localhost:8000"}, None),
        (
            {"POLICY_SERVER": "ws://gpu-box:8000", "POLICY_PROXY": "http://127.0.0.1:8080"},
            "http://127.0.0.1:8080",
        ),
        ({"POLICY_SERVER": "ws://gpu-box:8000", "TS_SOCKS5_SERVER": ""}, None),
    ],
)
def test_a_policy_server_on_the_tailnet_is_reached_through_its_proxy(
    environ: dict[str, str], proxy: str | None
) -> None:
    environ = {"TS_AUTHKEY": "secret"} | environ
    seen = role.environment(environ, _settings(**environ), FILES, VLA)
    assert seen.get("POLICY_PROXY") == proxy


def test_role_sees_all_but_the_tailnets_key_and_has_the_users_home() -> None:
    environ = {
        "TS_AUTHKEY": "secret",
        "TS_AUTH_KEY": "secret",
        "HF_TOKEN": "hf",
        "WANDB_API_KEY": "wandb",
        "HOME": "/root",
        "USER": "root",
        "TS_HOSTNAME": "gpu",
    }
    seen = role.environment(environ, _settings(**environ), FILES, VLA)
    assert "secret" not in " ".join(seen.values())
    assert (seen["HF_TOKEN"], seen["WANDB_API_KEY"]) == ("hf", "wandb")
    assert (seen["HOME"], seen["USER"], seen["LOGNAME"]) == ("/home/vla", "vla", "vla")
    assert seen["TS_SOCKET"] == "/run/ts.sock"


def test_without_a_tailnet_no_proxy_is_set() -> None:
    seen = role.environment({}, _settings(ROSBRIDGE_HOST="crane-x7-local"), FILES, VLA)
    assert "ROSBRIDGE_PROXY" not in seen
    assert "TS_SOCKET" not in seen


# --- tailscale ------------------------------------------------------------------------------------
def test_tailscaled_is_asked_for_userspace_and_a_proxy_on_localhost_alone() -> None:
    words = tailscale_cli.daemon_arguments(_settings(), FILES)
    assert "--tun=userspace-networking" in words
    assert "--socks5-server=127.0.0.1:1055" in words
    assert "--statedir=/state" in words
    assert not [word for word in words if word.startswith("--state=")]


def test_empty_state_folder_means_memory_and_a_missing_one_this_start_alone() -> None:
    files = replace(FILES, state=None)
    in_memory = tailscale_cli.daemon_arguments(_settings(TS_STATE_DIR=""), files)
    this_start = tailscale_cli.daemon_arguments(_settings(), files)
    assert "--state=mem:" in in_memory
    assert "--state=mem:" not in this_start
    assert "--statedir=/run/x7/tailscale" in this_start


def test_variables_of_tailscales_own_container_mean_the_same_here() -> None:
    settings = _settings(
        TS_USERSPACE="false",
        TS_SOCKS5_SERVER="",
        TS_OUTBOUND_HTTP_PROXY_LISTEN="localhost:1056",
        TS_TAILSCALED_EXTRA_ARGS="--verbose=1 --port 41641",
        TS_EXTRA_ARGS='--login-server=https://c.example "--advertise-tags=tag:a b"',
        TS_ACCEPT_DNS="true",
    )
    daemon = tailscale_cli.daemon_arguments(settings, FILES)
    up = tailscale_cli.up_arguments(settings, "gpu", "file:/run/key")
    assert not [word for word in daemon if "tun=" in word or "socks5" in word]
    assert "--outbound-http-proxy-listen=localhost:1056" in daemon
    assert daemon[-3:] == ["--verbose=1", "--port", "41641"]
    assert {"--accept-dns=true", "--hostname=gpu", "--auth-key=file:/run/key"} <= set(up)
    assert up[-2:] == ["--login-server=https://c.example", "--advertise-tags=tag:a b"]


def test_tailscaled_may_listen_on_its_proxies_and_on_what_the_user_names() -> None:
    settings = _settings(
        TS_OUTBOUND_HTTP_PROXY_LISTEN="127.0.0.1:1056",
        TS_TAILSCALED_EXTRA_ARGS="--debug=127.0.0.1:8080",
    )
    assert tailscale_cli.listening_ports(settings) == {1055, 1056, 8080}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"BackendState": "NeedsLogin", "Health": ["key expired"]}, ("key expired", "TS_AUTHKEY")),
        ({"BackendState": "Stopped"}, ("Stopped",)),
        (
            {"BackendState": "Running", "Self": {"Online": False}},
            ("no connection", "tailscaled keeps trying"),
        ),
    ],
)
def test_trouble_on_the_tailnet_says_what_to_do(
    status: dict[str, object], words: tuple[str, ...]
) -> None:
    problem = tailscale_cli.trouble(status)
    assert problem is not None
    assert all(word in " ".join(problem) for word in words)


def test_running_and_online_is_no_trouble() -> None:
    assert tailscale_cli.trouble({"BackendState": "Running", "Self": {"Online": True}}) is None


# --- sshd -----------------------------------------------------------------------------------------
def test_sshd_listens_and_forwards_only_where_it_is_told() -> None:
    config = sshd.SshdConfig(VLA, (KEY,), 2222, "127.0.0.1", Path("/run/x7/sshd"), Path("/s"))
    lines = dict(line.split(" ", 1) for line in sshd.render(config, ["A", "B"]).splitlines())
    assert lines["Port"] == "2222"
    assert lines["ListenAddress"] == "127.0.0.1"
    assert lines["AllowUsers"] == "vla"
    assert lines["PermitUserEnvironment"] == "A,B"
    assert lines["PermitOpen"] == lines["PermitListen"] == "localhost:* 127.0.0.1:* [::1]:*"
    for name in (
        *("PasswordAuthentication", "KbdInteractiveAuthentication", "PermitRootLogin"),
        *("GatewayPorts", "AllowAgentForwarding", "PermitTunnel", "AllowStreamLocalForwarding"),
    ):
        assert lines[name] == "no"
    assert lines["X11UseLocalhost"] == "yes"


def test_session_gets_what_fits_into_lines_and_the_rest_is_named() -> None:
    environ = {"A": "$x `y` #", "TWO": "a\nb", "odd-name": "1", "HOME": "/root", "TERM": "dumb"}
    fits, left_out = sshd.session_environment(environ)
    assert fits == {"A": "$x `y` #"}
    assert left_out == ["TWO", "odd-name"]


# --- robot link, board ----------------------------------------------------------------------------
def test_robot_link_follows_the_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    where = "rosbridge at robot:9090"
    now_s = time.time()
    assert robot_link.judge(path, where, now_s - 9, now_s) is None
    path.write_text('{"state": "driving", "link": {"connected": true}}')
    os.utime(path, (now_s, now_s))
    assert robot_link.judge(path, where, now_s - 9, now_s + 1) == (
        "up",
        f"{where}, loop driving",
        "",
    )
    silent = robot_link.judge(path, where, now_s - 9, now_s + 30)
    assert silent is not None
    assert silent[0] == "down"
    assert "30 s" in silent[1]
    assert robot_link.judge(path, where, now_s + 1, now_s + 2) is None, "an earlier loop's file"
    path.write_text('{"state": "holding", "link": {"connected": false, "last_error": "refused"}}')
    assert robot_link.judge(path, where, now_s - 9, time.time()) == (
        ("down", f"no connection to {where}", "refused")
    )
    path.write_text("{")
    broken = robot_link.judge(path, where, now_s - 9, time.time())
    assert broken is not None
    assert broken[0] == "down"


def test_board_keeps_the_time_of_the_last_change_of_state() -> None:
    clock = [100.0]
    board = StatusBoard(lambda: clock[0], lambda: clock[0])
    board.set("sshd", "starting", "a")
    clock[0] = 105.0
    board.set("sshd", "up", "b")
    clock[0] = 110.0
    board.set("sshd", "up", "c")
    answer = board.as_json()
    assert answer["sshd"] == {
        "state": "up",
        "since": "1970-01-01T00:01:45+00:00",
        "for_s": 5.0,
        "detail": "c",
        "advice": "",
    }


def test_health_is_that_of_what_was_asked_for() -> None:
    board = StatusBoard(time.monotonic, time.time)
    assert board.healthy
    board.set("tunnel", "starting", "")
    assert not board.healthy
    board.set("tunnel", "up", "")
    assert board.healthy
    board.set("robot", "down", "no connection", "check the robot")
    assert not board.healthy
    text = as_text(board.as_json())
    assert "→ check the robot" in text
    assert [line.split()[0] for line in text.splitlines()] == [
        *("tunnel", "sshd", "role", "robot", "→")
    ]
