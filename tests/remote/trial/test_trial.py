"""`crane-x7-remote trial` as a person uses it: a terminal, a simulated robot, its real guard."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from guard_rig import Caller, move_arm
from loop_rig import wait_until
from places import RIGS
from pty_rig import OnTerminal
from sim_robot_rig import Client, started, state_now
from websockets.sync.client import connect

from crane_x7_remote.errors import ExitCode, SettingsError
from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.trial.judge import SimJudge
from crane_x7_remote.trial.leader import LeaderArm
from crane_x7_remote.trial.moves import LeaderMove, NothingToFollowError
from crane_x7_vla_rl.data.lerobot import open_lerobot
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES

pytestmark = pytest.mark.timeout(300)

LEADER = "/leader/joint_states"
READY = re.compile(r"ready: .* on 127\.0\.0\.1 port (\d+), guard on port (\d+)")


@dataclass(frozen=True)
class Place:
    robot_port: int
    guard_port: int

    def command(self, *flags: str, policy: str = "slow") -> list[str]:
        script = str(RIGS / "infer_with_policy.py")
        at = ["--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(self.guard_port)]
        return [sys.executable, script, policy, "trial", *at, "--log-level", "error", *flags]


@contextmanager
def robot(*flags: str) -> Iterator[Place]:
    with started(
        "--port", "0", "--guard", "0", "--arm", "kinematic", "--control-rate", "60", *flags,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        match = READY.match(process.stdout.readline())
        assert match
        yield Place(int(match[1]), int(match[2]))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARD_TOPICS", f"{LEADER}=sensor_msgs/JointState")
        with robot() as found:
            yield found


def read(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/trial.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def resume_guard(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "resume", "--host", "127.0.0.1", "--port",
         str(place.guard_port)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def wait_stopped(place: Place) -> None:
    """Wait until the guard has stopped."""
    with Caller(place.guard_port, "/stop") as caller:
        caller.subscribe("/vla/guard", "std_msgs/String")
        caller.state(lambda state: state["stopped"] is not None)


def test_a_person_judges_each_episode_with_one_key(place: Place, tmp_path: Path) -> None:
    out = ["--output-dir", str(tmp_path), "--episodes", "4", "--timeout", "100"]
    with OnTerminal(place.command(*out)) as shown:
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(1.5)
        shown.type(b"s")
        shown.wait_for("episode 1: success, key")
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(2.5)
        shown.type(b"r")  # not good: the same episode again
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(2.5)
        shown.type(b"f")
        shown.wait_for("episode 2: failure, key")
        shown.wait_for("ready: reset the scene")
        shown.type(b"n")
        shown.wait_for("episode 3: skipped, key")
        shown.wait_for("ready: reset the scene")
        shown.type(b"q")
        assert shown.wait_end() == 0
        assert shown.is_restored
        assert b"1 of 2 succeeded, 50%" in shown.shown
        assert b"--resume" in shown.shown
        assert b"Traceback" not in shown.shown
    episodes = read(tmp_path)["episodes"]
    assert [each["result"] for each in episodes] == ["success", "failure", "skipped"]
    assert episodes[1]["retries"] == 1
    assert episodes[1]["frames"] >= 1
    assert episodes[0]["seconds"] >= 1.4
    (page,) = tmp_path.glob("*/failures.html")
    assert page.read_text().count("<img ") == episodes[1]["frames"]


def test_pause_takeover_and_stop_hold_the_arm_and_are_in_the_file(
    place: Place, tmp_path: Path
) -> None:
    out = ["--output-dir", str(tmp_path), "--episodes", "1", "--timeout", "100"]
    with OnTerminal(place.command(*out)) as shown:
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(1)
        shown.type(b"p")
        shown.wait_for("paused")
        time.sleep(1)
        shown.type(b"p")
        shown.wait_for("the policy drives")
        shown.type(b"t")
        shown.wait_for("taken over: by hand")
        time.sleep(1)
        shown.type(b"t")
        shown.wait_for("the policy drives")
        shown.type(b" ")
        shown.wait_for("the guard is stopped; `crane-x7-remote resume`")
        shown.type(b"p")
        shown.wait_for("run `crane-x7-remote resume` first")
        resume_guard(place)
        time.sleep(1.5)  # the guard speaks once a second
        shown.type(b"p")
        shown.wait_for("the policy drives")
        time.sleep(0.5)
        shown.type(b"s")
        assert shown.wait_end() == 0
        assert shown.is_restored
        assert b"success with help" in shown.shown
    content = read(tmp_path)
    (episode,) = content["episodes"]
    (help_,) = episode["interventions"]
    assert help_["kind"] == "hand"
    assert help_["seconds"] == pytest.approx(1.0, abs=0.8)
    assert "stopped by a person" in episode["notes"]
    assert episode["seconds"] < episode["total_s"] - 3  # pauses are no driving
    assert content["summary"]["with_help"] == 1
    assert content["summary"]["successes"] == 0


class Leader(threading.Thread):
    """A leader arm whose joint states come on its own topic."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._end = port, threading.Event()
        self.at = HOME_RAD + 0.25 * (HOME_RAD * 0 + 1) * [1, 0, 0, 0, 0, 0, 0, 0]
        self.late_s = 0.0
        """How long each state waits before it is sent, as in a backlog."""
        self._waiting: deque[tuple[float, str]] = deque()

    def run(self) -> None:
        with connect(f"ws://127.0.0.1:{self._port}", compression=None) as link:
            operation = protocol.advertise(LEADER, "sensor_msgs/JointState", id="leader")
            link.send(protocol.encode_json(operation))
            while not self._end.wait(0.02):
                now_s = time.time()
                state = messages.joint_state_to_ros(JOINT_NAMES, self.at, self.at * 0, now_s)
                text = protocol.encode_json(protocol.publish(LEADER, state))
                self._waiting.append((now_s, text))
                while self._waiting and now_s - self._waiting[0][0] >= self.late_s:
                    link.send(self._waiting.popleft()[1])

    def end(self) -> None:
        self._end.set()
        self.join(5)


def test_a_leader_arm_takes_over_and_gives_back(place: Place, tmp_path: Path) -> None:
    leader = Leader(place.robot_port)
    leader.start()
    out = ["--output-dir", str(tmp_path), "--episodes", "1", "--leader-topic", LEADER]
    try:
        with OnTerminal(place.command(*out)) as shown:
            shown.wait_for("ready: reset the scene")
            shown.type(b"\n")
            shown.wait_for("the policy drives")
            time.sleep(1)
            shown.type(b"t")
            shown.wait_for("taken over: the leader arm drives")
            pan = JOINT_NAMES[0]
            deadline_s = time.monotonic() + 20
            while abs(measured(place.robot_port)[pan] - leader.at[0]) > 0.05:
                shown.read()
                assert time.monotonic() < deadline_s
            shown.type(b"t")
            shown.wait_for("the policy drives")
            shown.type(b"f")
            assert shown.wait_end() == 0
    finally:
        leader.end()
    (episode,) = read(tmp_path)["episodes"]
    assert [each["kind"] for each in episode["interventions"]] == ["leader"]


def test_a_leader_whose_states_come_steadily_but_late_is_not_followed(place: Place) -> None:
    leader = Leader(place.robot_port)
    leader.start()
    try:
        with LeaderArm(ClientConfig("127.0.0.1", place.robot_port), LEADER) as arm:
            move = LeaderMove(arm)
            time.sleep(1)
            wait_until(lambda: (found := arm.pose()) and found[1] < 0.3, 20, "states in time")
            move.chunk(HOME_RAD, 0.0, 0.5)
            leader.late_s = 2.0
            time.sleep(2.5)
            before = arm._client.joints()
            wait_until(lambda: arm._client.joints() is not before, 20, "states after the gap")
            with pytest.raises(NothingToFollowError, match="s old"):
                move.chunk(HOME_RAD, 0.1, 0.5)
    finally:
        leader.end()


def measured(port: int) -> dict[str, float]:
    with connect(f"ws://127.0.0.1:{port}", compression=None) as link:
        operation = protocol.subscribe("/joint_states", "sensor_msgs/msg/JointState", id="a")
        link.send(protocol.encode_json(operation))
        state = protocol.decode(link.recv(timeout=5))["msg"]
    return dict(zip(state["name"], state["position"], strict=True))


def test_a_leader_that_is_not_there_is_named_with_what_to_set(place: Place, tmp_path: Path) -> None:
    done = subprocess.run(
        place.command("--output-dir", str(tmp_path), "--leader-topic", "/nobody"),
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.PIPE,
    )  # fmt: skip
    assert done.returncode in (ExitCode.PEER_UNREACHABLE, ExitCode.SETTINGS), done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_trial_is_resumed_where_it_was(place: Place, tmp_path: Path) -> None:
    flags = ["--episodes", "3", "--timeout", "2", "--start-alone"]
    with OnTerminal(place.command(*flags, "--output-dir", str(tmp_path))) as shown:
        shown.wait_for("episode 1: failure, timeout of 2 s")
        shown.wait_for("the policy drives")
        shown.process.send_signal(signal.SIGKILL)
        shown.wait_end()
    (folder,) = tmp_path.iterdir()
    wait_stopped(place)  # the driving loop has lost its link
    resume_guard(place)
    assert len(json.loads((folder / "trial.json").read_text())["episodes"]) == 1
    with OnTerminal(place.command("--start-alone", "--resume", str(folder))) as shown:
        shown.wait_for("episode 2: failure, timeout of 2 s")
        shown.wait_for("episode 3: failure, timeout of 2 s")
        assert shown.wait_end() == 0
    content = json.loads((folder / "trial.json").read_text())
    assert [each["number"] for each in content["episodes"]] == [1, 2, 3]
    assert content["summary"]["is_complete"] is True
    done = subprocess.run(
        place.command("--resume", str(folder), "--timeout", "9"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.SETTINGS
    assert "timeout_s is 9.0, expected 2.0" in done.stderr


def test_a_stopped_guard_ends_a_trial_that_nobody_attends(place: Place, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "crane_x7_remote", "stop", "--host", "127.0.0.1", "--port"]
    subprocess.run([*words, str(place.guard_port)], check=True, timeout=30, capture_output=True)
    try:
        sim = ["--judge", "sim", "--judge-port", str(place.robot_port)]
        done = subprocess.run(
            place.command("--output-dir", str(tmp_path), *sim), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        resume_guard(place)
    assert done.returncode == ExitCode.GUARD, done.stderr
    assert "crane-x7-remote resume" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_whose_terminal_nobody_reads_waits_after_a_stop(
    place: Place, tmp_path: Path
) -> None:
    """A terminal that takes no more, such as a stopped one, holds up whoever draws on it."""
    out = ["--output-dir", str(tmp_path), "--episodes", "1", "--timeout", "100"]
    with OnTerminal(place.command(*out)) as shown:
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        shown.hold_output(True)
        time.sleep(1)  # the trial draws
        stop = [sys.executable, "-m", "crane_x7_remote", "stop", "--host", "127.0.0.1", "--port"]
        subprocess.run([*stop, str(place.guard_port)], check=True, timeout=30, capture_output=True)
        resume_guard(place)
        with Caller(place.guard_port, "/") as caller:
            caller.subscribe("/vla/status", "std_msgs/String")
            time.sleep(1.5)  # a status is told once a second
            told = [
                json.loads(caller.next("publish", "/vla/status")["msg"]["data"])["hold"]
                for _ in range(3)
            ]
        shown.hold_output(False)
        assert told == ["paused"] * 3
        shown.wait_for("`crane-x7-remote resume`, then p, continue")
        shown.type(b"p")
        shown.wait_for("the policy drives")
        shown.type(b"q")
        assert shown.wait_end() == 0


def wait_status(place: Place, hold: str) -> None:
    """Wait until the loop tells that it holds for this reason."""
    with Caller(place.guard_port, "/") as caller:
        caller.subscribe("/vla/status", "std_msgs/String")
        deadline_s = time.monotonic() + 30
        while told_hold(caller) != hold:
            assert time.monotonic() < deadline_s


def told_hold(caller: Caller) -> str | None:
    status = caller.next("publish", "/vla/status", 10)["msg"]["data"]
    held: str | None = json.loads(status)["hold"]
    return held


def is_told(caller: Caller) -> bool:
    """Whether a loop tells its status within 4 s; it does so once a second."""
    try:
        caller.next("publish", "/vla/status", 4)
    except TimeoutError:
        return False
    return True


def wait_rest(place: Place) -> None:
    """Wait until the arm does not move."""
    deadline_s, before = time.monotonic() + 10, measured(place.robot_port)
    while True:
        time.sleep(0.5)
        now = measured(place.robot_port)
        if max(abs(now[name] - before[name]) for name in now) < 1e-3:
            return
        before = now
        assert time.monotonic() < deadline_s


def test_a_blocked_terminal_rests_the_arm_before_keys_and_time_limit_fail(
    place: Place, tmp_path: Path
) -> None:
    out = ["--output-dir", str(tmp_path), "--episodes", "1", "--timeout", "6"]
    with OnTerminal(place.command(*out, "--log-level", "info")) as shown:
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        shown.hold_output(True)
        wait_status(place, "paused")
        wait_rest(place)
        shown.type(b"pp")  # nothing happens, so a person presses it again
        time.sleep(6)  # as if the policy drove: the time limit counts only its driving
        shown.hold_output(False)
        shown.wait_for("the terminal took nothing, so the arm was braked")
        shown.type(b"p")
        shown.wait_for("the policy drives")
        shown.wait_for("episode 1: failure, timeout of 6 s")
        assert shown.wait_end() == 0
    (episode,) = read(tmp_path)["episodes"]
    assert "the terminal took nothing" in episode["notes"][0]
    assert episode["total_s"] > episode["seconds"] + 5


def test_a_signal_ends_the_loop_of_a_trial_whose_terminal_is_blocked(
    place: Place, tmp_path: Path
) -> None:
    with OnTerminal(place.command("--start-alone", "--output-dir", str(tmp_path))) as shown:
        shown.wait_for("the policy drives")
        shown.hold_output(True)
        time.sleep(0.6)  # the trial draws
        shown.process.send_signal(signal.SIGTERM)
        with Caller(place.guard_port, "/") as caller:
            caller.subscribe("/vla/status", "std_msgs/String")
            assert any(not is_told(caller) for _ in range(10)), "the loop has ended"
        wait_rest(place)
        assert shown.process.poll() is None, "it waits for its terminal"
        shown.hold_output(False)
        assert shown.wait_end() == 0
        assert shown.is_restored
        assert b"ended by a signal" in shown.shown


def test_a_signal_ends_in_order_and_restores_the_terminal(place: Place, tmp_path: Path) -> None:
    with OnTerminal(place.command("--start-alone", "--output-dir", str(tmp_path))) as shown:
        shown.wait_for("the policy drives")
        time.sleep(0.5)
        shown.process.send_signal(signal.SIGTERM)
        assert shown.wait_end() == 0
        assert shown.is_restored
        assert b"ended by a signal" in shown.shown
    assert read(tmp_path)["episodes"] == []


def test_without_keys_a_trial_names_the_way_that_needs_none(place: Place, tmp_path: Path) -> None:
    done = subprocess.run(
        place.command("--output-dir", str(tmp_path)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.SETTINGS
    assert "--judge sim" in done.stderr


def test_seeds_of_scenes_are_for_a_simulation(place: Place, tmp_path: Path) -> None:
    done = subprocess.run(
        place.command("--output-dir", str(tmp_path), "--first-seed", "3"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.SETTINGS
    assert "--first-seed is for --judge sim" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_robot_that_arranges_no_scene_is_named(place: Place) -> None:
    now_s = [0.0]
    judge = SimJudge("127.0.0.1", place.robot_port, "pick up the red cube", lambda: now_s[0])
    judge._client.publish = lambda _: True  # type: ignore[method-assign]
    judge._scene = {"seed": 5, "arranged": 2}
    assert not judge.arrange(5), "an older arrangement of the same seed does not count"
    judge._scene = {"seed": 5, "arranged": 3}
    assert judge.arrange(5)
    assert not judge.arrange(6)
    now_s[0] += 10.1
    with pytest.raises(SettingsError, match="did not arrange the scene of seed 6 within 10 s"):
        judge.arrange(6)
    judge.__exit__()  # never entered: its client holds an event loop


def scene(*, is_lifted: bool = False, **more: object) -> dict[str, str]:
    return messages.string(json.dumps({"cubes": {"red": {"lifted": is_lifted}}} | more))


@pytest.fixture
def judge() -> Iterator[Any]:
    """One whose link and clock are the test's."""
    now = SimpleNamespace(s=100.0)
    made: Any = SimJudge("127.0.0.1", 1, "pick up the red cube", lambda: now.s)
    made.now, made.sent = now, []
    made._client.publish = lambda operations: made.sent.extend(operations) or True
    yield made
    made.__exit__()  # never entered: its client holds an event loop


def test_a_scene_that_does_not_come_any_more_is_no_success(judge: Any) -> None:
    judge.begin()
    for _ in range(3):
        judge._hear(scene(is_lifted=True))
        assert not judge.verdict()
        judge.now.s += 0.2
    for _ in range(40):  # the link is down, with the task just fulfilled
        judge.now.s += 0.1
        assert not judge.verdict()
    for _ in range(5):
        judge._hear(scene(is_lifted=True))
        assert not judge.verdict(), "what happened meanwhile is unknown"
        judge.now.s += 0.2
    judge._hear(scene(is_lifted=True))
    assert judge.verdict()


def test_an_order_that_the_link_has_lost_is_repeated(judge: Any) -> None:
    judge._hear(scene(arranged=1, seed=4))
    for _ in range(3):
        assert not judge.arrange(5)
        judge.now.s += 1.5
        assert not judge.arrange(5)
        assert len(judge.sent) == 1, "no scene has come since: the robot may be slow"
        judge._hear(scene(arranged=1, seed=4))
        assert not judge.arrange(5)
        assert len(judge.sent) == 2
        judge.sent.pop()
    judge._hear(scene(arranged=2, seed=5))
    assert judge.arrange(5)
    judge._hear(scene(is_lifted=True))
    judge.sent.clear()
    assert not judge.put_back()
    judge.now.s += 1.5
    judge._hear(scene(is_lifted=True))
    assert not judge.put_back()
    assert len(judge.sent) == 2
    judge.now.s += 0.2
    judge._hear(scene())
    assert judge.put_back()


def test_a_task_that_the_policy_refuses_moves_nothing(place: Place, tmp_path: Path) -> None:
    command = place.command("--output-dir", str(tmp_path), "--judge", "sim")
    real = [sys.executable, "-m", "crane_x7_remote", *command[3:], "--policy", "color-servo"]
    done = subprocess.run(
        [*real, "--vla-task-instruction", "dance"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.TASK_REFUSED, done.stderr
    assert "dance" in done.stderr or "not understood" in done.stderr


def test_the_simulation_judges_a_real_policy_without_anybody(tmp_path: Path) -> None:
    """Physics, camera, guard and the colour servo: success by the scene, in two scenes."""
    with started(
        "--port", "0", "--guard", "0", "--seed", "1", "--image-size", "320x240", "--render", "cpu",
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        match = READY.match(process.stdout.readline())
        assert match
        place = Place(int(match[1]), int(match[2]))
        words = place.command("--output-dir", str(tmp_path), "--judge", "sim", "--judge-port",
                              str(place.robot_port), "--episodes", "2", "--first-seed",
                              "1000002")[3:]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "crane_x7_remote", *words, "--policy", "color-servo",
             "--vla-task-instruction", "pick up the red cube"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        with Caller(place.robot_port) as caller:
            last = state_now(Client(caller.link))
    assert done.returncode == 0, done.stderr
    assert (last["seed"], last["arranged"]) == (1_000_003, 2)
    content = read(tmp_path)
    assert [each["result"] for each in content["episodes"]] == ["success", "success"], content
    assert {each["reason"] for each in content["episodes"]} == {"judge"}
    assert [each["seed"] for each in content["episodes"]] == [1_000_002, 1_000_003]
    assert content["plan"]["first_seed"] == 1_000_002
    assert "2 of 2 succeeded, 100%" in done.stdout


def test_judged_episodes_are_recorded_with_the_takeover_marked(
    place: Place, tmp_path: Path
) -> None:
    recorded = tmp_path / "data"
    out = ["--output-dir", str(tmp_path / "out"), "--record", str(recorded), "--episodes", "1"]
    with OnTerminal(place.command(*out)) as shown:
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(2)
        shown.type(b"r")  # discarded
        shown.wait_for("ready: reset the scene")
        shown.type(b"\n")
        shown.wait_for("the policy drives")
        time.sleep(2)
        shown.type(b"t")
        shown.wait_for("taken over: by hand")
        move_arm(place.robot_port, 2.0)
        shown.type(b"t")
        shown.wait_for("the policy drives")
        time.sleep(1)
        shown.type(b"s")
        assert shown.wait_end(120) == 0, shown.shown[-3000:]
    source = open_lerobot(recorded)
    assert [episode.success for episode in source] == [True], "with help, but the task was done"
    marks = source.interventions()
    assert marks is not None
    assert 10 <= marks.sum() <= len(marks) - 10, marks
    assert not marks[:5].any(), marks
