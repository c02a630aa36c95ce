"""`train` from a policy with OpenVLA-OFT's head: chunks are sampled, learned from, and saved."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_rig
import torch
import training_rig
from accelerate import Accelerator

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.policy import ChunkActor, load_chunks
from crane_x7_vla_rl.policies.openvla.run import gaussian
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner, Noise
from crane_x7_vla_rl.policies.openvla.weights import layout, loading
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.sim.vector.protocol import Steps
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import policy_files
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode
from crane_x7_vla_rl.training.rl import agent as agents
from crane_x7_vla_rl.training.rl.ppo_config import PpoConfig, ValueConfig
from crane_x7_vla_rl.training.rl.rollout import RolloutConfig, collect
from crane_x7_vla_rl.training.rl.update import UpdateIndex, update
from crane_x7_vla_rl.types import JointState, Observation
from crane_x7_vla_rl.vector_config import VectorConfig

pytestmark = pytest.mark.timeout(training_rig.PATIENCE_S + 100)
CONFIG = PpoConfig(
    minibatch_size=4, micro_batch_size=4, epochs=1, learning_rate=1e-3, target_kl=None,
    action_std=0.1, value=ValueConfig(hidden=16),
)  # fmt: skip
WHOLE = ("--no-use-lora", "--learning-rate", "1e-3")
STILL = ("--lora-targets", "q_proj,down_proj", "--keep-patches")
HEAD = ("--head-only", "--learning-rate", "1e-3")
KINDS = [
    pytest.param((), id="lora"), pytest.param(WHOLE, id="whole"), pytest.param(STILL, id="still"),
    pytest.param(HEAD, id="head"),
]  # fmt: skip


def rolling(config: PpoConfig = CONFIG, head_only: bool = False, **more: Any) -> RolloutConfig:
    """Return a configuration of a policy with heads, all of whose weights learn, or its head."""
    torch.set_num_threads(1)
    loaded = loading.load(rl_rig.chunk_base())
    chunks = load_chunks(loaded, ModelOptions(unnorm_key="crane_x7"))
    chunks.requires_grad_(not head_only)
    chunks.head.requires_grad_(True)
    torch.manual_seed(0)
    sampler = GaussianRunner(
        chunks, "crane_x7", Noise(config.action_std, config.action_correlation)
    )
    agent = agents.build(loaded.model, config, Accelerator(cpu=True), sampler=sampler)
    codec = Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    return RolloutConfig(rl_rig.Scripted({}), agent, codec, config, 4, seed=0, **more)


def start(run: Path, *more: str) -> list[str]:
    return rl_rig.flags(run, "--sft-checkpoint", str(rl_rig.chunk_base()), *more)


def test_a_buffer_holds_what_was_drawn_and_the_joints_it_was_drawn_for() -> None:
    config = rolling()
    found = collect(config, 0)
    assert found is not None
    buffer = found.buffer
    assert (buffer.tokens.dtype, buffer.tokens.shape) == (torch.float32, (4, 4, 32))
    assert buffer.state is not None
    assert buffer.state.shape == (4, 4, 8)
    sampler = config.agent.runner
    assert isinstance(sampler, GaussianRunner)
    same = sampler.state(np.tile(HOME_RAD, (4, 1)))
    torch.testing.assert_close(buffer.state[0], same)
    metrics = update(config.agent, buffer, CONFIG, UpdateIndex(0))
    assert metrics.ratio_error < 0.01, "the first ratio is 1: updates see what rollouts saw"
    assert metrics.policy_grad_norm > 0


def test_an_update_moves_model_head_and_projector_towards_what_was_rewarded() -> None:
    config = rolling(replace(CONFIG, learning_rate=1e-5))
    found = collect(config, 0)
    assert found is not None
    core = config.agent.core
    before = {name: p.detach().clone() for name, p in core.named_parameters()}
    liked = torch.zeros_like(found.buffer.advantages)
    liked[0, 0] = 1.0
    only = replace(found.buffer, advantages=liked)
    old = found.buffer.log_probs[0, 0, :16].sum()  # of the two steps that were executed
    update(config.agent, only, replace(CONFIG, normalise_advantages=False), UpdateIndex(0))
    parts = {"policy.language_model", "policy.vision_backbone", "head.", "proprio."}
    moved = {
        part for name, p in core.named_parameters() for part in parts
        if name.startswith(part) and not torch.equal(p, before[name])
    }  # fmt: skip
    assert moved == parts
    one, buffer = torch.tensor([0]), found.buffer
    with torch.no_grad():
        new = core(
            buffer.pixels(config.agent.policy, one), buffer.prompts_of(one), buffer.tokens[0, :1],
            1.0, False, None, buffer.states_of(one, torch.device("cpu")),
        ).log_probs[0, :16].sum()  # fmt: skip
    assert float(new) > float(old)


def test_a_head_that_learns_alone_starts_from_what_it_read_in_the_rollout() -> None:
    config = rolling(replace(CONFIG, learning_rate=1e-5), head_only=True)
    found = collect(config, 0)
    assert found is not None
    buffer, core = found.buffer, config.agent.core
    assert buffer.images.shape == (4, 4, 32, core.policy.config.text.hidden_size)
    whole = collect(rolling(), 0)
    assert whole is not None
    torch.testing.assert_close(buffer.log_probs, whole.buffer.log_probs)
    samples, cpu = torch.arange(16), torch.device("cpu")
    rest = samples, buffer.states_of(samples, cpu), buffer.tokens.flatten(0, 1)
    with torch.no_grad():
        ours = core(
            buffer.pixels(core.policy, samples), buffer.prompts_of(samples), rest[2], 1.0, False,
            None, rest[1],
        )  # fmt: skip
        model = gaussian.evaluate_gaussian(
            core.policy, (core.head, core.proprio),
            whole.buffer.pixels(core.policy, samples), buffer.prompts_of(samples), rest[1],
            rest[2], core.noise,
        )  # fmt: skip
    torch.testing.assert_close(ours.log_probs, model.log_probs, rtol=1e-3, atol=2e-3)
    before = {name: p.detach().clone() for name, p in core.named_parameters()}
    metrics = update(config.agent, buffer, CONFIG, UpdateIndex(0))
    assert metrics.ratio_error < 0.01
    moved = {
        name.partition(".")[0] for name, p in core.named_parameters()
        if not torch.equal(p, before[name])
    }  # fmt: skip
    assert moved == {"head", "value_head"}


@pytest.mark.parametrize("head_only", [False, True])
def test_no_head_moves_while_the_critic_learns_alone(head_only: bool) -> None:
    config = rolling(head_only=head_only)
    found = collect(config, 0)
    assert found is not None
    warm = replace(CONFIG, value=replace(CONFIG.value, warmup=1))
    before = {name: p.detach().clone() for name, p in config.agent.core.named_parameters()}
    for number, parts in ((0, {"value_head"}), (1, {"head", "value_head"})):
        update(config.agent, found.buffer, warm, UpdateIndex(number))
        moved = {
            name.partition(".")[0] for name, p in config.agent.core.named_parameters()
            if not torch.equal(p, before[name])
        }  # fmt: skip
        assert moved - {"policy", "proprio"} == parts
        assert bool(moved & {"policy", "proprio"}) == (number == 1 and not head_only)


def test_a_head_learns_at_its_own_rate_beside_adapters(tmp_path: Path) -> None:
    heads = []
    for name, rate in (("still", "0"), ("moves", "1e-3")):
        run = tmp_path / name
        rl_rig.again(*start(run, *STILL, "--head-learning-rate", rate, "--num-updates", "1"))
        found = next((run / "last").glob("action_head--*"))
        heads.append(torch.load(found, weights_only=True))
        adapters = policy_files.read_adapter(run / "last")
        assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)
    begun = torch.load(next(rl_rig.chunk_base().glob("action_head--*")), weights_only=True)
    assert all(torch.equal(heads[0][name], tensor) for name, tensor in begun.items())
    assert not all(torch.equal(heads[1][name], tensor) for name, tensor in begun.items())


def test_a_policy_of_tokens_has_no_head_to_learn_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = rl_rig.flags(tmp_path / "run", "--head-only")
    assert cli.main(["train", *given]) == ExitCode.CONFIG
    assert "predicts tokens, without" in capsys.readouterr().err


def test_patches_are_kept_where_vision_is_still_and_change_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "seen", tmp_path / "kept"
    for run, more in zip(runs, (STILL[:2], STILL), strict=True):
        rl_rig.again(*start(run, *more, "--num-updates", "2"))
    start_film, *films = (
        torch.load(next(folder.glob("vision_backbone--*")), weights_only=True)
        for folder in (rl_rig.chunk_base(), *(run / "last" for run in runs))
    )
    for film in films:
        assert film.keys() == start_film.keys()
        assert all(torch.equal(film[name], start_film[name]) for name in film)
    heads = [
        torch.load(next((run / "last").glob("action_head--*")), weights_only=True) for run in runs
    ]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("asked", "sent"), [(None, 4), (1, 1), (3, 3)])
def test_only_the_steps_to_execute_are_sent_and_a_decision_lasts_as_long(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, sent: int
) -> None:
    config = rolling(replace(CONFIG, horizon_s=20.0), execute_steps=asked)
    lengths: set[int] = set()
    monkeypatch.setattr(
        config.env, "send", lambda _, targets: lengths.add(targets.shape[1]), raising=True
    )
    assert collect(config, 0) is not None
    assert lengths == {sent}
    assert config.executed == sent
    assert config.discounts[0] == pytest.approx(np.exp(-0.2 * sent / 20))


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_drives_with_the_head_that_learned(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    rl_rig.again(*start(run, *kind, "--evaluate-every", "4", "--evaluate-episodes", "1",
                        "--evaluate-videos", "0", "--execute-steps", "2",
                        "--delay-s", "0.2"))  # fmt: skip
    image = np.full((48, 48, 3), 90, np.uint8)
    joints = np.array([0, 0.4, 0, -2, 0, -0.8, 1.6, 0.3])
    seen = Observation(image, JointState(joints, np.zeros(8)), "lift the red cube", 0.0)
    answers = []
    for folder in (rl_rig.chunk_base(), run / "checkpoint_2", run / "checkpoint_final"):
        policy = load_policy("openvla", ModelOptions(path=str(folder)))
        answers.append(policy.predict([seen])[0].position_rad)
        assert answers[-1].shape == (4, 8)
    for name, step in (("checkpoint_2", 2), ("checkpoint_final", 4)):
        assert checkpoint.problem(run / name) is None
        files = {path.name for path in (run / name).glob("*_checkpoint.pt")}
        assert files == {
            f"{kind}--{step}_checkpoint.pt"
            for kind in ("action_head", "proprio_projector", "vision_backbone")
        }
    assert np.abs(answers[0] - answers[2]).max() > 1e-4
    assert np.abs(answers[1] - answers[2]).max() > 1e-5
    assert PolicySpec.of(layout.find(str(run / "last"))).action_std == 0.02
    assert rl_rig.figures(run)[3]["evaluation_success"] is not None
    evaluated = json.loads((run / "evaluation/update_4/results.json").read_text())
    assert evaluated["execute_steps"] == 2
    assert evaluated["timing"]["delay_s"] == 0.2


def test_tries_narrow_from_update_to_update_and_the_checkpoint_names_the_last_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    run = tmp_path / "run"
    rl_rig.again(*start(run, "--action-std", "0.08", "--action-std-end", "0.02"))
    found = [one["entropy"] for one in rl_rig.figures(run)]
    each = 0.5 * math.log(2 * math.pi * math.e)
    widths = (0.08, 0.06, 0.04, 0.02)
    assert found == pytest.approx([each + math.log(width) for width in widths], abs=1e-4)
    assert PolicySpec.of(layout.find(str(run / "last"))).action_std == pytest.approx(0.02)


def test_evaluations_of_a_run_draw_as_widely_as_its_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as its start says, which was drawn from with another width, or with none."""
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    widths: list[float] = []
    real = ChunkActor.__init__

    def noted(actor: ChunkActor, *arguments: Any) -> None:
        real(actor, *arguments)
        widths.append(actor._noise.deviation)

    monkeypatch.setattr(ChunkActor, "__init__", noted)
    rl_rig.again(*start(
        tmp_path / "run", "--action-std", "0.08", "--action-std-end", "0.02", "--evaluate-every",
        "3", "--evaluate-episodes", "1", "--evaluate-videos", "0", "--evaluate-temperature", "1",
    ))  # fmt: skip
    assert widths == [pytest.approx(0.04)], "the third of four updates"


def test_the_checkpoint_names_the_correlation_that_it_was_reinforced_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane_x7_vla_rl.sim.vector.make.make", lambda _: rl_rig.Scripted({}))
    run = tmp_path / "run"
    rl_rig.again(*start(run, "--action-correlation", "0.9"))
    assert PolicySpec.of(layout.find(str(run / "last"))).action_correlation == 0.9
    assert all(one["ratio_error"] < 0.05 for one in rl_rig.figures(run))


class Tardy(rl_rig.Scripted):
    """Environments that say how late their answers came."""

    late = 0

    def receive(self, group: int) -> Steps:
        return replace(super().receive(group), late=np.full(2, self.late))


def late(config: RolloutConfig, steps: int, script: rl_rig.Script | None = None) -> RolloutConfig:
    """Return the same in environments whose answers come this late."""
    env = Tardy(script or {})
    env.late = steps
    env.send = config.env.send  # type: ignore[method-assign]
    return replace(config, env=env)  # type: ignore[arg-type]


def test_numbers_that_never_move_the_arm_are_not_learned_from() -> None:
    """Those before the delay, and after the end of an episode those that were still to come."""
    config = late(rolling(execute_steps=2, delay=1), 1, {(1, 0): "terminated"})
    found = collect(config, 0)
    assert found is not None
    assert found.buffer.action_mask is not None
    mask = found.buffer.action_mask.view(4, 4, 4, 8)
    assert bool((mask == mask[..., :1]).all()), "a step's numbers belong together"
    assert mask[0, 0, :, 0].tolist() == [False, True, True, False]
    assert mask[1, 0, :, 0].tolist() == [False, False, False, False], "it ended after one step"
    assert mask[1, 1, :, 0].tolist() == [False, True, True, False]
    drawn = rolling(replace(CONFIG, action_correlation=0.9), execute_steps=2, delay=1)
    found = collect(late(drawn, 1), 0)
    assert found is not None
    assert found.buffer.action_mask is not None
    mask = found.buffer.action_mask.view(4, 4, 4, 8)
    assert mask[0, 0, :, 0].tolist() == [True, True, True, False], "later ones depend on the first"


@pytest.mark.parametrize(("delay", "sent", "used"), [(0, 2, 2), (1, 3, 3), (3, 5, 4)])
def test_answers_that_come_late_are_sent_whole_and_learned_from_as_far_as_they_were_used(
    monkeypatch: pytest.MonkeyPatch, delay: int, sent: int, used: int
) -> None:
    config = rolling(replace(CONFIG, action_correlation=0.9), execute_steps=2, delay=delay)
    targets: list[np.ndarray] = []
    monkeypatch.setattr(config.env, "send", lambda _, chunk: targets.append(chunk), raising=True)
    found = collect(late(config, delay), 0)
    assert found is not None
    assert {chunk.shape for chunk in targets} == {(2, sent, 8)}
    for chunk in targets:  # after its last step a chunk stays there
        assert all(np.array_equal(chunk[:, 3], chunk[:, step]) for step in range(4, sent))
    mask = found.buffer.action_mask
    assert mask is not None
    assert bool((mask.view(4, 4, 4, 8) == (torch.arange(4) < used)[:, None]).all())


def test_environments_and_rollouts_have_the_same_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted, asked, sent = rl_rig.Scripted({}), list[VectorConfig](), set[tuple[int, ...]]()
    monkeypatch.setattr(scripted, "send", lambda _, targets: sent.add(targets.shape))
    monkeypatch.setattr(
        "crane_x7_vla_rl.sim.vector.make.make", lambda config: asked.append(config) or scripted
    )
    rl_rig.again(*start(tmp_path / "run", "--delay-s", "0.2", "--execute-steps", "2"))
    assert asked[0].delay == 1
    assert sent == {(2, 3, 8)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_one_that_was_never_stopped(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rl_rig.again(*start(whole, *kind))
    rl_rig.again(*start(parts, *kind, "--num-updates", "2"))
    rl_rig.again("--resume", str(parts), "--num-updates", "4", "--log-steps", "1")
    rl_rig.assert_same(parts, whole)
    for name in ("action_head", "proprio_projector", "vision_backbone"):
        one, other = (
            torch.load(run / f"last/{name}--4_checkpoint.pt", weights_only=True)
            for run in (parts, whole)
        )
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--critic", "own"), "ppo.value.critic cannot be used with"),
        (("--kl-coefficient", "0.1"), "ppo.kl_coefficient cannot be used with"),
        (("--keep-patches",), "training.keep_patches is true, but"),
        (("--sharding", "fsdp"), "training.sharding cannot be used with"),
        (("--execute-steps", "5"), "training.execute_steps is 5, but"),
        (("--action-std", "0"), "action_std"),
        (("--action-correlation", "1"), "action_correlation"),
        (("--delay-s", "-0.1"), "delay_s"),
        (("--delay-s", "0.2", "--least-delay-s", "0.3"), "env.least_delay_s is 0.3, expected at"),
    ],
)
def test_what_such_a_policy_cannot_do_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert cli.main(["train", *start(tmp_path / "run", *flags)]) == ExitCode.CONFIG
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
