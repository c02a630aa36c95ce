"""Seed of this room as one test: rent, train by LeRobot, evicted, resume, home, nothing is left.

The command is the published one, typed in the published folder. Real are: OpenSSH and sshd, SFTP,
LeRobot's ACT on two cores, the Hub's protocol with files that are kept. The provider is a stand-in.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lerobot_rig
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

from cloud_farm import Farm
from data_rig import FPS, episode
from fake_hub_upload import Taker
from fake_hub_whole import WholeHub

from crane_x7_vla_rl.data.lerobot import LeRobotWriter

pytestmark = [
    pytest.mark.lerobot, pytest.mark.timeout(1500), pytest.mark.usefixtures("sshd"),
]  # fmt: skip

PIPELINE = lerobot_rig.ROOT / "configs/verda_lerobot_pipeline"
TOKEN = "hf_testTokenOfTheCircle"
OUT = "outputs/train/act_circle"
YAML = f"""
dataset: {{repo_id: me/data}}
policy:
  type: act
  device: cpu
  pretrained_backbone_weights: null
  chunk_size: 4
  n_action_steps: 4
  dim_model: 64
  n_heads: 4
  dim_feedforward: 128
job: {{name: act_circle, output_dir: {OUT}}}
training: {{steps: 20, batch_size: 2, num_workers: 0, save_freq: 5, log_freq: 1}}
checkpoint: {{UPLOADS}}
accelerate: {{use: false}}
"""
FLAGS = ["--gpu-model", "H100", "--gpus-per-instance", "4", "--env-file", ".env",
         "--train-config", "configs/train.remote.yaml"]  # fmt: skip


@dataclass
class Circle:
    """The published folder, an account, a Hub."""

    folder: Path
    farm: Farm
    hub: WholeHub

    def command(self, *words: str) -> list[str]:
        extra = ["--remote-dir", self.farm.remote_dir, "--ssh-user", getpass.getuser()]
        return [sys.executable, "local/verda_lerobot_manager.py", *words, *FLAGS, *extra]

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(lerobot_rig.ROOT),
            "VERDA_BASE_URL": self.farm.server.url,
            "CLOUD_LEDGER": str(self.farm.folder / "ledger"),
            "HF_HOME": str(self.folder / "hf"),
        }

    def start(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("wb") as file:
            return subprocess.Popen(
                self.command(*words), cwd=self.folder, env=self.environment(), stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")

    def ends(self, process: subprocess.Popen[bytes], log: str, code: int) -> str:
        with process:
            found = process.wait(600)
        assert found == code, self.said(log)[-4000:]
        return self.said(log)

    def until(self, condition: str, process: subprocess.Popen[bytes], log: str) -> None:
        end_s = time.monotonic() + 400
        while condition not in self.said(log):
            assert process.poll() is None, self.said(log)[-4000:]
            assert time.monotonic() < end_s, self.said(log)[-4000:]
            time.sleep(0.05)

    def steps(self, run: str) -> list[int]:
        folder = self.folder / f"runs/{run}/outputs/checkpoints"
        return sorted(int(path.name) for path in folder.glob("0*"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lerobot_rig.python()
    folder = tmp_path_factory.mktemp("data") / "data"
    with LeRobotWriter(folder, FPS, (96, 64)) as writer:
        for number in range(3):
            writer.add(episode(number, 8 + number, size=(96, 64)))
    return folder


@pytest.fixture
def circle(tmp_path: Path, data: Path, request: pytest.FixtureRequest) -> Iterator[Circle]:
    folder = tmp_path / "verda_lerobot_pipeline"
    shutil.copytree(PIPELINE, folder)
    with WholeHub(token=TOKEN, data=data) as hub, Farm(tmp_path / "farm", real=True) as farm:
        uploads = getattr(request, "param", "{repo_id: me/ckpt, upload_every_save: true}")
        (folder / "configs/train.remote.yaml").write_text(YAML.replace("{UPLOADS}", uploads))
        (folder / ".env").write_text(
            "DATACRUNCH_CLIENT_ID=client\n"
            f"export DATACRUNCH_CLIENT_SECRET='{farm.server.key}'\r\n"
            f'HUGGINGFACE_HUB_TOKEN="{TOKEN}"\n'
            f"HF_ENDPOINT={hub.url}\nHF_HUB_DISABLE_XET=1\n"
        )
        yield Circle(folder, farm, hub)


def test_train_evicted_at_step_10_resume_from_the_hub_home_and_nothing_is_left(
    circle: Circle,
) -> None:
    farm, hub = circle.farm, circle.hub
    # Saved at 10 and 20 alone: of checkpoints one second apart, a slow upload skips some.
    config = circle.folder / "configs/train.remote.yaml"
    config.write_text(config.read_text().replace("save_freq: 5", "save_freq: 10"))
    evicted = threading.Event()

    def hold(_: Taker) -> bool:
        """Take no upload between step 10 and the eviction: training must not end before it."""
        if 10 in hub.markers:
            evicted.wait(60)
        return False

    hub.fault = hold
    first = circle.start("train", "--run-id", "first_run", log="first.log")
    farm.evict_when(lambda: 10 in hub.markers)
    said = circle.ends(first, "first.log", 40)
    evicted.set()
    assert "resume --checkpoint-repo-id me/ckpt" in said
    assert farm.left() == []
    done = hub.markers[-1]
    words = ("resume", "--checkpoint-repo-id", "me/ckpt", "--run-id", "resume_run_1")
    said = circle.ends(circle.start(*words, log="second.log"), "second.log", 0)
    assert farm.left() == []
    assert f"resuming from {OUT}/checkpoints/{done:06d}, step {done}" in said
    assert hub.markers[-1] == 20
    assert hub.private
    assert circle.steps("resume_run_1")[-1] == 20
    rows = circle.folder / "runs/resume_run_1/outputs/metrics.jsonl"
    steps = [json.loads(line)["step"] for line in rows.read_text().splitlines()]
    assert steps == list(range(done + 1, 21))
    weights = "checkpoints/000020/pretrained_model/model.safetensors"
    home = circle.folder / "runs/resume_run_1/outputs" / weights
    assert home.read_bytes() == hub.files[weights]
    sent = "\n".join(farm.world.requests)
    assert TOKEN not in sent + said + circle.said("first.log")
    assert farm.server.key not in said


@pytest.mark.slow
@pytest.mark.parametrize("circle", ["{}"], indirect=True)
def test_a_kept_disk_continues_after_an_eviction_and_a_killed_process_loses_nothing(
    circle: Circle,
) -> None:
    farm = circle.farm
    first = circle.start("train", "--run-id", "first_run", log="first.log")
    farm.evict_when(lambda: any(each.keep_volumes for each in farm.ledger.entries()))
    said = circle.ends(first, "first.log", 40)
    (kept,) = farm.left()
    volume = kept.split()[1]
    assert f"resume_local --os-volume-id {volume}" in said
    words = ("resume_local", "--os-volume-id", volume, "--run-id", "resume_local_1")
    second = circle.start(*words, log="second.log")
    circle.until(" of 20, loss", second, "second.log")
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert farm.left()
    # The next start, of anything, ends what the killed one left, its training saved and home.
    done = subprocess.run(
        circle.command("train", "--run-id", "another", "--max-price", "0.01"),
        cwd=circle.folder, env=circle.environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 42, done.stderr
    assert farm.left() == []
    home = circle.steps("resume_local_1")
    assert home
    assert home[0] >= 5
