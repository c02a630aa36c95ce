"""`crane-x7-remote demo`: a simulated robot, its guard and the loop as processes, with a report.

Each instruction runs until it is fulfilled for a second; then the next one is sent over rosbridge,
as an operator would send it. Video, plots and `report.json` are written to a new folder. Exit code
0 means that all instructions were fulfilled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from crane_x7_remote import settings as settings_module
from crane_x7_remote.demo import pictures, plots, report, summary
from crane_x7_remote.demo import plan as plan_module
from crane_x7_remote.demo.children import DemoProcess
from crane_x7_remote.demo.plan import DemoPlan
from crane_x7_remote.demo.recorder import Recording, RunRecorder
from crane_x7_remote.errors import ExitCode, OutputError
from crane_x7_remote.sim_robot.scene import fulfilled, grasped
from crane_x7_remote.system import signals
from crane_x7_vla_rl.file_errors import why

logger = logging.getLogger(__name__)

SIM_START_S = 180.0
LOOP_START_S = 60.0
MODEL_START_S = 900.0
"""The same if a model must be loaded first, possibly downloaded."""
HOLD_S = 1.0
"""How long an instruction must stay fulfilled before it counts as done."""
POLL_S = 0.1
NEEDED_BYTES = 50_000_000
"""A run leaves about a tenth of this."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `demo`."""
    plan_module.add_arguments(parser)
    add = parser.add_argument
    add("--output-dir", type=Path, metavar="DIR",
        help="folder of all runs; each adds one named by its time (OUTPUT_ROOT/demo)")  # fmt: skip
    add("--record", action=argparse.BooleanOptionalAction, default=True,
        help="write video and plots (on)")  # fmt: skip
    add("--gif", action="store_true", help="also write demo.gif, for a web page")
    add("--json", type=Path, metavar="PATH", help="also write the report to this file; - prints it")


def run(args: argparse.Namespace) -> int:
    """Run the demo; raises RemoteError if it cannot run."""
    plan = plan_module.read(args)
    plan_module.check(plan)
    _check_json(args.json)
    folder = _make_folder(args.output_dir or settings_module.output_root() / "demo")
    with _signals() as is_stopped:
        outcome, made = _show(plan, folder, is_stopped, with_view=args.record)
    report.write(made.report, folder / "report.json")
    if args.record:
        _write_pictures(outcome, made, folder, with_gif=args.gif)
    if args.json is not None:
        _hand_out(made.report, args.json)
    out = sys.stderr if args.json == Path("-") else sys.stdout
    print(summary.text(outcome, made.report, folder), file=out)
    return ExitCode.OK if outcome.succeeded else ExitCode.DEMO_TASK


@dataclass(frozen=True)
class Made:
    """Results of a run."""

    recording: Recording
    metrics: dict[str, Any]
    report: dict[str, Any]


def _show(
    plan: DemoPlan, folder: Path, is_stopped: Callable[[], bool], *, with_view: bool
) -> tuple[report.DemoResult, Made]:
    """Run both processes until the tasks are done, the time limit or a signal."""
    metrics_path = folder / "metrics.json"
    progress = _Progress(plan)
    progress.show("starting the simulated robot")
    with contextlib.ExitStack() as stack:
        robot = stack.enter_context(
            DemoProcess("sim-robot", plan_module.robot_command(plan), folder / "robot.log")
        )
        ready = robot.wait_for_line("ready", SIM_START_S, is_stopped)
        found = re.search(r" port (\d+), guard on port (\d+)", ready)
        recording, scene, guard = Recording(), {}, {}
        outcome = _outcome(plan, {}, _Stage(), 0.0)
        if found:
            recorder = stack.enter_context(
                RunRecorder(int(found[1]), plan.settings, with_view=with_view)
            )
            recording = recorder.recording
            command = plan_module.loop_command(plan, int(found[2]), metrics_path)
            loop = stack.enter_context(DemoProcess("infer", command, folder / "loop.log"))
            if plan.dashboard is not None:
                progress.note(f"dashboard: http://127.0.0.1:{plan.dashboard}")
            outcome = _watch(plan, recorder, (robot, loop), progress, is_stopped)
            if not is_stopped():
                time.sleep(pictures.TAIL_S)  # The last frames show the result.
            loop.stop()
            scene, guard = recorder.scene, recorder.guard
        progress.end()
    metrics = json.loads(metrics_path.read_text()) if metrics_path.exists() else {}
    built = report.build(outcome, metrics, scene, recording) | {"guard": guard}
    return outcome, Made(recording, metrics, built)


@dataclass
class _Stage:
    """Progress of the run; times on the demo's monotonic clock."""

    started_s: float | None = None
    """When the first trajectory came: the loop's start, the zero of all times."""
    task: int = 0
    """Number of the instruction in force."""
    switched_s: float | None = None
    """When it was sent; None for the first one."""
    done_s: dict[int, float] = field(default_factory=dict)
    """Number of each instruction that was fulfilled → seconds since the start."""
    put_back: tuple[str, ...] = ()
    """Cubes that a hand took from the fingers when the task changed."""


def _watch(
    plan: DemoPlan,
    recorder: RunRecorder,
    children: tuple[DemoProcess, DemoProcess],
    progress: _Progress,
    is_stopped: Callable[[], bool],
) -> report.DemoResult:
    """Follow the scene, send the next instruction when one is fulfilled, and return the result."""
    stage = _Stage()
    recorder.note_instruction(plan.instructions[0])
    begun_s = time.monotonic()
    fulfilled_since_s: float | None = None
    while not is_stopped():
        for child in children:
            child.check()
        now_s = time.monotonic()
        scene = recorder.scene
        if stage.started_s is None:
            stage.started_s = recorder.started_s
            if stage.started_s is None and now_s - begun_s > _start_limit_s(plan):
                break
        words = plan.instructions[stage.task]
        before = plan.instructions[stage.task - 1] if stage.task else None
        if not fulfilled(words, scene, before):
            fulfilled_since_s = None
        elif fulfilled_since_s is None:
            fulfilled_since_s = now_s
        done = fulfilled_since_s is not None and now_s - fulfilled_since_s >= HOLD_S
        if _is_over(plan, stage, now_s, done, recorder):
            break
        progress.show(words, stage, scene)
        time.sleep(POLL_S)
    started_s = stage.started_s or begun_s
    return _outcome(plan, recorder.scene, stage, time.monotonic() - started_s)


def _start_limit_s(plan: DemoPlan) -> float:
    return MODEL_START_S if plan.model else LOOP_START_S


def _is_over(
    plan: DemoPlan, stage: _Stage, now_s: float, done: bool, recorder: RunRecorder
) -> bool:
    """Advance the stage; return True when the run is over."""
    if stage.started_s is None:
        return False
    since_s = stage.started_s if stage.switched_s is None else stage.switched_s
    if done:
        stage.done_s.setdefault(stage.task, now_s - stage.started_s)
    elif now_s - since_s <= plan.timeout_s(stage.task):
        return False
    if stage.task + 1 == len(plan.instructions):
        return True
    put_back = () if plan.skills.lets_go else grasped(recorder.scene)
    if recorder.say(plan.instructions[stage.task + 1], put_back):
        stage.task, stage.switched_s = stage.task + 1, now_s
        stage.put_back += put_back
    return False


def _outcome(
    plan: DemoPlan, scene: dict[str, Any], stage: _Stage, duration_s: float
) -> report.DemoResult:
    cubes = scene.get("cubes", {})
    return report.DemoResult(
        seed=plan.seed,
        tasks=tuple(
            report.TaskResult(words, stage.done_s.get(number))
            for number, words in enumerate(plan.instructions)
        ),
        picked=tuple(colour for colour, status in cubes.items() if status["ever_lifted"]),
        placed=tuple(colour for colour, status in cubes.items() if status["placed"]),
        duration_s=duration_s,
        put_back=stage.put_back,
        policy=plan.policy,
        model=None if plan.model is None else plan.model.path,
        random_weights=plan.model is not None and plan.model.is_random,
        rate_reason=plan.rate_reason,
    )


def _write_pictures(
    outcome: report.DemoResult, made: Made, folder: Path, *, with_gif: bool
) -> None:
    film = pictures.Film(made.recording, outcome, made.metrics.get("rate_hz"))
    try:
        pictures.write_video(film, folder / "demo.mp4")
        pictures.write_strip(film, film.telling_times(), folder / "frame.png")
        if with_gif:
            pictures.write_gif(film, folder / "demo.gif")
        joints = plots.joint_plot(made.recording, outcome.duration_s)
        plots.write(joints, folder / "targets.png")
        plots.write(plots.latency_plot(made.metrics), folder / "latency.png")
    except OSError as error:
        raise OutputError(f"video and plots cannot be written to {folder}: {why(error)}") from error


def _make_folder(parent: Path) -> Path:
    """Create a folder named by the time; raises OutputError with the problem."""
    folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize < NEEDED_BYTES:
            free_mb = space.f_bavail * space.f_frsize // 1_000_000
            raise OutputError(
                f"{folder}: {free_mb} MB free, expected {NEEDED_BYTES // 1_000_000} MB; free space"
                " or choose another --output-dir"
            )
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created: {error.strerror}; choose another --output-dir"
        ) from error
    return folder


class _Progress:
    """One live line on a terminal; one plain line per change elsewhere."""

    def __init__(self, plan: DemoPlan) -> None:
        self._plan = plan
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=5, transient=True)
        self._last = ""
        if self._console.is_terminal:
            self._live.start()

    def show(
        self, words: str, stage: _Stage | None = None, scene: dict[str, Any] | None = None
    ) -> None:
        """Show the task, its time and the cubes that are lifted or placed."""
        done = [
            f"{colour} {state}"
            for colour, status in ((scene or {}).get("cubes") or {}).items()
            for state in ("lifted", "placed")
            if status[state]
        ]
        line = f"{words}  [{', '.join(done)}]" if done else words
        if self._console.is_terminal:
            since = ""
            if stage is not None and stage.started_s is not None:
                since = f"{time.monotonic() - stage.started_s:5.1f} s  "
            self._live.update(Text(since + line))
        elif line != self._last:
            self._console.print(line, highlight=False, markup=False)
        self._last = line

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        """Clear the line."""
        if self._console.is_terminal:
            self._live.stop()


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal came; it ends the run in order."""
    came: list[int] = []

    def note(number: int, frame: types.FrameType | None) -> None:
        del frame
        came.append(number)

    before = {number: signal.signal(number, note) for number in signals.ending()}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_json(path: Path | None) -> None:
    """Refuse at once a file that could not be written at the end."""
    if path is not None and path != Path("-") and (path.is_dir() or not path.parent.is_dir()):
        where = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise OutputError(f"--json {path}: {where}; expected a file to write")


def _hand_out(made: dict[str, Any], path: Path) -> None:
    if path == Path("-"):
        print(json.dumps(made, indent=2, ensure_ascii=False))
    else:
        report.write(made, path)
