"""W&B is told what a run of `train` did, and what its checkpoints were made from."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rl_rig
import training_rig

from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.training.checkpoints import lineage
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.checkpoints.lineage import Lineage
from crane_x7_vla_rl.training.checkpoints.publish import Artifacts

pytestmark = pytest.mark.timeout(3 * training_rig.PATIENCE_S + 100)
STARTED = "acme/arms/lift:r0.checkpoint-final"
"""What the fine-tuned checkpoint that runs here start from is called at W&B."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep W&B inside the test's folder."""
    for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def start(folder: Path) -> Path:
    """Return a checkpoint that was uploaded once, in a folder that is a copy."""
    shutil.copytree(rl_rig.base(), folder)
    Lineage("openvla/openvla-7b", None, STARTED, update=500).write(folder)
    return folder


def records(path: Path) -> Iterator[Any]:
    """Yield what an offline run has written down."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    try:
        while (found := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(found)
            yield record
    finally:
        store.close()


def complete_records(path: Path, within_s: float = 60.0) -> list[Any]:
    """Return the records once the last one is there: wandb's own process writes them, and
    `finish` of a run on a busy machine may return first."""
    end_s = time.monotonic() + within_s
    while True:
        found = list(records(path))
        if found and found[-1].HasField("exit"):
            return found
        assert time.monotonic() < end_s, f"{path} lacks its end after {len(found)} records"
        time.sleep(0.2)


def test_an_offline_run_holds_figures_videos_and_checkpoints_with_their_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = rl_rig.Scripted({(2, 0): "terminated"})
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: scripted)
    run, begun = tmp_path / "run", start(tmp_path / "sft")
    rl_rig.train(
        run, "--sft-checkpoint", str(begun), "--num-updates", "1", "--use-wandb",
        "--wandb-project", "arms", "--wandb-artifacts", "every-save", "--evaluate-every", "1",
        "--evaluate-episodes", "1", "--evaluate-videos", "1",
    )  # fmt: skip
    (recorded,) = run.glob("wandb/offline-run-*/*.wandb")
    logged: dict[str, Any] = {}
    artifacts: dict[str, Any] = {}
    told_records = complete_records(recorded)
    for record in told_records:
        for item in record.history.item:
            logged[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for one in (record.artifact, record.request.log_artifact.artifact):
            for alias in one.aliases:
                artifacts[alias] = json.loads(one.metadata)
    (figures,) = training_rig.metrics(run)
    for name in ("env_steps", "approx_kl", "clip_fraction", "explained_variance", "env_steps_s",
                 "simulate_s", "infer_s", "learn_s", "episode_return"):  # fmt: skip
        assert logged[f"train/{name}"] == pytest.approx(figures[name]), name
    assert logged["train/evaluation_success"] == figures["evaluation_success"]
    (shown,) = (run / "evaluation/update_1/videos").glob("*.mp4")
    scene, _, outcome = shown.stem.rpartition("-")
    assert logged[f"evaluation/{scene}/_type"] == "video-file"
    assert logged[f"evaluation/{scene}/caption"] == outcome
    copied = recorded.parent / "files" / logged[f"evaluation/{scene}/path"]
    assert copied.read_bytes() == shown.read_bytes()
    (run_id,) = {record.run.run_id for record in told_records} - {""}
    for name in ("checkpoint_best", "checkpoint_final"):
        told = artifacts[name]
        here = lineage.read(run / name)
        assert here["artifact"] == f"arms/run:{run_id}.{name}"
        assert artifacts[f"{run_id}.{name}"] == told
        assert {key: told[key] for key in here} == here
        assert told["made_from"] == STARTED
        assert told["start"] == str(begun)
        assert told["update"] == 1
        assert told["about"]["evaluation_success"] == figures["evaluation_success"]
        assert "num_parallel_envs: 2" in told["config"]
    assert "wandb sync" in (run / "not-uploaded.txt").read_text()


def test_a_run_without_w_and_b_says_where_its_checkpoints_come_from_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    rl_rig.train(tmp_path / "run", "--num-updates", "1")
    told = lineage.read(tmp_path / "run/last")
    assert told["start"] == str(rl_rig.base())
    assert told["artifact"] is None
    assert told["made_from"] is None
    assert told["about"]["env_steps"] > 0
    assert not (tmp_path / "run/wandb").exists()


# --- online, where the cloud is played by a recorder ----------------------------------------------


class Cloud:
    """What `wandb.init` returns online, as far as uploads use it."""

    entity, project, id = "acme", "arms", "r1"

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.used: list[str] = []
        self.logged: list[tuple[Any, list[str]]] = []

    def use_artifact(self, name: str) -> None:
        self.used.append(name)
        if self.refuses:
            raise ValueError("there is no such artifact")

    def log_artifact(self, artifact: Any, aliases: list[str]) -> Cloud:
        self.logged.append((artifact, aliases))
        return self

    def wait(self, timeout: int) -> None:
        assert timeout > 0


@pytest.mark.parametrize("refuses", [False, True])
def test_online_a_line_leads_from_what_training_started_from(tmp_path: Path, refuses: bool) -> None:
    cloud = Cloud(refuses)
    artifacts = Artifacts(cloud, "lift", offline=False)
    for update in (1, 2):
        folder = tmp_path / f"checkpoint_{update}"
        folder.mkdir()
        (folder / checkpoint.CONFIG).write_text("start: {}\n")
        own = artifacts.called(folder.name)
        Lineage("sft", STARTED, own, update, {"success": 0.5}).write(folder)
        artifacts.upload(folder)
    assert cloud.used == [STARTED]
    (_, (artifact, aliases)) = cloud.logged
    assert aliases == ["latest", "checkpoint_2", "r1.checkpoint_2"]
    assert artifact.metadata["artifact"] == "acme/arms/lift:r1.checkpoint_2"
    assert artifact.metadata["about"] == {"success": 0.5}
    assert lineage.made_from(str(start(tmp_path / "sft")), None) == STARTED
    assert lineage.made_from("gone", tmp_path / "checkpoint_2") == STARTED


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_damaged_lineage_is_named(tmp_path: Path, text: str) -> None:
    folder = start(tmp_path / "sft")
    (folder / lineage.LINEAGE).write_text(text)
    with pytest.raises(PolicyLoadError, match=str(folder / lineage.LINEAGE)):
        lineage.made_from(str(folder), None)
