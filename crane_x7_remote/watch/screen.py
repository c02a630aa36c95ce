"""A view as one screen of a terminal. `View` → a renderable of rich.

All text from the robot is escaped by `shown` and never read as markup.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crane_x7_remote.watch import lines
from crane_x7_remote.watch.heard import LoopView, View
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.robot import JOINT_NAMES, LOWER_RAD, PREFIX, UPPER_RAD
from crane_x7_vla_rl.types import Array

OLD_S: Final = 3.0
"""Older than this is drawn as a problem."""
NEAR_RAD: Final = 0.1
"""A joint this close to a limit is drawn as a warning."""
BAR: Final = 24
"""Cells between a joint's limits."""
GOOD, WARN, BAD, QUIET = "green", "yellow", "bold red", "dim"


def screen(view: View) -> RenderableType:
    """Return the whole screen."""
    return Group(
        _heading(view),
        *(_section("Loop", _loop(each)) for each in view.loops),
        *([] if view.loops else [_section("Loop", _no_loop())]),
        _section("Guard", _guard(view)),
        _section("Robot", _robot(view)),
        _joints(view),
        Text("\nCtrl-C ends this view; the loop continues.", QUIET),
    )


def _heading(view: View) -> Text:
    text = Text.assemble(("CRANE-X7", "bold"), f"  {shown(view.address)}  ")
    if view.link_up:
        rtt = "" if view.rtt_s is None else f", round trip {view.rtt_s * 1e3:.0f} ms"
        text.append(f"link up for {_duration(view.link_for_s)}{rtt}", GOOD)
    else:
        why = shown(view.link_problem or "connecting")
        text.append(f"link down for {_duration(view.link_for_s)}: {why}", BAD)
    return text


def _section(title: str, body: RenderableType) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=6, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(title, body)
    return Padding(grid, (1, 0, 0, 0))


def _loop(loop: LoopView) -> RenderableType:
    status = loop.status
    does = lines.what_it_does(status)
    style = BAD if status.task_state == "refused" else WARN if status.hold else GOOD
    words = " · ".join(lines.numbers(status))
    return Group(
        Text.assemble((does, style), f"  {status.session}  ", _age(loop.age_s)),
        Text.assemble(("task ", QUIET), shown(status.task)),
        Text(words),
    )


def _no_loop() -> Text:
    return Text("none connected; start one: crane-x7-remote infer", WARN)


def _guard(view: View) -> RenderableType:
    guard = view.guard
    if guard is None:
        return Text("none heard: nothing beside the robot checks what is sent", WARN)
    is_good = guard.stopped is None and guard.has_rosbridge
    first = Text.assemble(
        (lines.guard_state(view), GOOD if is_good else BAD), "  ", _age(view.guard_age_s)
    )
    driver = "nobody drives" if guard.driver is None else f"client {guard.driver} drives"
    moving = "a path is running" if guard.is_moving else "at rest"
    refused = ", ".join(f"{name} {count}" for name, count in guard.refused) or "none"
    counts = Text(f"{driver} · {moving} · {guard.passed} passed · refused: {refused}")
    return Group(first, counts)


def _robot(view: View) -> RenderableType:
    rows = [Text.assemble("joint states ", _freshness(view.joints_age_s, view.joints_problem))]
    if not view.cameras:
        rows.append(Text("camera not followed", QUIET))
    for camera in view.cameras:
        rate = "" if camera.rate_hz is None else f"{camera.rate_hz:.1f} Hz  "
        fresh = _freshness(camera.age_s, camera.problem)
        rows.append(Text.assemble(f"{camera.name:13}", rate, fresh))
    return Group(*rows)


def _joints(view: View) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=6)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right", style=QUIET)
    table.add_column()
    table.add_column(style=QUIET)
    position = view.joints_rad
    for index, name in enumerate(JOINT_NAMES):
        table.add_row("", name.removeprefix(PREFIX), *_joint(index, position))
    return Padding(table, (1, 0, 0, 0))


def _joint(index: int, position: Array | None) -> tuple[Text | str, ...]:
    lower, upper = float(LOWER_RAD[index]), float(UPPER_RAD[index])
    limits = f"{np.degrees(lower):.0f}°", f"{np.degrees(upper):.0f}°"
    if position is None or not np.isfinite(position[index]):
        return "—", limits[0], Text("·" * BAR, QUIET), limits[1]
    at = float(position[index])
    share = min(max((at - lower) / (upper - lower), 0.0), 1.0)
    cell = min(int(share * BAR), BAR - 1)
    gap = min(at - lower, upper - at)
    style = BAD if gap < 0 else WARN if gap < NEAR_RAD else GOOD
    if index == len(JOINT_NAMES) - 1:
        style = GOOD if gap >= -NEAR_RAD else BAD  # a closed gripper rests on its limit
    bar = Text.assemble(("─" * cell, QUIET), ("●", style), ("─" * (BAR - 1 - cell), QUIET))
    return (
        Text(f"{np.degrees(at):7.1f}°", style if style != GOOD else ""),
        limits[0],
        bar,
        limits[1],
    )


def _freshness(age_s: float | None, problem: str | None) -> Text:
    if problem is not None:
        return Text(shown(problem), BAD)
    return Text("none yet", WARN) if age_s is None else _age(age_s)


def _age(age_s: float | None) -> Text:
    if age_s is None:
        return Text("")
    return Text(f"{age_s:.1f} s ago", BAD if age_s > OLD_S else QUIET)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
