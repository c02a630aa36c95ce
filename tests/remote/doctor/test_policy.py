"""doctor at a policy: model, statistics, server, LeRobot's environment, logins."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import doctor_rig
import pytest
from fake_hub import REPOSITORY, FakeHub
from links import SocksProxy
from plain_policy_server import PlainPolicyServer
from serve_policy_rig import serving

from crane_x7_remote.doctor import policy
from crane_x7_remote.doctor.finding import State
from crane_x7_vla_rl import lerobot_env
from crane_x7_vla_rl.policies.load import TINY

pytest.importorskip("huggingface_hub", reason="needs the train extra")

KEY = "a-key-for-the-policy-server"
TOKEN = "hf_aTokenThatNobodyMaySee"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint, to damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def test_the_shipped_model_is_well() -> None:
    within = doctor_rig.context(60.0, VLA_MODEL_PATH=str(TINY), VLA_DEVICE="cpu")
    found = {
        name: doctor_rig.examine(f"policy {name}", within)
        for name in ("model", "statistics", "memory")
    }
    assert {finding.state for finding in found.values()} == {State.OK}, found
    assert "14 MB of weights" in found["model"].words


def test_without_a_policy_and_for_color_servo_nothing_is_checked() -> None:
    for environ in ({}, {"VLA_POLICY": "color-servo"}):
        within = doctor_rig.context(**environ)
        for name in ("model", "statistics", "memory", "server"):
            assert doctor_rig.examine(f"policy {name}", within).state is State.SKIPPED


def _garbage(model: Path) -> None:
    (model / "config.json").write_text("{ this is no JSON")


def _truncated(model: Path) -> None:
    path = model / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def _without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _gone(model: Path) -> None:
    shutil.rmtree(model)


def _another_family(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["text_config"] = config.get("text_config", {}) | {"model_type": "qwen2"}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_garbage, "cannot be read as JSON"), (_truncated, "it is truncated or damaged"),
        (_without_tokenizer, "tokenizer.json is missing"), (_gone, "this folder does not exist"),
        (_another_family, "expected OpenVLA's architecture"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_is_found(model: Path, damage: object, words: str) -> None:
    assert callable(damage)
    damage(model)
    found = doctor_rig.examine("policy model", VLA_MODEL_PATH=str(model), VLA_DEVICE="cpu")
    assert found.state is State.FAILURE
    assert words in found.words
    assert found.cure == f"ls -l {model}"


def test_a_wrong_key_of_statistics_is_found_alone(model: Path) -> None:
    within = doctor_rig.context(VLA_MODEL_PATH=str(model), VLA_UNNORM_KEY="bridge_orig")
    found = doctor_rig.examine("policy statistics", within)
    assert found.state is State.FAILURE
    assert "VLA_UNNORM_KEY=bridge_orig" in found.words
    assert "known: crane_x7" in found.words
    assert found.cure == "unset VLA_UNNORM_KEY"
    assert doctor_rig.examine("policy model", within).state is State.OK


def test_model_and_server_together_are_found() -> None:
    found = doctor_rig.examine(
        "policy model", VLA_MODEL_PATH=str(TINY), POLICY_SERVER="ws://127.0.0.1:9"
    )
    assert found.state is State.FAILURE
    assert found.cure == "unset POLICY_SERVER"


def test_too_little_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "free_memory_bytes", lambda: 10_000_000)
    found = doctor_rig.examine("policy memory", VLA_MODEL_PATH=str(TINY), VLA_DEVICE="cpu")
    assert found.state is State.FAILURE
    assert "GB needed, 0.0 GB of memory free" in found.words


def test_a_private_model_without_access_is_found_and_the_token_is_never_shown(
    tmp_path: Path,
) -> None:
    with FakeHub({"config.json": b"{}"}, token=TOKEN) as hub:
        environ = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "2",
            "VLA_MODEL_PATH": REPOSITORY, "HF_TOKEN": "hf_anotherTokenOfSomebody",
        }  # fmt: skip
        code, found, log = doctor_rig.doctor("--only", "policy", **environ)
    assert code == 1, log
    assert "no access with this token" in found["policy model"]["words"]
    assert "anotherToken" not in json.dumps(found) + log


def test_a_policy_server_is_reached_through_its_proxy() -> None:
    with PlainPolicyServer(lambda _: {}, {"policy_type": "plain"}) as server:
        address = f"ws://gpu-box:{server.port}"
        with SocksProxy() as proxy:
            url = f"socks5h://127.0.0.1:{proxy.port}"
            found = doctor_rig.examine("policy server", POLICY_SERVER=address, POLICY_PROXY=url)
        gone = doctor_rig.examine("policy server", POLICY_SERVER=address, POLICY_PROXY=url)
    assert found.state is State.OK, found.words
    assert proxy.asked == [("gpu-box", server.port)]
    assert "POLICY_PROXY" in gone.words


def test_a_policy_server_is_reached_with_its_key_alone() -> None:
    flags = ("--policy", "color-servo", "--policy-api-key", KEY)
    with serving(*flags) as (url, _):
        right = doctor_rig.examine("policy server", POLICY_SERVER=url, POLICY_API_KEY=KEY)
        wrong = doctor_rig.examine("policy server", POLICY_SERVER=url, POLICY_API_KEY="another")
    gone = doctor_rig.examine("policy server", POLICY_SERVER=url, POLICY_API_KEY=KEY)
    assert right.state is State.OK, right
    assert wrong.state is State.FAILURE
    assert wrong.cure == "read -rs POLICY_API_KEY && export POLICY_API_KEY"
    assert gone.state is State.FAILURE
    assert "no policy server at" in gone.words


def _environment(folder: Path, version: str) -> Path:
    """What looks like LeRobot's environment, and holds no LeRobot."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    info = folder / "lib/python3.12/site-packages" / f"lerobot-{version}.dist-info"
    info.mkdir(parents=True)
    return folder


def test_lerobot_that_is_missing_old_or_broken_is_found(tmp_path: Path) -> None:
    missing = doctor_rig.examine("policy lerobot", LEROBOT_VENV=str(tmp_path / "none"))
    assert missing.state is State.FAILURE
    assert "LeRobot's environment is missing" in missing.words
    old = _environment(tmp_path / "old", "0.4.2")
    found = doctor_rig.examine("policy lerobot", LEROBOT_VENV=str(old))
    assert found.state is State.FAILURE
    assert f"holds LeRobot 0.4.2, expected {lerobot_env.VERSION}" in found.words
    assert found.cure == "scripts/setup-lerobot --force"
    broken = _environment(tmp_path / "broken", lerobot_env.VERSION)
    found = doctor_rig.examine("policy lerobot", LEROBOT_VENV=str(broken))
    assert found.state is State.FAILURE
    assert "No module named 'lerobot'" in found.words


def test_lerobot_that_nobody_needs_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_env, "_usual_places", lambda: iter([Path("/nowhere")]))
    assert doctor_rig.examine("policy lerobot").state is State.SKIPPED


@contextmanager
def logins(status: int, body: object) -> Iterator[tuple[str, list[str]]]:
    """A Hub and a W&B that answer every login so; yields the address and who logged in."""
    seen: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.path} {self.headers['Authorization']}")
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def _accounts(url: str, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY,
        "HOME": str(home), "HF_HOME": str(home),
    }  # fmt: skip


def test_logins_are_tried_at_their_servers(tmp_path: Path) -> None:
    body = {"name": "somebody", "data": {"viewer": {"username": "somebody", "entity": "team"}}}
    with logins(200, body) as (url, seen):
        code, found, log = doctor_rig.doctor("--only", "accounts", **_accounts(url, tmp_path))
    assert code == 0, log
    assert found["accounts hub"]["words"] == "logged in at the Hub as somebody"
    assert found["accounts wandb"]["words"] == "logged in at W&B as team"
    assert sorted(each.split()[0] for each in seen) == ["/api/whoami-v2", "/graphql"]


def test_logins_that_are_refused_are_found_and_never_shown(tmp_path: Path) -> None:
    with logins(401, {"error": f"no such token {TOKEN}"}) as (url, _):
        code, found, log = doctor_rig.doctor("--only", "accounts", **_accounts(url, tmp_path))
    assert code == 1
    assert found["accounts hub"]["cure"] == "hf auth login"
    assert found["accounts wandb"]["cure"] == "wandb login --relogin"
    assert TOKEN not in json.dumps(found) + log
    assert KEY not in json.dumps(found) + log


def test_servers_that_do_not_answer_are_a_warning(tmp_path: Path) -> None:
    environ = _accounts("http://127.0.0.1:9", tmp_path)
    code, found, _ = doctor_rig.doctor("--only", "accounts", "--strict", **environ)
    assert code == 2
    assert {check["state"] for check in found.values()} == {"warning"}


def test_without_logins_nothing_is_asked(tmp_path: Path) -> None:
    code, found, log = doctor_rig.doctor(
        "--only", "accounts", HOME=str(tmp_path), HF_HOME=str(tmp_path)
    )
    assert code == 0, log
    assert {check["state"] for check in found.values()} == {"skipped"}
