"""A view as one plain line, for a file, a pipe and the end of a run. `View` → text."""

from __future__ import annotations

from typing import Final

from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.watch.heard import View
from crane_x7_vla_rl.log_text import shown

TASK_LETTERS: Final = 60
NO_LOOP: Final = "no loop"


def state(view: View) -> str:
    """Return what matters without numbers that always change: a new line is due when it differs."""
    if not view.link_up:
        return f"link down: {shown(view.link_problem or 'connecting')}"
    loops = [_loop_state(each.status) for each in view.loops] or [NO_LOOP]
    parts = [*loops, guard_state(view), _old("joints", view.joints_age_s)]
    parts += [_old(each.name, each.age_s) for each in view.cameras]
    problems = (view.joints_problem, *(each.problem for each in view.cameras))
    parts += [each for each in problems if each]
    return " · ".join(part for part in parts if part)


def line(view: View) -> str:
    """Return the state with rate, latency and ages."""
    parts = [state(view)]
    for each in view.loops:
        parts += numbers(each.status)
    if view.link_up:
        parts += [
            f"{name} {age_s:.1f} s old"
            for name, age_s in (
                ("joints", view.joints_age_s),
                *((each.name, each.age_s) for each in view.cameras),
            )
            if age_s is not None
        ]
    return " · ".join(parts)


def numbers(status: LoopStatus) -> list[str]:
    """Return rate, latency and count of a loop."""
    words = []
    if status.rate_hz is not None:
        words.append(f"{status.rate_hz:.1f} Hz")
    if status.latency_ms is not None:
        words.append(f"latency {status.latency_ms:.0f} ms")
    return [*words, f"{status.trajectories} trajectories"]


def what_it_does(status: LoopStatus) -> str:
    """Return whether a loop drives, or why not."""
    if status.task_state == "refused":
        return f"refuses its task: {shown(status.reason)}"
    if status.hold is not None:
        return f"holds: {shown(status.hold)}"
    return "dry run" if status.dry_run else "drives"


def guard_state(view: View) -> str:
    """Return what the guard does."""
    guard = view.guard
    if guard is None:
        return "no guard"
    if guard.stopped is not None:
        return f"guard stopped: {guard.stopped}"
    if not guard.has_rosbridge:
        return "guard without rosbridge"
    return "guard passes" if guard.guards_us else "guard passes, not on this connection"


def _loop_state(status: LoopStatus) -> str:
    return f"loop {status.session} {what_it_does(status)}, task: {shown(status.task, TASK_LETTERS)}"


def _old(name: str, age_s: float | None) -> str:
    if age_s is None:
        return f"no {name} yet"
    return f"{name} silent" if age_s > 3 else ""
