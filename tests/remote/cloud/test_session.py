"""The session on the machine outlives its connection; its watchdog ends what nobody follows.

The machine is a real sshd; the trainer a stand-in of the same signals, lines and files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cloud_machine import CloudMachine
from containers import wait_for
from sshd_rig import make_key

from crane_x7_remote.cloud.self_end import SelfEnd
from crane_x7_remote.cloud.session import Limits, Look, Session, checked
from crane_x7_remote.cloud.ssh import Host, Ssh
from crane_x7_remote.errors import SettingsError

pytestmark = pytest.mark.usefixtures("sshd")

END = SelfEnd("nothing").shell()
RUN = "outputs/train/act_example"
PATIENT = Limits(dead_man_s=60, deadline_s=None, save_s=5)


@contextmanager
def session(folder: Path, **trainer: str) -> Iterator[tuple[CloudMachine, Session]]:
    key = make_key(folder / "key")
    public = key.with_name("key.pub").read_text()
    with (
        CloudMachine(folder / "machine", public, trainer=trainer) as machine,
        Ssh(Host(machine.address, "crane-x7-test", folder / "known_hosts", key)) as ssh,
    ):
        ssh.wait_for_login(10)
        made = Session(ssh, "0123abcd", machine.remote_dir)
        ssh.put({"job_kind": b"sft\n", "train.remote.yaml": b"{}\n"}, machine.remote_dir)
        yield machine, made


def ended(session: Session) -> Look:
    def over() -> Look | None:
        look = session.look(0)
        return (
            look if look.code is not None or (not look.alive and look.phase == "training") else None
        )

    found = wait_for(over, "the training has ended", 20)
    assert isinstance(found, Look)
    return found


def test_a_training_runs_to_its_end_without_any_connection(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="4") as (machine, made):
        made.guard(PATIENT, END, RUN)
        made.start("train")
        made.ssh.close()
        wait_for((machine.run_folder / "sessions/0123abcd/exit_code").exists, "it has ended", 20)
        made.ssh._control.mkdir()
        look = ended(made)
        assert (look.code, look.alive, look.saved, look.phase) == (0, False, 4, "training")
        assert b"step 4 of 4" in look.log
        assert look.free_mb > 0
        assert made.look(look.size).log == b""
        assert made.look(look.size - 5).log == look.log[-5:]


def test_megabytes_on_standard_error_that_nobody_reads_do_not_stop_it(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="2", TRAINER_NOISE="3000000") as (machine, made):
        made.guard(PATIENT, END, RUN)
        made.start("train")
        wait_for((machine.run_folder / "sessions/0123abcd/exit_code").exists, "it has ended", 20)
        whole = b""
        while (look := made.look(len(whole))).log:
            assert len(look.log) <= 1 << 18
            whole += look.log
        assert len(whole) == look.size > 3_000_000
        assert whole.endswith(b"End of training\n")


def test_start_and_watch_happen_once_however_often_they_are_told(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="3") as (machine, made):
        for _ in range(3):
            made.guard(PATIENT, END, RUN)
            made.start("train")
        look = ended(made)
        assert look.log.count(b"begun at 0") == 1
        watchers = [p for p in machine.processes() if "run-watch" in p.cmdline()]
        assert len(watchers) == 1


def test_stop_lets_the_training_save_and_end_with_code_0(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="1000", TRAINER_SAVE="1000") as (_, made):
        made.guard(PATIENT, END, RUN)
        made.start("train")
        wait_for(lambda: b"step 2" in made.look(0).log, "it trains")
        made.stop()
        look = ended(made)
        assert (look.code, look.ended) == (0, "stopped")
        assert look.saved is not None
        assert look.saved >= 2


@pytest.mark.parametrize("why", ["silence", "deadline"])
def test_the_watchdog_lets_it_save_and_then_ends_the_machine(why: str, tmp_path: Path) -> None:
    begin = Limits(3.0, None, 5)
    then = Limits(0.5, None, 5) if why == "silence" else Limits(3.0, 0.5, 5)
    with session(tmp_path, TRAINER_STEPS="1000", TRAINER_SAVE="1000") as (machine, made):
        made.guard(begin, END, RUN)
        made.start("train")
        wait_for(lambda: b"step 1" in made.look(0).log, "it trains", 20)
        made.guard(then, END, RUN)
        wait_for(lambda: machine.powered_off, "the machine has ended itself", 20)
        assert (machine.run_folder / "sessions/0123abcd/ended").read_text().strip() == why
        assert list(machine.run_folder.glob(f"{RUN}/checkpoints/0*"))
        assert not machine.trainers()


def test_a_watchdog_whose_session_is_removed_ends_nothing(tmp_path: Path) -> None:
    with session(tmp_path) as (machine, made):
        made.guard(Limits(1.0, None, 1), END, RUN)
        (machine.run_folder / "sessions/0123abcd/end.sh").unlink()

        def watches() -> bool:
            return any("run-watch" in process.cmdline() for process in machine.processes())

        wait_for(lambda: not watches(), "the watchdog has ended", 10)
        assert not machine.powered_off


def test_signs_of_life_keep_the_watchdog_quiet(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="1000") as (machine, made):
        made.guard(Limits(1.0, None, 5), END, RUN)
        made.start("train")
        end_s = time.monotonic() + 2.5
        while time.monotonic() < end_s:
            made.look(0)
            time.sleep(0.1)
        assert not machine.powered_off
        assert made.look(0).alive
        wait_for(lambda: machine.powered_off, "silence ends it", 20)


def test_a_trainer_that_does_not_save_in_time_is_killed(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="1000", TRAINER_STEP_S="60") as (machine, made):
        made.guard(Limits(0.5, None, 0.5), END, RUN)
        made.start("train")
        wait_for(lambda: machine.powered_off, "the machine has ended itself", 20)
        assert not machine.trainers()


def test_a_session_whose_processes_are_gone_without_a_code_has_vanished(tmp_path: Path) -> None:
    with session(tmp_path, TRAINER_STEPS="1000") as (machine, made):
        made.guard(PATIENT, END, RUN)
        made.start("train")
        wait_for(lambda: made.look(0).phase == "training", "it trains")
        for process in machine.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "sshd" not in process.name():
                    process.kill()
        assert wait_for(lambda: made.look(0).vanished, "it has vanished", 5)


@pytest.mark.parametrize("place", ["run", "/root/../etc", "/root/a b", "/root/$(x)", ""])
def test_a_working_folder_that_would_need_quotes_is_refused(place: str) -> None:
    with pytest.raises(SettingsError, match="--remote-dir"):
        checked(place)
