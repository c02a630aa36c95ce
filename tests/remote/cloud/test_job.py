"""What is read and checked before anything is rented: .env, the YAML, the Hub, the log's lines."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from fake_hub_whole import WholeHub

from crane_x7_remote.cloud import bundle, env_file, job
from crane_x7_remote.cloud.hub_state import HubSilentError, HubState
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.progress import Progress
from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl import lerobot_env, secret_text

ROOT = Path(__file__).parents[3]
PIPELINE = ROOT / "configs/verda_lerobot_pipeline"
ENV = (
    "# a comment\r\n"
    "DATACRUNCH_CLIENT_ID=client\r\n"
    "export DATACRUNCH_CLIENT_SECRET='s e$cret#1'\r\n"
    'HUGGINGFACE_HUB_TOKEN="hf_$HOME"  # ours\n'
    'WANDB_PROJECT="it\'s a \\"name\\" ${HOME}"\n'
    "WANDB_ENTITY=plain # with a comment\n"
    "WANDB_API_KEY=\n"
    "LEROBOT_WANDB_ENABLE=true\n"
    "LEROBOT_TRAIN_CONFIG=configs/x.yaml\n"
    "VERDA_SSH_PRIVATE_KEY=~/.ssh/id\n"
)
YAML = (
    "dataset: {repo_id: me/data}\npolicy: {type: act}\njob: {output_dir: outputs/train/mine}\n"
    "checkpoint: {repo_id: me/ckpt, upload_every_save: true}\ntraining: {steps: 10}\n"
)


# --- .env ----------------------------------------------------------------------------------------


@pytest.fixture
def env(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_bytes(b"\xef\xbb\xbf" + ENV.encode())
    return path


def test_quotes_blanks_dollars_comments_and_crlf_are_read_as_dotenv_does(env: Path) -> None:
    values = env_file.read(env)
    assert values["DATACRUNCH_CLIENT_SECRET"] == "s e$cret#1"
    assert values["HUGGINGFACE_HUB_TOKEN"] == "hf_$HOME"
    assert values["WANDB_PROJECT"] == 'it\'s a "name" ${HOME}'
    assert values["WANDB_ENTITY"] == "plain"


def test_only_what_a_training_reads_goes_up_and_a_shell_reads_the_same(
    env: Path, tmp_path: Path
) -> None:
    up = env_file.for_machine(env_file.read(env))
    assert up == {
        "HF_TOKEN": "hf_$HOME", "LEROBOT_WANDB_ENABLE": "true", "WANDB_ENTITY": "plain",
        "WANDB_PROJECT": 'it\'s a "name" ${HOME}',
    }  # fmt: skip
    file = tmp_path / "up"
    file.write_text(env_file.text(up))
    script = f"set -a; . {shlex.quote(str(file))}; env -0"
    out = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={}).stdout
    seen = dict(row.split("=", 1) for row in out.decode().split("\0") if "=" in row)
    assert {name: seen[name] for name in up} == up


def test_the_secrets_of_the_file_are_masked_from_then_on(env: Path) -> None:
    env_file.read(env)
    assert "s e$cret#1" not in secret_text.mask("the secret is s e$cret#1")


@pytest.mark.parametrize(
    ("text", "says"), [("A B=1\n", "line 1"), ("X=1\n'\n", "line 2"), ("1A=2\n", "line 1")]
)
def test_a_line_that_is_no_assignment_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(text)
    with pytest.raises(SettingsError, match=says):
        env_file.read(path)


def test_a_missing_file_names_the_example(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.env\.example"):
        env_file.read(tmp_path / ".env")


def test_a_token_with_a_blank_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"HF_TOKEN=\*\*\*") as caught:
        env_file.for_machine({"HF_TOKEN": "hf_two words"})
    assert "two" not in str(caught.value)


def test_the_file_overrides_the_environment_and_leaves_empty_values_to_it() -> None:
    merged = env_file.merged({"A": "file", "B": ""}, {"A": "environ", "B": "environ", "C": "c"})
    assert merged == {"A": "file", "B": "environ", "C": "c"}


def test_the_published_example_is_read_and_rents_nothing_by_itself() -> None:
    values = env_file.read(PIPELINE / ".env.example")
    assert not any(values.values())
    assert {"DATACRUNCH_CLIENT_ID", "VERDA_SSH_KEY_NAME", "LEROBOT_WANDB_ENABLE"} <= set(values)


# --- the YAML ------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def test_a_yaml_says_where_outputs_and_checkpoints_go(tmp_path: Path) -> None:
    read = job.read_lerobot(write(tmp_path, YAML), None, {})
    assert (read.outputs, read.repo_id, read.every_save) == ("outputs/train/mine", "me/ckpt", True)
    assert read.dataset == "me/data"
    assert read.survives_eviction
    assert read.files()["train.remote.yaml"] == YAML.encode()
    assert read.files()["checkpoint_repo"] == b"me/ckpt"


def test_a_flag_overrides_a_variable_and_this_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_dry_run", lambda *_: "")
    path, values = write(tmp_path, YAML), {"LEROBOT_CHECKPOINT_REPO_ID": "me/variable"}
    assert job.read_lerobot(path, None, values).repo_id == "me/variable"
    assert job.read_lerobot(path, "me/flag", values).repo_id == "me/flag"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (YAML.replace("steps", "stepps"), r"training\.stepps.*did you mean"),
        (YAML.replace("type: act", "type: akt"), r"policy\.type is 'akt'"),
        (YAML + "dataset: {}\n", "dataset"),
        (YAML.replace("outputs/train/mine", "out puts"), r"job\.output_dir"),
        (YAML.replace("repo_id: me/data", "repo_id: me/data, root: data/here"), r"dataset\.root"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_yaml_is_refused_in_the_trainers_words_before_anything_is_rented(
    text: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=says):
        job.read_lerobot(write(tmp_path, text), None, {})


@pytest.mark.parametrize(
    "name",
    [
        "act.sample",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("example", "smolvla.sample", "pi0.sample")
        ),
    ],
)
def test_the_published_configurations_are_accepted(name: str) -> None:
    read = job.read_lerobot(PIPELINE / f"configs/train.remote.{name}.yaml", None, {})
    assert read.dataset == "your-name/your-data-set"
    assert read.outputs.startswith("outputs/train/")


def test_the_configuration_of_our_own_trainers_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_dry_run", lambda *_: "")
    path = write(tmp_path, "training: {max_steps: 5}\n")
    for words in (["--config", str(path)], [f"--config={path}"]):
        files = job.read_own("sft", [*words, "--resume", "auto"], {}).files()
        assert files["train.config.yaml"] == path.read_bytes()
        assert str(path) not in files["job.json"].decode()
        assert "train.config.yaml" in files["job.json"].decode()


@pytest.mark.slow
def test_our_own_trainers_get_their_words_and_resume_by_themselves() -> None:
    words = ("--backend", "openvla", "--data-root", "me/data", "--hub-model-id", "me/ckpt",
             "--push-to-hub", "every-save")  # fmt: skip
    read = job.read_own("sft", words, {})
    assert json.loads(read.files()["job.json"]) == ["sft", *words, "--resume", "auto"]
    assert (read.repo_id, read.every_save) == ("me/ckpt", True)
    assert not read.survives_eviction  # their trainers resume from a folder alone
    assert read.mode("train") == "job"
    with pytest.raises(SettingsError, match="--job sft is refused"):
        job.read_own("sft", ["--batch-sise", "4"], {})


# --- the Hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").write_text("x")
    with WholeHub(token="hf_right", data=tmp_path / "data") as served:
        yield served


JOB = Job(repo_id="me/ckpt", every_save=True, dataset="me/data")


def test_a_new_repository_and_a_data_set_that_is_there_pass(hub: WholeHub) -> None:
    HubState("hf_right", hub.url).check(JOB, resume=False)
    assert HubState("hf_right", hub.url).newest("me/ckpt") is None


def test_half_an_upload_is_no_checkpoint_and_the_most_advanced_one_counts(hub: WholeHub) -> None:
    hub.repository = "me/ckpt"
    files = {"checkpoints/000010/complete.json": b"{}", "checkpoints/000002/complete.json": b"{}"}
    hub.commits.append(("x", files | {"checkpoints/000020/pretrained_model/config.json": b"{}"}))
    state = HubState("hf_right", hub.url)
    assert state.newest("me/ckpt") == 10
    state.check(JOB, resume=True)
    with pytest.raises(SettingsError, match="holds step 10 of a run"):
        state.check(JOB, resume=False)


def test_a_resume_from_nothing_and_a_missing_data_set_are_said_before_renting(
    hub: WholeHub,
) -> None:
    state = HubState("hf_right", hub.url)
    with pytest.raises(SettingsError, match="holds no complete checkpoint"):
        state.check(JOB, resume=True)
    with pytest.raises(SettingsError, match=r"dataset\.repo_id: the Hub has no me/other"):
        state.check(Job(dataset="me/other"), resume=False)
    with pytest.raises(SettingsError, match="expected owner/name"):
        state.check(Job(dataset="me/da ta"), resume=False)


def test_a_wrong_token_and_a_silent_hub_are_said_before_renting(hub: WholeHub) -> None:
    with pytest.raises(SettingsError, match="HUGGINGFACE_HUB_TOKEN"):
        HubState("hf_wrong", hub.url).check(JOB, resume=False)
    hub.fault = lambda taker: taker.say({"error": "down"}, 503) or True
    with pytest.raises(HubSilentError, match="503"):
        HubState("hf_right", hub.url).check(JOB, resume=False)
    with pytest.raises(HubSilentError, match="nothing was rented"):
        HubState("hf_right", "http://127.0.0.1:9").check(JOB, resume=False)


# --- what a bare machine gets --------------------------------------------------------------------


def test_the_bundle_is_the_same_bytes_and_holds_both_packages_and_pins(tmp_path: Path) -> None:
    packed = bundle.pack()
    assert packed == bundle.pack()
    (tmp_path / "p.tar.gz").write_bytes(packed)
    subprocess.run(["tar", "-xzf", "p.tar.gz"], cwd=tmp_path, check=True)
    for name in ("crane_x7_remote/cli.py", "crane_x7_vla_rl/training/lerobot/options.json",
                 "constraints.txt", "constraints-lerobot.txt", "requirements.txt",
                 "requirements-sft.txt", "requirements-train.txt"):  # fmt: skip
        assert (tmp_path / name).is_file(), name
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert "huggingface_hub" in lines
    assert "torch" not in lines
    assert "torch" in (tmp_path / "requirements-sft.txt").read_text().splitlines()


def test_lerobots_training_is_started_without_a_torch_of_ours() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from crane_x7_vla_rl.training.lerobot import command, start, upload"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_machine_installs_the_lerobot_that_this_project_is_tested_with() -> None:
    here = (ROOT / "scripts/setup-lerobot").read_text().splitlines()
    there = (ROOT / "crane_x7_remote/cloud/machine/setup_env.sh").read_text().splitlines()
    wanted = [line for line in here if line.startswith(("lerobot='", "needs=("))]
    assert len(wanted) == 2
    assert [line for line in there if line.startswith(("lerobot='", "needs=("))] == wanted
    assert lerobot_env.VERSION in wanted[0]


# --- the log -------------------------------------------------------------------------------------


def test_lines_come_whole_without_colours_and_harmless() -> None:
    progress = Progress()
    assert progress.feed(b"\x1b[32mgre", 0) == []
    found = progress.feed("en\x1b[0m\nbar 1%\rbar 2%\r\n\x1b]0;title\x07evil\x08\n日".encode(), 0)
    assert found == ["green", "bar 1%", "bar 2%", "evil\\x08"]
    assert progress.feed("本\n".encode()[0:0], 0) == []
    assert progress.feed("本\n".encode(), 0) == ["日本"]


def test_a_line_of_progress_has_step_loss_time_left_and_money() -> None:
    progress = Progress()
    assert progress.line(0.0) is None
    progress.feed(b"INFO x: step 100 of 1000, loss 0.5, gradient 1\n", 0.0)
    progress.feed(b"INFO x: step 200 of 1000, loss 0.25, gradient 1\n", 50.0)
    assert progress.line(1.239, 10) == (
        "step 200 of 1000 · loss 0.25 · 0.5 s per step · 7 min left · $1.24 so far of $10"
    )


def test_our_own_trainers_lines_are_shown_as_they_are() -> None:
    progress = Progress()
    progress.feed(b"12:00 INFO sft: step:6K smpl:96K loss:0.412\n", 0.0)
    assert progress.line(2.0) == "step:6K smpl:96K loss:0.412 · $2.00 so far"


def test_secrets_in_a_log_are_masked() -> None:
    secret_text.remember("hf_abcdefgh")
    assert Progress().feed(b"token hf_abcdefgh\n", 0.0) == ["token ***"]
