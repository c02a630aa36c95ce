"""`crane-x7-remote trial`: N episodes of a policy on the arm, each judged, with a rate of success.

One loop drives all episodes: slowly home, then the policy, until a key, a judge or the time limit
decides. Results are in trial.json and failures.html of a folder, after each episode; `--resume`
continues.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import secrets
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import ExitCode, OutputError, SettingsError, TaskRefusedError
from crane_x7_remote.guard.door import STOP_PATH
from crane_x7_remote.inference import checkpoint, feed
from crane_x7_remote.inference import command as infer
from crane_x7_remote.inference.feeds import Feeds
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.metrics import LoopMetrics
from crane_x7_remote.policy_server import choice
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.record_status import Word
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_remote.system.keys import typed_keys
from crane_x7_remote.system.logs import unblocked
from crane_x7_remote.system.real_time import ask_for_real_time
from crane_x7_remote.trial import page, results
from crane_x7_remote.trial.driver import TrialLoop
from crane_x7_remote.trial.judge import SimJudge
from crane_x7_remote.trial.leader import LeaderArm
from crane_x7_remote.trial.results import Episode, TrialPlan
from crane_x7_remote.trial.screen import TrialScreen
from crane_x7_remote.trial.session import TrialOptions, TrialSession
from crane_x7_vla_rl.fields import Count, argument_type, within
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.policies.color_servo.phases import OPEN_RAD
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.scenes import EVALUATION_SEED

logger = logging.getLogger(__name__)

EPISODES: Final = 20
TIMEOUT_S: Final = 60.0
END_S: Final = 10.0
"""How long the loop may take to brake and end."""
COMMON: Final = (
    "episodes", "timeout", "judge", "judge_port", "output_dir", "resume", "record", "leader_topic",
    "home_gripper", "rosbridge_host", "rosbridge_port", "rosbridge_token", "vla_policy",
    "vla_model_path", "vla_task_instruction", "vla_inference_rate", "speed", "camera_pose",
)  # fmt: skip
"""See command_line."""
WITHOUT: Final = ("dry_run", "instruction_topic")
"""A trial drives, and keeps its task."""
SECONDS = argument_type(Annotated[float, within(1, 86_400)])
SEED = argument_type(Annotated[int, within(0, 2**31 - 1 - 10_000)])
PORT = argument_type(Annotated[int, within(1, 65_535)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `trial`."""
    add = parser.add_argument
    add("--episodes", type=argument_type(Count), metavar="N",
        help=f"number of episodes ({EPISODES}; of a resumed trial: as before)")  # fmt: skip
    add("--timeout", type=SECONDS, metavar="S",
        help="an episode fails after the policy has driven for S seconds"
        f" ({TIMEOUT_S:g})")  # fmt: skip
    add("--judge", choices=("keys", "sim"), default="keys",
        help="who decides: a person with s and f, or the scene of `sim-robot`, which needs nobody"
        " (%(default)s)")  # fmt: skip
    add("--judge-port", type=PORT, metavar="PORT",
        help="the simulated robot's own port if a guard is before it [ROSBRIDGE_PORT]")  # fmt: skip
    add("--first-seed", type=SEED, metavar="N",
        help="with --judge sim: seed of the first episode's scene; each further episode has the"
        f" next one ({EVALUATION_SEED}, which no demonstration has)")  # fmt: skip
    add("--output-dir", type=Path, metavar="DIR",
        help="folder of all trials; each adds one named by its time"
        " (OUTPUT_ROOT/trials)")  # fmt: skip
    add("--resume", type=Path, metavar="DIR", help="continue the trial in this folder")
    add("--record", type=Path, metavar="DIR",
        help="also keep every judged episode in this LeRobot data set, with takeovers"
        " marked")  # fmt: skip
    add("--leader-topic", metavar="TOPIC",
        help="joint states of a leader arm that drives after t; without it t holds the arm, for a"
        " person's hands")  # fmt: skip
    add("--home-gripper", choices=("open", "keep"), default="open",
        help="at home, open the gripper, or leave it as it is (%(default)s)")  # fmt: skip
    add("--start-alone", action="store_true",
        help="start each episode without waiting for Enter; with --judge sim always")  # fmt: skip
    infer.add_dashboard_flag(parser)
    fields = [name for name in settings_module.role_fields() if name not in WITHOUT]
    settings_module.add_flags(parser, fields)


def run(args: argparse.Namespace) -> int:
    """Run the trial; returns 0 also after q or a signal. Raises RemoteError."""
    settings = settings_module.from_args(args)
    if settings.dry_run:
        raise SettingsError("trial: DRY_RUN is set, but a trial drives the arm; use infer")
    name = choice.policy_name(settings)
    names = choice.option_names(args)
    choice.check(name, settings, names)
    if name in ("openvla", "lerobot") and settings.vla_model_path is not None:
        settings = checkpoint.apply(settings)
    plan, episodes, folder = _plan(args, settings, name)
    if len(episodes) >= plan.episodes:
        print(f"{results.rate(episodes).in_words()}; {folder} is complete")
        return ExitCode.OK
    with unblocked(), _signals() as (stop, ends):
        _run(args, settings, name, plan, episodes, folder, stop, ends)
    print(results.rate(episodes).in_words())
    print(f"{folder / results.FILE} · {folder / page.FILE}")
    if len(episodes) < plan.episodes:
        print(
            f"{len(episodes)} of {plan.episodes} episodes; continue with the same command and"
            f" --resume {folder}"
        )
    return ExitCode.OK


def _run(
    args: argparse.Namespace,
    settings: Settings,
    name: str,
    plan: TrialPlan,
    episodes: list[Episode],
    folder: Path,
    stop: threading.Event,
    ends: list[TrialLoop],
) -> None:
    sys.setswitchinterval(infer.SWITCH_INTERVAL_S)
    # The task of a trial does not change: there is no instruction topic.
    link = replace(infer.client_config(settings), instruction_topic=None)
    config = infer.loop_config(settings, secrets.token_hex(4), choice.camera(args, settings))
    config = replace(config, policy_failing_s=math.inf)  # an episode's time limit ends it
    metrics = LoopMetrics(config.session, config.rate_hz)
    limits = Limits(max_jump_rad=settings.max_jump, speed=settings.speed)
    deadline_s = time.monotonic() + settings.peer_wait_timeout
    with contextlib.ExitStack() as stack:
        keys = stack.enter_context(typed_keys())
        keys.fill(0.0)
        if args.judge == "keys" and keys.has_ended:
            raise SettingsError("trial: there is no terminal for keys; use --judge sim")
        client = stack.enter_context(RosbridgeClient(link))
        feeds = stack.enter_context(
            Feeds(
                infer.feed_commands(args, settings),
                feed.hello(link, config, name),
                lambda: metrics.snapshot(asdict(client.link)),
            )
        )
        feeds.order("stop")  # a recorder of a loop begins alone; here each attempt begins it
        policy = choice.load(name, settings, names=choice.option_names(args))
        noted: list[Callable[[feed.Tick], None]] = [feeds.offer] if feeds.is_wanted else []

        def observe(tick: feed.Tick) -> None:
            for note in noted:
                note(tick)

        loop = TrialLoop(
            client, policy, config, limits, time.monotonic, observe=observe, metrics=metrics
        )
        ends.append(loop)
        if loop.refusal is not None:
            raise TaskRefusedError(f"trial: the policy refuses the task: {loop.refusal}")
        infer.warm_up(loop, name)
        if not infer.wait_connected(client, deadline_s, stop, infer.tailnet_diagnosis(settings)):
            return
        judge = leader = None
        if args.judge == "sim":
            port = args.judge_port or settings.rosbridge_port
            judge = stack.enter_context(SimJudge(settings.rosbridge_host, port, plan.task))
        if args.leader_topic:
            leader = stack.enter_context(LeaderArm(link, args.leader_topic))
        screen = stack.enter_context(TrialScreen())  # first: a blocked one does not delay the brake
        running = stack.enter_context(_RunningLoop(loop))
        session = TrialSession(
            loop, client, plan, _options(args, link, feeds.order), folder, episodes, keys,
            screen, judge, leader, stop.is_set,
            lambda: running.failure,
        )  # fmt: skip
        noted.append(session.note)
        session.run()


class _RunningLoop:
    """The loop on its own thread; a context manager that brakes the arm and ends it."""

    def __init__(self, loop: TrialLoop) -> None:
        self._loop = loop
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)

    def _run(self) -> None:
        try:
            ask_for_real_time()
            self._loop.run()
        except BaseException as error:  # the session must see any error
            self.failure = error

    def __enter__(self) -> _RunningLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.stop()
        self._thread.join(END_S)


def _plan(
    args: argparse.Namespace, settings: Settings, name: str
) -> tuple[TrialPlan, list[Episode], Path]:
    """Return the trial, its episodes so far and its folder; raises SettingsError, OutputError."""
    plan = TrialPlan(
        task=settings.vla_task_instruction,
        policy=name,
        model=settings.vla_model_path,
        timeout_s=args.timeout or TIMEOUT_S,
        judge=args.judge,
        episodes=args.episodes or EPISODES,
        first_seed=_first_seed(args),
    )
    if args.resume is None:
        parent = args.output_dir or settings_module.output_root() / "trials"
        folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be created: {why(error)}; choose another --output-dir"
            ) from error
        results.save(folder, plan, [])
        return plan, [], folder
    before, episodes = results.load(args.resume)
    if args.timeout is None:
        plan = replace(plan, timeout_s=before.timeout_s)
    if args.episodes is None:
        plan = replace(plan, episodes=before.episodes)
    if args.first_seed is None:
        plan = replace(plan, first_seed=before.first_seed)
    differences = plan.differences(before)
    if differences:
        raise SettingsError(
            f"--resume {args.resume}: {'; '.join(differences)}. Give the same values, or begin a"
            " new trial: rates of different things are not one rate"
        )
    return plan, episodes, args.resume


def _first_seed(args: argparse.Namespace) -> int | None:
    """Return the seed of the first scene; raises SettingsError where there is no simulation."""
    if args.judge == "sim":
        return EVALUATION_SEED if args.first_seed is None else int(args.first_seed)
    if args.first_seed is not None:
        raise SettingsError("trial: --first-seed is for --judge sim; a person arranges the scene")
    return None


def _options(
    args: argparse.Namespace, link: ClientConfig, record: Callable[[Word, bool | None], None]
) -> TrialOptions:
    home_rad = np.array(HOME_RAD)
    home_rad[-1] = OPEN_RAD if args.home_gripper == "open" else np.nan
    return TrialOptions(
        home_rad=home_rad,
        starts_alone=args.start_alone or args.judge == "sim",
        record=record,
        stop_link=replace(link.link, path=STOP_PATH),
    )


@contextlib.contextmanager
def _signals() -> Iterator[tuple[threading.Event, list[TrialLoop]]]:
    """Yield an event that a signal sets, and a list of loops, which it ends before: the thread that
    looks at the event may wait for the terminal. A second signal ends the process at once."""
    came = threading.Event()
    ends: list[TrialLoop] = []

    def end() -> None:
        for loop in ends:
            loop.stop()
        came.set()

    def note(number: int, frame: types.FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        # In a new thread: the interrupted thread may hold the event's lock.
        threading.Thread(target=end, name="stop").start()

    before = {number: signal.signal(number, note) for number in signals.ending()}
    try:
        yield came, ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
