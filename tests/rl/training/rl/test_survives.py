"""`train` survives kills, signals, lost simulations, NaN, a lack of memory, disk or GPU."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rl_rig
import torch
import training_rig
from rl_rig import Scripted
from warm_process import WarmProcess

from crane_x7_vla_rl.policies import cuda_devices
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.vector import make as vector
from crane_x7_vla_rl.sim.vector import maniskill_gpu as vector_gpu
from crane_x7_vla_rl.sim.vector.maniskill_gpu import Machine
from crane_x7_vla_rl.sim.vector.protocol import Views
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import resume
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode, ResumeError
from crane_x7_vla_rl.training.rl import loop as rl
from crane_x7_vla_rl.training.rl.agent import Agent

pytestmark = pytest.mark.timeout(2 * training_rig.PATIENCE_S)
SHORT = ("--num-updates", "3", "--save-every", "1", "--rollout-steps", "3")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process need no simulation."""
    monkeypatch.setattr(vector, "make", lambda _: Scripted({}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on scripted scenes that was never stopped."""
    run = tmp_path_factory.mktemp("survives") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector, "make", lambda _: Scripted({}))
        rl_rig.train(run, *SHORT)
    return run


def copied(whole: Path, folder: Path) -> Path:
    return Path(shutil.copytree(whole, folder / "run", symlinks=True))


# --- kill -9 --------------------------------------------------------------------------------------


def dying(run: Path, phase: str, moment: int) -> None:
    """Start or resume a run that is killed at that moment."""
    argv = ["--resume", str(run)] if checkpoint.newest(run) else rl_rig.flags(run, *SHORT)
    first = ("dying_trainer", "at", phase, str(moment), str(run))
    process = WarmProcess(["train", *argv], training_rig.ON_CPU, first)
    said, _ = process.communicate(training_rig.PATIENCE_S)
    assert process.returncode == -signal.SIGKILL, said


LIVES = (
    ("files", 2), ("files", 12), ("rollout", 9),
    ("learning", 3), ("rollout", 4), ("files", 3), ("files", 6), ("files", 10), ("files", 14),
    ("files", 16), ("learning", 7),
    ("files", 5), ("files", 9), ("files", 13), ("files", 16), ("rollout", 2), ("learning", 4),
)  # fmt: skip
"""A save changes about 15 files, opening a run 4. A rollout has 6 steps, an update 5 passes. Each
process resumes from the last checkpoint of the one before."""
FEW_LIVES = (*LIVES[:3], ("files", 14), ("files", 16), ("learning", 7), ("files", 13))
"""One or two of each kind, three within a save."""


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("lives", "least_inside"), [(FEW_LIVES, 2), pytest.param(LIVES, 5, marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_in_rollout_update_and_save_again_and_again_learns_the_same(
    whole: Path, tmp_path: Path, lives: Sequence[tuple[str, int]], least_inside: int
) -> None:
    run, inside, step = tmp_path / "run", 0, 0
    for phase, moment in lives:
        dying(run, phase, moment)
        inside += any(run.glob(f"{checkpoint.ASIDE}checkpoint*"))
        last = checkpoint.newest(run)
        if last is None:
            shutil.rmtree(run)  # killed before the first save: there is nothing to resume from
            continue
        load_policy("openvla", ModelOptions(path=str(last)))
        assert checkpoint.step_of(last) >= step
        step = checkpoint.step_of(last)
    assert inside >= least_inside, "it was hardly ever killed within a save"
    rl_rig.again("--resume", str(run))
    rl_rig.assert_same(run, whole)


def members(group: int) -> dict[int, int]:
    """Return {process: parent} of a process group."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has just ended
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.ppid()
    return found


def simulations(group: int) -> list[int]:
    """Return the processes of a trainer that simulate: its children's children."""
    found = members(group)
    return [process for process, parent in found.items() if parent in found and parent != group]


def wait_for_the_end(group: int) -> None:
    end_s = time.monotonic() + 60
    while members(group):
        assert time.monotonic() < end_s, "simulations outlive their trainer"
        time.sleep(0.02)


def wait_for(process: WarmProcess, reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + training_rig.PATIENCE_S
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end_s
        time.sleep(0.002)


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_kill_9_ends_the_simulations_too_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    process = WarmProcess(["train", *rl_rig.flags(run, *rl_rig.WHOLE)], training_rig.ON_CPU)
    wait_for(process, lambda: lines(run) >= 3)
    assert simulations(process.pid)
    process.kill()
    process.communicate(60)
    wait_for_the_end(process.pid)
    rl_rig.again("--resume", str(run))
    rl_rig.assert_same(run, rl_rig.whole())


# --- signals and simulations ----------------------------------------------------------------------


def test_a_simulation_is_lost_and_then_a_sigterm_for_the_whole_group_saves_and_ends_well(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    argv = rl_rig.flags(run, "--num-updates", "9999", "--save-every", "9999")
    process = WarmProcess(["train", *argv], training_rig.ON_CPU)
    wait_for(process, lambda: lines(run) >= 1)
    (victim,) = simulations(process.pid)
    os.kill(victim, signal.SIGKILL)
    wait_for(process, lambda: any(one["discarded"] for one in rl_rig.figures(run)))
    done = lines(run)
    wait_for(process, lambda: lines(run) > done)
    process.send_group(signal.SIGTERM)
    said, _ = process.communicate(training_rig.PATIENCE_S)
    assert process.returncode == 0, said
    assert said.count("restarted, episodes of environments") == 1, said
    last = checkpoint.newest(run)
    assert last is not None
    assert checkpoint.step_of(last) == lines(run)
    wait_for_the_end(process.pid)


# --- checkpoints that are not whole ---------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: cut(folder / "adapter_model.safetensors"), "bytes, expected"),
        (lambda folder: cut(folder / "training_state/tensors.pt"), "bytes, expected"),
        (lambda folder: (folder / "value_head.safetensors").unlink(), "is missing"),
        (lambda folder: cut(folder / checkpoint.MARKER), "cannot be read"),
        (lambda folder: (folder / checkpoint.MARKER).unlink(), "is missing"),
    ],
)
def test_a_truncated_checkpoint_gives_way_to_the_last_complete_one_and_that_is_said(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None], said: str,
) -> None:  # fmt: skip
    run = copied(whole, tmp_path)
    damage(run / "checkpoint_final")
    assert resume.locate(run / "checkpoint_final") == run / "checkpoint_2"
    assert f"{run / 'checkpoint_final'} is not a complete checkpoint: " in caplog.text
    assert said in caplog.text
    assert "resuming from that one" in caplog.text
    assert resume.locate(run) == run / "checkpoint_2"


@pytest.mark.usefixtures("scripted")
def test_what_goes_on_from_the_one_before_ends_as_the_whole_run(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(whole, tmp_path)
    cut(run / "checkpoint_final/adapter_model.safetensors")
    with caplog.at_level(logging.INFO):
        rl_rig.again("--resume", str(run / "last"))
    assert f"resuming from {run / 'checkpoint_2'}" in caplog.text
    rl_rig.assert_same(run, whole)


def test_without_any_complete_checkpoint_there_is_nothing_to_go_on_from(
    whole: Path, tmp_path: Path
) -> None:
    run = copied(whole, tmp_path)
    for folder in checkpoint.complete(run):
        cut(folder / "adapter_model.safetensors")
    with pytest.raises(ResumeError, match="no complete one is next to it"):
        resume.locate(run / "checkpoint_1")


# --- what goes wrong in a run ---------------------------------------------------------------------


class Damaged(Scripted):
    """Scenes in which joints or rewards are NaN or infinite from the second rollout on."""

    def __init__(self, what: str) -> None:
        super().__init__({})
        self.what, self.asked = what, 0

    def receive(self, group: int) -> Any:
        self.asked += 1
        if self.asked > 6 and self.what == "reward":
            self.reward = math.nan
        return super().receive(group)

    def _views(self, group: int, rows: Any, final: int) -> Views:
        views = super()._views(group, rows, final)
        if self.asked > 6 and self.what == "observation":
            views.state_rad[0, 3] = np.nan
        return views


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("observation", r"update 2, step 1: the measured joints of row 0 are \[.*nan"),
        (
            "reward",
            r"update 2, step 0: environment 0 returned the reward nan, expected a finite number",
        ),
    ],
)
def test_nan_from_a_simulation_ends_the_run_with_what_was_learned_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    what: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(vector, "make", lambda _: Damaged(what))
    run = tmp_path / "run"
    argv = ["train", *rl_rig.flags(run, *SHORT, "--save-every", "9")]
    assert cli.main(argv) == ExitCode.NOT_FINITE
    assert_said(capsys.readouterr().err, said, run / "checkpoint_1")


def assert_said(error: str, said: str, saved: Path) -> None:
    """Assert that the last line says so, and that `saved` is whole."""
    (line,) = [text for text in error.splitlines() if text.startswith("crane-x7-vla-rl train: ")]
    assert re.search(said, line), line
    assert f"--resume {saved}" in line
    assert checkpoint.problem(saved) is None


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("minibatch", "said"),
    [
        ("4", r"update 2, minibatch \d: the policy loss is"),
        ("12", "update 3: log_probs of step 0 .* made the policy output NaN, so it is not saved"),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], minibatch: str, said: str
) -> None:
    """A step that is far too long makes the next minibatch's loss, or the next rollout, NaN."""
    run = tmp_path / "run"
    rl_rig.train(run, *SHORT, "--num-updates", "1")
    more = ("--num-updates", "9", "--learning-rate", "1e30", "--minibatch-size", minibatch)
    more += ("--save-every", "9")
    assert cli.main(["train", "--resume", str(run), *more]) == ExitCode.NOT_FINITE
    last = checkpoint.newest(run)
    assert last is not None
    assert checkpoint.step_of(last) == 1
    assert_said(capsys.readouterr().err, said, last)
    assert all(float(tensor.abs().max()) < 1e6 for tensor in checkpoint_weights(run))


@pytest.mark.usefixtures("scripted")
def test_an_update_that_breaks_off_half_way_is_taken_back_before_what_was_learned_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*SHORT, "--epochs", "2", "--save-every", "9")
    rl_rig.train(tmp_path / "one", *more, "--num-updates", "1")
    real, calls = Agent.clip, iter(range(99))
    # Four minibatches in an update: the third of the second one goes wrong.
    monkeypatch.setattr(Agent, "clip", lambda self: math.nan if next(calls) == 6 else real(self))
    run = tmp_path / "run"
    assert cli.main(["train", *rl_rig.flags(run, *more)]) == ExitCode.NOT_FINITE
    said = "update 2, minibatch 3: .* The 2 minibatches of this update are discarded"
    assert_said(capsys.readouterr().err, said, run / "checkpoint_1")
    rl_rig.assert_same(run, tmp_path / "one")


@pytest.mark.usefixtures("scripted")
def test_a_first_update_that_breaks_off_leaves_what_ends_as_a_run_that_never_broke_off(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Agent.clip, iter(range(99))
    run = tmp_path / "run"
    with monkeypatch.context() as patch:  # two minibatches in an update
        patch.setattr(Agent, "clip", lambda self: math.nan if next(calls) == 1 else real(self))
        assert cli.main(["train", *rl_rig.flags(run, *SHORT)]) == ExitCode.NOT_FINITE
    assert checkpoint.step_of(run / "checkpoint_0") == 0
    rl_rig.again("--resume", str(run))
    rl_rig.assert_same(run, whole)


def checkpoint_weights(run: Path) -> Iterator[torch.Tensor]:
    """Yield all that a policy of the run's newest checkpoint computes with."""
    yield from loading.load(run / "last").model.state_dict().values()


ALLOCATION = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes"
)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("error", "part", "code", "said"),
    [
        (ALLOCATION, "collect", ExitCode.MEMORY,
         r"update 3, rollout: out of memory \(.*4000 bytes.*; \d+\.\d GB were in use"
         r".*lower --num-parallel-envs, now 2"),
        (MemoryError(), "collect", ExitCode.MEMORY, "--num-parallel-envs, now 2"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "update",
         ExitCode.MEMORY, r"update 3, learning: .*2\.00 GiB.*lower --micro-batch-size, now 3"),
        (SimError("simulation 0 was lost 3 times in a row"), "collect", ExitCode.SIMULATION,
         "simulation 0 was lost 3 times"),
    ],
)  # fmt: skip
def test_what_was_learned_is_saved_before_an_error_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], error: Exception, part: str, code: ExitCode, said: str,
) -> None:  # fmt: skip
    real, calls = getattr(rl, part), iter(range(9))

    def failing(*args: Any, **more: Any) -> Any:
        if next(calls) == 2:
            raise error
        return real(*args, **more)

    monkeypatch.setattr(rl, part, failing)
    run = tmp_path / "run"
    assert cli.main(["train", *rl_rig.flags(run, *SHORT, "--save-every", "9")]) == code
    assert_said(capsys.readouterr().err, said, run / "checkpoint_2")


@pytest.mark.usefixtures("scripted")
def test_an_error_that_is_a_fault_of_ours_is_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError(f"shapes do not match in {len(args)} arguments")

    monkeypatch.setattr(rl, "update", failing)
    with pytest.raises(RuntimeError, match=r"^shapes do not match"):
        rl_rig.train(tmp_path / "run", *SHORT)


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("room", [20_000, 100])
def test_a_full_disk_stops_the_run_and_what_was_saved_stays(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """Where there is room for 100 bytes, figures of an update cannot be written any more."""
    run = copied(whole, tmp_path)
    argv = ["train", "--resume", str(run), "--num-updates", "5"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        assert cli.main(argv) == ExitCode.OUTPUT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert os.strerror(errno.EFBIG) in said
    assert f"the last complete checkpoint is {run / 'checkpoint_final'}" in said
    assert "free some space" in said
    load_policy("openvla", ModelOptions(path=str(run / "last")))
    assert not list(run.glob(".tmp-*"))
    assert cli.main(argv) == 0
    assert checkpoint.step_of(run / "last") == 5
    assert [one["step"] for one in rl_rig.figures(run)] == [1, 2, 3, 4, 5]


# --- machines that lack something -----------------------------------------------------------------

HERE = Path(__file__)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (Machine(False, HERE, False), "torch sees no CUDA GPU.*nvidia-smi.*use --backend cpu"),
        (Machine(True, HERE / "gone.so", True), "GPU PhysX library .* is missing. Fetch it once"),
        (Machine(True, HERE, False), "no Vulkan device.*NVIDIA_DRIVER_CAPABILITIES=all"),
    ],
)
def test_a_machine_that_cannot_simulate_on_a_gpu_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    machine: Machine, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(cuda_devices, "count", lambda: int(machine.cuda))
    monkeypatch.setattr(vector_gpu, "this_machine", lambda: machine)
    argv = ["train", *rl_rig.flags(tmp_path / "run", "--backend", "gpu")]
    assert cli.main(argv) == ExitCode.SIMULATION
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert "Traceback" not in told
