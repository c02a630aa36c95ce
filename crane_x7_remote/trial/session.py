"""A trial: for each episode home, start, drive, judgement. Keys and a judge → episodes.

Runs on the main thread; the loop runs on its own and does what it is told: rest, a move, or the
policy. A person decides with keys; a simulated robot may be judged by its scene.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crane_x7_remote.errors import GuardError
from crane_x7_remote.inference.feed import Tick
from crane_x7_remote.inference.targets import TargetError
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.rosbridge.record_status import Word
from crane_x7_remote.system.keys import Keys
from crane_x7_remote.trial import page, results
from crane_x7_remote.trial.attempt import Attempt, TickWatch
from crane_x7_remote.trial.driver import Mode, TrialLoop
from crane_x7_remote.trial.judge import SimJudge
from crane_x7_remote.trial.leader import LeaderArm
from crane_x7_remote.trial.moves import HomeMove, LeaderMove
from crane_x7_remote.trial.results import Episode, Result, TrialPlan
from crane_x7_remote.trial.screen import Lines, TrialScreen
from crane_x7_remote.trial.stages import KEYS, RESTING, START_KEYS, STOP_KEYS, Stage
from crane_x7_remote.trial.stopping import stop_guard
from crane_x7_vla_rl.types import Array

POLL_S: Final = 0.05
HOME_S: Final = 60.0
"""Longest time for the way home while nothing holds the arm back."""
SETTLE_S: Final = 1.5
"""After home: the gripper opens, the arm stops swinging, a hand puts the objects back."""
BLOCKED: Final = "the terminal took nothing, so the arm was braked; p continues"


@dataclass(frozen=True)
class TrialOptions:
    """How episodes begin and end."""

    home_rad: Array
    """(8,), where every episode begins."""
    starts_alone: bool
    """Start without Enter."""
    record: Callable[[Word, bool | None], None]
    """Tells a recorder to start, stop or discard an episode; with stop, whether it succeeded."""
    stop_link: LinkConfig
    """The guard's own way for a stop."""


class Quit(Exception):
    """A person or a signal ends the trial; what is finished is kept."""


class Retry(Exception):
    """The attempt is repeated."""


class TrialSession:
    """Runs the episodes of one trial."""

    def __init__(
        self,
        loop: TrialLoop,
        client: RosbridgeClient,
        plan: TrialPlan,
        options: TrialOptions,
        folder: Path,
        episodes: list[Episode],
        keys: Keys,
        screen: TrialScreen,
        judge: SimJudge | None = None,
        leader: LeaderArm | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        failure: Callable[[], BaseException | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`episodes` grows; `failure` is why the loop's thread has ended."""
        self._loop, self._client, self._plan, self._options = loop, client, plan, options
        self._folder, self.episodes = folder, episodes
        self._keys, self._screen = keys, screen
        self._judge, self._leader = judge, leader
        self._is_stopped, self._failure, self._clock = is_stopped, failure, clock
        self.ticks = TickWatch()
        self._stage = Stage.HOMING
        self._attempt: Attempt | None = None
        self._news = ""

    def note(self, tick: Tick) -> None:
        """Take a tick; called on the loop's thread."""
        self.ticks.note(tick, self._loop.mode)

    def run(self) -> None:
        """Run until the last episode, q or a signal; the arm rests at the end."""
        retries = 0
        try:
            while len(self.episodes) < self._plan.episodes:
                try:
                    self._go_home()
                    if not self._wait_ready():
                        continue
                    episode, pictures = self._run_attempt(retries)
                    self._keep(episode, pictures)
                    retries = 0
                except Retry:
                    retries += 1
        except Quit as quit_:
            self._loop.rest("the trial has ended")  # first: the terminal may take nothing
            self._screen.say(str(quit_))
        finally:
            self._loop.rest("the trial has ended")

    # --- before an attempt -----------------------------------------------------------------------

    def _go_home(self) -> None:
        """Drive home slowly; raises TargetError if the arm does not arrive."""
        move = self._begin_home()
        begun_s, arrived_s = self._clock(), None
        while arrived_s is None or self._clock() - arrived_s < SETTLE_S:
            key = self._key()
            match None if self._was_blocked() else key:
                case "p" if self._stage is Stage.HOMING:
                    self._rest(Stage.PAUSED, "paused by a person")
                case "p" if self._may_continue():
                    move, begun_s, arrived_s = self._begin_home(), self._clock(), None
                case "t" if self._stage is Stage.HOMING:
                    self._news = "take over while the policy drives; p pauses the way home"
            joints = self._client.joints()
            if self._stage is Stage.HOMING and (why := self._loop.stopped_by_guard) is not None:
                self._rest_with_guard(why)
            if self._stage is not Stage.HOMING:
                continue
            if joints is not None and move.is_there(joints.state.position_rad):
                arrived_s = arrived_s or self._clock()
            elif self._clock() - begun_s > HOME_S:
                state = self._loop.metrics.state
                self._rest(Stage.PAUSED, "the arm did not arrive at home")
                raise TargetError(
                    f"the arm is not at home after {HOME_S:g} s ({state}); move away what blocks"
                    " it, then continue with --resume"
                )
        self._loop.rest("at home, the next episode has not begun")

    def _begin_home(self) -> HomeMove:
        move = HomeMove(self._options.home_rad, self.ticks.gripper_rad)
        self._stage = Stage.HOMING
        self._loop.move(move)
        return move

    def _wait_ready(self) -> bool:
        """Wait until a person starts the episode, or reset the simulated scene; False: skipped."""
        self._stage = Stage.READY
        if self._judge is not None:
            self._arrange(self._judge)
            until_s = self._clock() + SETTLE_S
            self._wait_for(lambda: self._clock() > until_s)
            self._judge.begin()
        while not (self._options.starts_alone and self._stage is Stage.READY):
            key = self._key()
            if key == "p" and self._stage is Stage.STOPPED and self._may_continue():
                self._stage, self._news = Stage.READY, ""
            elif key in START_KEYS and self._stage is Stage.READY and self._may_continue():
                break
            elif key == "n":
                now_s = self._clock()
                skipped = Attempt(self._number, now_s).judged("skipped", "key", now_s, {}, 0)
                self._keep(replace(skipped, seed=self._plan.seed(self._number)), [])
                return False
        return True

    def _arrange(self, judge: SimJudge) -> None:
        """Let the simulated robot arrange the episode's scene, or the same one again."""
        seed = self._plan.seed(self._number)
        self._wait_for(judge.put_back if seed is None else lambda: judge.arrange(seed))

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._key()

    # --- an attempt ------------------------------------------------------------------------------

    def _run_attempt(self, retries: int) -> tuple[Episode, list[bytes]]:
        """Let the policy drive until the episode is judged; raises Retry and Quit."""
        attempt = self._attempt = Attempt(self._number, self._clock())
        self.ticks.take_holds()
        self._options.record("start", None)
        self._stage = Stage.DRIVING
        attempt.drive(self._clock())
        self._loop.drive(begins=True)
        success: bool | None = None
        try:
            result, reason = self._until_judged(attempt)
            success = None if result == "skipped" else result == "success"
            self._loop.rest(f"episode {attempt.number} was judged")
            holds = self.ticks.take_holds()
            episode = attempt.judged(result, reason, self._clock(), holds, retries)
            return replace(episode, seed=self._plan.seed(attempt.number)), attempt.pictures
        finally:
            self._loop.rest("the episode is over")
            self._options.record("discard" if success is None else "stop", success)
            self._attempt = None

    def _until_judged(self, attempt: Attempt) -> tuple[Result, str]:
        verdicts: dict[str | None, Result] = {"s": "success", "f": "failure", "n": "skipped"}
        while True:
            key = self._key()
            if self._was_blocked():
                key = None
            now_s = self._clock()
            if key in verdicts:
                return verdicts[key], "key"
            if key == "r":
                raise Retry
            if key is not None:
                self._change(attempt, key, now_s)
            attempt.look(self._client.latest_frame(), now_s)
            is_driven = self._stage in (Stage.DRIVING, Stage.LEADER)
            if is_driven and (why := self._loop.stopped_by_guard) is not None:
                attempt.notes.append(f"the guard was stopped: {why}")
                self._rest_with_guard(why)
            if self._stage is Stage.DRIVING:
                if self._judge is not None and self._judge.verdict():
                    return "success", "judge"
                if attempt.driven_s(now_s) > self._plan.timeout_s:
                    return "failure", f"timeout of {self._plan.timeout_s:g} s"

    def _change(self, attempt: Attempt, key: str, now_s: float) -> None:
        """Pause, continue, take over or give back."""
        if key == "p" and self._stage is Stage.DRIVING:
            self._rest(Stage.PAUSED, "paused by a person")
        elif (key == "p" and self._stage in RESTING) or (
            key == "t" and self._stage in (Stage.LEADER, Stage.HAND)
        ):
            if self._may_continue():
                self._stage, self._news = Stage.DRIVING, ""
                attempt.drive(now_s)
                self._loop.drive(begins=False)
        elif key == "t":
            self._take_over(attempt, now_s)

    def _take_over(self, attempt: Attempt, now_s: float) -> None:
        if self._leader is None:
            self._stage = Stage.HAND
            self._loop.rest("a person moves the arm by hand", by_hand=True)
            self._news = "the arm is held; to move it by hand, switch its torque off at the robot"
            attempt.take_over("hand", now_s)
        elif self._may_continue():
            self._stage = Stage.LEADER
            self._loop.move(LeaderMove(self._leader), intervention=True)
            self._news = "the arm moves slowly to the leader's pose, then follows it"
            attempt.take_over("leader", now_s)

    # --- rest and stop ---------------------------------------------------------------------------

    def _rest(self, stage: Stage, why: str) -> None:
        """Brake the arm and hold it."""
        rested_s = self._loop.rested_s
        self._loop.rest(why)
        self._stage, self._news = stage, why
        if self._attempt is not None:
            self._attempt.rest(self._clock() if rested_s is None else rested_s)

    def _was_blocked(self) -> bool:
        """Whether the loop has rested because this thread waited for a terminal that took nothing;
        then drop the keys that were typed meanwhile, except those that stop or end."""
        if not self._loop.is_unattended:
            return False
        why = self._loop.stopped_by_guard
        if self._attempt is not None:
            self._attempt.notes.append(BLOCKED if why is None else f"the guard was stopped: {why}")
        if why is None:
            self._rest(Stage.PAUSED, BLOCKED)
        else:
            self._rest_with_guard(why)
        while (key := self._keys.next()) is not None:
            self._obey(key)
        return True

    def _rest_with_guard(self, why: str) -> None:
        """The guard was stopped, by a person or because it lost the link."""
        self._rest(Stage.STOPPED, f"the guard was stopped: {why}")
        if not self._keys.has_ended:
            self._news += "; `crane-x7-remote resume`, then p, continue"

    def _may_continue(self) -> bool:
        """Whether nothing but the trial holds the arm; say what does."""
        stopped = self._loop.guard_stopped
        if stopped is not None:
            self._news = f"the guard is stopped ({stopped}): run `crane-x7-remote resume` first"
        return stopped is None

    def _stop(self) -> None:
        """Brake at once, then stop the guard: it stays stopped until `resume`."""
        has_guard = self._loop.guard_was_there
        self._rest(Stage.STOPPED, "stopped by a person")
        if self._attempt is not None:
            self._attempt.notes.append("stopped by a person")
        if not has_guard:
            self._news = "braked; there is no guard to stop: use the emergency stop if in doubt"
            return
        threading.Thread(target=self._confirm_stop, name="stop", daemon=True).start()

    def _confirm_stop(self) -> None:
        link = self._options.stop_link
        self._news = stop_guard(self._loop, self._client, link, self._clock)

    # --- keys, screen, files ---------------------------------------------------------------------

    @property
    def _number(self) -> int:
        return len(self.episodes) + 1

    def _key(self) -> str | None:
        """Wait for POLL_S at most; carry out q and the stop keys, return any other key."""
        self._loop.attend(not self._keys.has_ended)
        self._client.check()
        failure = self._failure()
        if failure is not None:
            raise failure
        if self._is_stopped():
            raise Quit("ended by a signal")
        self._show()
        if self._keys.has_ended:
            if self._judge is None:
                raise Quit("there are no more keys: the input or the terminal was closed")
            if self._stage in RESTING:
                raise GuardError(
                    f"{self._news}; run `crane-x7-remote resume`, then continue with"
                    f" --resume {self._folder}"
                )
            time.sleep(POLL_S)
            return None
        key = self._keys.next(POLL_S)
        return None if key is None or self._obey(key) else key

    def _obey(self, key: str) -> bool:
        """Carry out a key that stops or ends, at every stage; False for any other."""
        if key == "q":
            raise Quit("ended by q")
        if key in STOP_KEYS:
            self._stop()
        return key in STOP_KEYS

    def _show(self) -> None:
        number = min(self._number, self._plan.episodes)
        so_far = results.rate(self.episodes)
        done = f" · {so_far.in_words()}" if so_far.counted else ""
        metrics, attempt = self._loop.metrics, self._attempt
        words = []
        if attempt is not None:
            driven_s = attempt.driven_s(self._clock())
            words.append(f"{driven_s:.1f} of {self._plan.timeout_s:g} s")
        if metrics.rate_hz is not None:
            words.append(f"{metrics.rate_hz:.1f} Hz")
        if self._loop.mode is not Mode.REST:
            words.append(str(metrics.state))
        if not self._loop.guard_is_there:
            words.append("no guard")
        self._screen.show(
            Lines(
                head=f"episode {number} of {self._plan.episodes}: {self._plan.task}{done}",
                stage=str(self._stage),
                numbers=" · ".join(words),
                keys=KEYS[self._stage],
                news=self._news,
            )
        )

    def _keep(self, episode: Episode, pictures: list[bytes]) -> None:
        """Put the episode on the disk, its images before the file that names them."""
        if episode.frames:
            page.save_frames(self._folder, episode.number, pictures)
        self.episodes.append(episode)
        results.save(self._folder, self._plan, self.episodes)
        page.write(self._folder, self._plan, self.episodes)
        helped = " with help" if episode.result == "success" and episode.interventions else ""
        self._news = ""
        self._screen.say(
            f"episode {episode.number}: {episode.result}{helped}, {episode.reason}, after"
            f" {episode.seconds:.1f} s of driving"
        )
