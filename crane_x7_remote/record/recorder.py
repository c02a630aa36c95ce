"""Events → episodes. The state machine of a recorder: waiting, recording, ended.

`handle` is called with each event and `tick` several times a second, by one thread. An episode ends
on an order, at its longest length, when a stream stops or a clock is stepped: then it is kept up to
there, or discarded, as the options say. One episode has one instruction.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crane_x7_remote.record.events import (
    BASE,
    Commanded,
    Decided,
    Event,
    Measured,
    Ordered,
    Picture,
    Told,
)
from crane_x7_remote.record.pace import Lost
from crane_x7_remote.record.spool import Spool
from crane_x7_remote.record.take import ActionSource, Take, TakePlan, TooShort
from crane_x7_remote.record.writing import EpisodeWriter, Finished
from crane_x7_remote.rosbridge.record_status import RecordStatus
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

HISTORY_S: Final = 1.0
"""Joints of this long before the start are part of an episode: its first frame is interpolated."""
COMMANDS: Final = 20
"""Trajectories before the start that may still run."""
CLOCKS_AGREE_S: Final = 0.5
"""With a larger difference, two streams' stamps count as not synchronised."""
PATIENCE_S: Final = 3.0
"""A loop's recorder says after this time why no episode begins."""


@dataclass(frozen=True)
class RecorderOptions:
    """What is recorded, and when an episode ends."""

    folder: Path
    fps: float
    cameras: Mapping[str, str]
    """Name → topic."""
    action: ActionSource
    joint_states_topic: str
    leader_topic: str = ""
    instruction: str | None = None
    gap_s: float = 0.5
    keeps_cut: bool = True
    """Whether an episode that a lost stream ended is kept up to there."""
    longest_s: float = 300.0
    follows_policy: bool = False
    """Record a loop: episodes start without an order, one per task."""


class Recorder:
    """Makes episodes of events and passes them to the writer."""

    def __init__(
        self,
        options: RecorderOptions,
        writer: EpisodeWriter,
        say: Callable[[str], None],
    ) -> None:
        """`say` tells the operator what has changed, in one line."""
        self.options, self._writer, self._say = options, writer, say
        self._instruction = options.instruction
        self._take: Take | None = None
        self._spool: Spool | None = None
        self._joints: deque[Measured] = deque(maxlen=2000)
        self._commands: deque[Commanded] = deque(maxlen=COMMANDS)
        self._decided: Decided | None = None
        """The newest; an episode that an image starts begins with it."""
        self._leads: dict[str, tuple[float, float]] = {}
        """Stream → stamp and arrival of its newest message."""
        self._waits = not options.follows_policy
        """Whether the next episode needs an order."""
        self._blocked: tuple[str, float] | None = None
        """Why a loop's episode does not begin, and since when; infinite: that was said."""
        self.failure: str | None = None
        """Why nothing more can be recorded."""
        self.discarded = self.cut = self.low = 0
        """Episodes that were discarded, ended early by a lost stream, or below their rate."""

    @property
    def is_recording(self) -> bool:
        """Whether an episode is being recorded."""
        return self._take is not None

    def status(self) -> RecordStatus:
        """Return the state for /vla/record_status."""
        take, kept = self._take, self._writer.kept
        return RecordStatus(
            recording=take is not None,
            episode=kept,
            frames=0 if take is None else take.frames,
            seconds=0.0 if take is None else take.seconds,
            kept=kept,
            folder=str(self.options.folder),
        )

    def missing(self) -> list[str]:
        """Return the topics that an episode needs and that have sent nothing yet."""
        options = self.options
        needed = {f"camera {name}": topic for name, topic in options.cameras.items()}
        needed["robot"] = options.joint_states_topic
        if options.action == "leader":
            needed["leader"] = options.leader_topic
        return [topic for stream, topic in needed.items() if stream not in self._leads]

    # --- in --------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Picture():
                frame = event.frame
                self._leads[f"camera {event.camera}"] = frame.stamp_s, frame.arrival_s
                if self._take is None and not self._waits and event.camera == BASE:
                    self._start("the loop", frame.arrival_s)
                self._pass(event)
            case Measured():
                joints = event.joints
                self._leads[event.arm] = joints.stamp_s, joints.arrival_s
                self._joints.append(event)
                self._pass(event)
            case Commanded():
                self._commands.append(event)
                self._pass(event)
            case Decided():
                self._decided = event
                self._pass(event)
            case Told():
                self._follow(event.instruction)
            case Ordered():
                self._obey(event)

    def tick(self, now_s: float) -> None:
        """End an episode whose streams have stopped, or that is long enough."""
        if self._take is None:
            return
        try:
            self._take.check(now_s)
        except Lost as lost:
            self._lose(str(lost))
        else:
            if self._take.frames > self.options.longest_s * self.options.fps:
                self._finish(f"{self.options.longest_s:g} s are over (--longest)")

    def end(self) -> None:
        """Keep the current episode."""
        if self._take is not None:
            self._finish("the recorder ends")

    def _pass(self, event: Picture | Measured | Commanded | Decided) -> None:
        take = self._take
        if take is None:
            return
        try:
            match event:
                case Picture():
                    take.picture(event)
                case Measured():
                    take.measured(event)
                case Commanded():
                    take.command(event)
                case Decided():
                    take.decided(event)
        except Lost as lost:
            self._lose(str(lost))
        except OSError as error:
            self._fail(error)
            self._lose("the disk is full or broken")

    def _fail(self, error: OSError) -> None:
        self.failure = (
            f"{self.options.folder}: an episode cannot be written ({why(error)}); free space and"
            f" --resume: the {self._writer.kept} episodes so far are kept"
        )
        self._say(self.failure)

    def _follow(self, instruction: str) -> None:
        if instruction == self._instruction:
            return
        if self._take is not None:
            self._finish("the instruction changed")
        self._instruction = instruction
        self._say(f"instruction: {shown(instruction)}")

    def _obey(self, event: Ordered) -> None:
        if event.word == "start":
            self._waits = not self.options.follows_policy
            if self._take is not None:
                self._say("already recording")
            else:
                self._start(event.by)
        elif event.word == "stop":
            self._waits = True
            if self._take is None:
                self._say("not recording")
            else:
                self._finish(f"stopped by {event.by}", event.success)
        elif event.word == "discard":
            self._waits = True
            if self._take is None:
                self._say("nothing to discard")
            else:
                self._drop(f"by {event.by}")

    # --- one episode -----------------------------------------------------------------------------

    def _start(self, by: str, now_s: float = 0.0) -> None:
        problem = self._obstacle()
        if problem is not None:
            self._say_blocked(problem, now_s)
            return
        self._blocked = None
        stamped, ahead_s = self._clock()
        options = self.options
        plan = TakePlan(
            options.fps, options.cameras, options.action, options.joint_states_topic,
            options.leader_topic, options.gap_s, stamped, ahead_s,
        )  # fmt: skip
        try:
            spool = Spool(options.folder)
        except OSError as error:
            self._fail(error)
            return
        self._spool, self._take = spool, Take(plan, spool)
        before: list[Measured | Commanded | Decided] = [*self._recent(), *self._commands]
        if self._decided is not None:
            before.append(self._decided)
        for earlier in before:
            self._pass(earlier)
        if self._take is not None:
            self._say(f"recording episode {self._writer.kept}, started by {by}")

    def _say_blocked(self, problem: str, now_s: float) -> None:
        """Say why no episode begins; a loop tries with every image, and is told once."""
        if not self.options.follows_policy:
            self._say(f"cannot start: {problem}")
        elif self._blocked is None or self._blocked[0] != problem:
            self._blocked = problem, now_s
        elif now_s - self._blocked[1] > PATIENCE_S:
            self._blocked = problem, float("inf")
            self._say(f"nothing is recorded yet: {problem}")

    def _obstacle(self) -> str | None:
        if self._writer.failure is not None:
            return str(self._writer.failure)
        missing = self.missing()
        if missing:
            return f"nothing yet on {', '.join(missing)}"
        if self._instruction is None:
            return 'no instruction; give --instruction, or crane-x7-remote say "…"'
        return None

    def _clock(self) -> tuple[bool, float]:
        """Return whether stamps are used, and how far those of the joints are ahead of arrivals."""
        ahead = [stamp_s - arrival_s for stamp_s, arrival_s in self._leads.values()]
        stamp_s, arrival_s = self._leads["robot"]
        if not all(stamp > 0 for stamp, _ in self._leads.values()):
            self._say("a stream has no stamps: frames are ordered by their arrival here")
            return False, 0.0
        if max(ahead) - min(ahead) > CLOCKS_AGREE_S:
            self._say(
                f"the streams' clocks differ by {max(ahead) - min(ahead):.1f} s: frames are ordered"
                " by their arrival here"
            )
            return False, 0.0
        return True, stamp_s - arrival_s

    def _recent(self) -> list[Measured]:
        """Return joints of the last moments, without those of before a step of the clock."""
        newest_s = self._leads["robot"][1]
        found: list[Measured] = []
        last_s: dict[str, float] = {}
        for event in reversed(self._joints):
            joints = event.joints
            too_old = joints.arrival_s < newest_s - HISTORY_S
            if too_old or joints.stamp_s > last_s.get(event.arm, float("inf")):
                break
            last_s[event.arm] = joints.stamp_s
            found.append(event)
        return found[::-1]

    def _lose(self, reason: str) -> None:
        self.cut += 1
        if self.options.keeps_cut:
            self._finish(reason)
        else:
            self._drop(reason)

    def _drop(self, reason: str) -> None:
        self.discarded += 1
        self._close()
        self._say(f"discarded: {reason}")

    def _finish(self, reason: str, success: bool | None = None) -> None:
        take, spool = self._take, self._spool
        assert take is not None
        assert spool is not None
        self._take = self._spool = None
        try:
            source = f"recording {self._writer.kept}"
            episode, report = take.episode(self._instruction or "", source, success)
        except TooShort as short:
            spool.close()
            self.discarded += 1
            self._say(f"discarded: {reason}; too short ({short})")
            return
        self.low += bool(report.low)
        for line in report.low:
            self._say(f"rate not kept: {line}")
        note = f"{report.frames} frames, {report.seconds:.1f} s"
        if report.left_out:
            note += f" ({report.left_out} more left out: the loop held and nobody moved the arm)"
        if success is not None:
            note += f", {'success' if success else 'failure'}"
        self._say(f"{note}; {reason}")
        self._writer.add(Finished(episode, spool, note))

    def _close(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._take = self._spool = None
