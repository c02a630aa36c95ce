"""OpenVLA as a policy: what its actions mean, how it is chosen, and the loop that it drives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loop_rig import FaultyRobot
from places import FIXTURES

torch = pytest.importorskip("torch")
for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package, reason="needs the train extra")

from crane_x7_vla_rl.kinematics import UnreachableError, tool_frame
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla import builder
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.image import pixel_values
from crane_x7_vla_rl.policies.openvla.policy import OpenVLAPolicy
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.prompt import prompt
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import JointState, Observation

CHECKPOINT = FIXTURES / "openvla_tiny/checkpoint"
RED, BLUE = "pick up the red cube", "place the blue cube on the plate"
BENT = HOME_RAD + np.array([0.3, 0.4, 0.2, 0.3, -0.1, -0.2, 0.1, 0.2])
"""Away from the limits and from every singular pose."""
COMMAND = [sys.executable, "-m", "crane_x7_remote"]
CLEAN = {
    key: value for key, value in os.environ.items() if not key.startswith(("VLA_", "ROSBRIDGE_"))
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builder.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The original's checkpoint, which knows 7- and 8-dimensional actions, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "fixture"
    shutil.copytree(CHECKPOINT, folder, copy_function=shutil.copyfile)
    shutil.copyfile(tiny / "tokenizer.json", folder / "tokenizer.json")
    return folder


def _observe(instruction: str = RED, seed: int = 0, joints: np.ndarray = HOME_RAD) -> Observation:
    image = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Observation(image, JointState(joints, np.zeros(8)), instruction, 0.0)


def _policy(folder: Path, key: str = "crane_x7", crop: bool | None = None) -> OpenVLAPolicy:
    options = ModelOptions(str(folder), unnorm_key=key, center_crop=crop)
    policy = load_policy("openvla", options)
    assert isinstance(policy, OpenVLAPolicy)
    return policy


def _action(folder: Path, key: str, observation: Observation, dimensions: int) -> np.ndarray:
    """What the model says, without the policy around it."""
    model = load(folder).model
    ids = PromptTokenizer(folder / "tokenizer.json")(observation.instruction)
    tokens = Runner(model).roll_out(model.preprocess([observation.image]), [ids], dimensions).tokens
    return model.decode_actions(tokens, key)[0]


# Actions


def test_8_dimensions_are_joint_targets_and_the_gripper_stays_in_its_limits(fixture: Path) -> None:
    observation = _observe()
    action = _action(fixture, "crane_x7", observation, 8)
    (chunk,) = _policy(fixture).predict([observation])
    assert chunk.position_rad.shape == (1, 8)
    np.testing.assert_array_equal(chunk.position_rad[0, :7], action[:7])
    assert chunk.position_rad[0, 7] == np.clip(action[7], LOWER_RAD[7], UPPER_RAD[7])


def test_7_dimensions_step_the_tool_from_where_it_is_measured(fixture: Path) -> None:
    raw = json.loads((fixture / "dataset_statistics.json").read_text())
    small = {"q01": [-0.02] * 3 + [-0.1] * 3 + [0.0], "q99": [0.02] * 3 + [0.1] * 3 + [1.0]}
    raw["small_steps"] = {"action": small | {"mask": [True] * 6 + [False]}}
    (fixture / "dataset_statistics.json").write_text(json.dumps(raw))
    observation = _observe(joints=BENT)
    action = _action(fixture, "small_steps", observation, 7)
    (chunk,) = _policy(fixture, "small_steps").predict([observation])
    before, after = tool_frame(BENT), tool_frame(chunk.position_rad[0])
    np.testing.assert_allclose(after[:3, 3] - before[:3, 3], action[:3], atol=2e-4)
    turn = after[:3, :3] @ before[:3, :3].T
    angles = [np.arctan2(turn[2, 1], turn[2, 2]), -np.arcsin(turn[2, 0])]
    angles.append(np.arctan2(turn[1, 0], turn[0, 0]))
    np.testing.assert_allclose(angles, action[3:6], atol=2e-3)
    assert np.abs(action[:6]).min() > 1e-4, "an action of zeros would prove nothing"
    assert chunk.position_rad[0, 7] == pytest.approx(np.clip(action[6], 0, 1) * 0.6)


def test_a_step_out_of_reach_raises_so_that_the_loop_holds(fixture: Path) -> None:
    raw = json.loads((fixture / "dataset_statistics.json").read_text())
    raw["far"] = {"action": {"q01": [1.0] * 7, "q99": [2.0] * 7}}
    (fixture / "dataset_statistics.json").write_text(json.dumps(raw))
    with pytest.raises(UnreachableError):
        _policy(fixture, "far").predict([_observe(joints=BENT)])


def test_a_batch_gets_the_answers_of_each_alone(fixture: Path) -> None:
    policy = _policy(fixture)
    observations = [_observe(RED, 0), _observe(BLUE, 1), _observe("stop", 2)]
    together = policy.predict(observations)
    for one, chunk in zip(observations, together, strict=True):
        (alone,) = policy.predict([one])
        np.testing.assert_array_equal(alone.position_rad, chunk.position_rad)
    assert len({chunk.position_rad.tobytes() for chunk in together}) > 1


@pytest.mark.parametrize(
    ("recorded", "asked", "cropped"),
    [
        (None, None, False),
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (None, True, True),
    ],
)
def test_the_centre_is_cropped_as_asked_for_or_else_as_recorded(
    fixture: Path, tmp_path: Path, recorded: bool | None, asked: bool | None, cropped: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fixture, folder)
    if recorded is not None:
        _record(folder, recorded)
    seen = []
    policy = _policy(folder, crop=asked)
    policy._model.vision_backbone.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].clone())
    )
    observation = _observe()
    policy.predict([observation])
    pixels = pixel_values(
        [observation.image], device=torch.device("cpu"), dtype=torch.float32, crop=cropped
    )
    assert torch.equal(seen[0], pixels)


def _record(folder: Path, value: object) -> None:
    path = folder / "preprocessor_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"center_crop": value}))


def test_a_crop_that_is_recorded_as_neither_true_nor_false_is_refused(
    fixture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fixture, folder)
    _record(folder, "yes")
    with pytest.raises(CheckpointError, match="center_crop is 'yes', expected true or false"):
        _policy(folder)


# Choosing and refusing


def test_an_unknown_key_stops_with_the_list_of_known_ones(fixture: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        _policy(fixture, "crane_x8")
    assert "VLA_UNNORM_KEY=crane_x8" in str(caught.value)
    assert "known: bridge_orig, crane_x7" in str(caught.value)


@pytest.mark.parametrize("dimensions", [1, 6, 9])
def test_statistics_with_other_dimensions_are_refused(fixture: Path, dimensions: int) -> None:
    loaded = loading.load(fixture)
    action = {"q01": [0.0] * dimensions, "q99": [1.0] * dimensions}
    loaded.model.norm_stats["other"] = {"action": action}
    with pytest.raises(CheckpointError, match=f"have {dimensions} dimensions, expected 8"):
        OpenVLAPolicy(loaded, ModelOptions(unnorm_key="other"))


def test_a_checkpoint_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        _policy(CHECKPOINT)


@pytest.mark.parametrize("device", ["cuda:63", "gpu", "tpu:0:1"])
def test_a_device_that_is_not_there_is_named_with_the_remedy(tiny: Path, device: str) -> None:
    with pytest.raises(PolicyLoadError, match=f"VLA_DEVICE={device}"):
        load_policy("openvla", ModelOptions(str(tiny), device))


def test_openvla_without_a_model_says_what_to_set() -> None:
    with pytest.raises(PolicyLoadError, match="set VLA_MODEL_PATH"):
        load_policy("openvla")


def test_a_machine_without_torch_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from crane_x7_vla_rl.policies.base import ModelOptions\n"
        "from crane_x7_vla_rl.policies.load import load_policy\n"
        "load_policy('openvla', ModelOptions('some/model'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "VLA_MODEL_PATH=some/model: policy 'openvla' needs the package torch" in last
    assert "crane-x7-remote[train]" in last


# Builder and tokenizer


def test_the_same_seed_builds_the_same_checkpoint(tiny: Path, tmp_path: Path) -> None:
    again, other = builder.build(tmp_path / "a"), builder.build(tmp_path / "b", seed=1)
    names = sorted(path.name for path in tiny.iterdir())
    assert names == [
        "config.json",
        "dataset_statistics.json",
        "model.safetensors",
        "policy.json",
        "tokenizer.json",
    ]
    assert all((again / name).read_bytes() == (tiny / name).read_bytes() for name in names)
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (tiny / weights).read_bytes()


def test_what_random_weights_want_is_inside_the_limits_and_near_the_rest_pose(tiny: Path) -> None:
    policy = _policy(tiny)
    for seed in range(5):
        (chunk,) = policy.predict([_observe(seed=seed)])
        target = chunk.position_rad[0]
        assert (target >= LOWER_RAD).all()
        assert (target <= UPPER_RAD).all()
        assert np.abs(target - HOME_RAD)[:7].max() <= 0.31


def test_a_trained_model_is_not_built_over(tmp_path: Path) -> None:
    folder = builder.build(tmp_path)
    builder.build(folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["random_weights"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="did not build"):
        builder.build(folder)
    assert builder.main([str(folder)]) == 1


def test_prompts_start_with_bos_differ_and_come_back_from_their_ids(tiny: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer, raw = (
        PromptTokenizer(tiny / "tokenizer.json"),
        Tokenizer.from_file(str(tiny / "tokenizer.json")),
    )
    texts = [*builder.instructions(), "赤いキューブを持ち上げて", "größer 🤖"]
    seen = set()
    for text in texts:
        ids = tokenizer(text).tolist()
        assert ids[0] == 1
        assert ids[-1] != 29871
        assert max(ids) < builder.TOKENS
        assert raw.decode(ids) == prompt(text)
        seen.add(tuple(ids))
    assert len(seen) == len(texts)


def test_the_final_29871_and_a_missing_bos_are_set_right(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<unk>", "a", "b", "In", "Out:"], start=5)}
    tokenizer = Tokenizer(models.WordLevel(words | {"Out:": 29871}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = PromptTokenizer(tmp_path / "tokenizer.json")("a").tolist()
    assert ids[0] == 1
    assert 29871 not in ids


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        PromptTokenizer(tmp_path / "tokenizer.json")


# Whole commands


def _run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=115, check=False,
        env=CLEAN | environ,
    )  # fmt: skip


@pytest.mark.real_time
def test_infer_drives_a_robot_with_it(tiny: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    with FaultyRobot() as robot:
        done = _run(
            "infer", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(robot.port),
            "--policy-timeout", "5", "--trajectory-validity", "2", "--max-frame-age", "2",
            "--duration", "6", "--metrics", str(metrics),
            VLA_MODEL_PATH=str(tiny), VLA_DEVICE="cpu",
        )  # fmt: skip
        robot.assert_nothing_bad_arrived()
    assert done.returncode == 0, done.stderr
    assert "has random weights" in done.stderr
    assert json.loads(metrics.read_text())["trajectories"] > 5


def test_infer_with_an_unknown_key_ends_with_the_code_of_a_policy_that_does_not_load(
    tiny: Path,
) -> None:
    done = _run("infer", "--policy", "openvla", "--vla-device", "cpu", "--vla-unnorm-key", "x",
                VLA_MODEL_PATH=str(tiny))  # fmt: skip
    assert done.returncode == 5
    assert "known: crane_x7" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_runs_whole_with_random_weights_and_says_honestly_what_came_of_it(
    tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    done = _run(
        "demo", "--policy", "openvla", "--timeout", "2", "2", "--no-record",
        "--output-dir", str(tmp_path / "out"), "--json", str(path),
        VLA_MODEL_PATH=str(tiny), POLICY_TIMEOUT="5", TRAJECTORY_VALIDITY="2", MAX_FRAME_AGE="2",
    )  # fmt: skip
    assert done.returncode == 10, done.stderr
    assert f"{tiny} has random weights" in done.stdout
    report = json.loads(path.read_text())
    assert report["policy"] == "openvla"
    assert report["model"] == str(tiny)
    assert report["random_weights"] is True
    assert report["succeeded"] is False
    assert report["trajectories"] > 5
    assert report["controller"]["limit_violations"] == 0


def test_the_demo_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    done = _run("demo", "--policy", "openvla", "--output-dir", str(tmp_path))
    assert done.returncode == 3
    assert "policies.openvla.builder outputs/tiny" in done.stderr
