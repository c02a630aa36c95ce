"""`evaluate --wordings`: success for each way of saying a task that no training has seen.

A loaded policy, the list of `reserved` → `Row`s, in results.json and wordings.md. The policy is
first given each wording in words alone: does it follow it or refuse it? What it follows and should
follow is then driven in simulation, in scenes whose success is that of the wording's cube, the same
ones for each wording, and for the words of training beside them. A wording that it should follow
and refuses counts as failed in all its episodes.

With `--swapped`, the control, success is counted for another cube than the words name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from crane_x7_vla_rl.policies import about
from crane_x7_vla_rl.policies.base import Interpreter, Policy
from crane_x7_vla_rl.policies.words import NotUnderstood, Task, Verb, parse
from crane_x7_vla_rl.reserved import WORDINGS, Wording
from crane_x7_vla_rl.scenes import LIFT_ID, PICK_PLACE_ID
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.evaluate.config import EvaluateConfig
from crane_x7_vla_rl.training.evaluate.policies import Candidate
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.training.evaluate.report import wilson
from crane_x7_vla_rl.training.evaluate.rollout import Result, Start, roll_out

IN_TRAINING: Final = "words of training"
"""Group of the tasks in the words that the policy was trained with."""
SCENES: Final = {Verb.LIFT: LIFT_ID, Verb.PLACE: PICK_PLACE_ID}


@dataclass(frozen=True)
class Row:
    """One wording, and what the policy did with it."""

    text: str
    group: str
    task: str | None
    """What it means, in the words of training; None: this policy must refuse it."""
    refusal: str | None
    """The policy's reason to hold; None if it follows it."""
    episodes: int = 0
    """Episodes with it; 0 where it must be refused."""
    right_first: int = 0
    """Episodes in which the first cube raised was the named one."""
    success: int = 0

    @property
    def answered(self) -> bool:
        """Whether it was followed if it has a task, and refused if it has none."""
        return (self.refusal is None) == (self.task is not None)


def measure(
    candidate: Candidate,
    config: EvaluateConfig,
    ranks: Ranks = ALONE,
    listed: Sequence[Wording] = WORDINGS,
) -> dict[str, Any]:
    """Return what results.json then holds, in each process of `ranks` alike.

    Raises SimError, and ConfigError if no task of the list can be measured in the scene.
    """
    rows = asked(candidate.policy, *tasks_of(config, listed), listed)
    if not any(row.task for row in rows):
        raise ConfigError(
            "--wordings: none of the list's tasks is one of the policy's, with a cube in the scene;"
            f" expected two or more of its colours, --colours has {' '.join(config.world.colours)}"
        )
    driven: list[Result] = []
    control_hz, wall_s = 0, 0.0
    for verb, task_id in SCENES.items():
        mine = [row for row in rows if row.task is not None and _task(row.task).verb is verb]
        if not any(row.refusal is None for row in mine):
            continue
        world = replace(config.world, task=task_id)
        rollouts = roll_out(
            candidate, replace(config, world=world, videos=0), ranks, list(starts(mine, config))
        )
        driven += rollouts.results
        control_hz, wall_s = rollouts.control_hz, wall_s + rollouts.wall_s
    rows = [counted(row, driven, config.wording_episodes) for row in rows]
    return {
        "checkpoint": config.model.path,
        "policy": config.policy,
        "temperature": config.model.temperature,
        "swapped": config.swapped,
        "first_seed": config.first_seed,
        "wording_episodes": config.wording_episodes,
        "world": config.world.as_dict() | {"control_hz": control_hz},
        "wall_s": wall_s,
        "summary": summary(rows),
        "wordings": [asdict(row) | {"answered": row.answered} for row in rows],
    }


def tasks_of(
    config: EvaluateConfig, listed: Sequence[Wording] = WORDINGS
) -> tuple[frozenset[Task], tuple[str, ...]]:
    """Return the tasks that the policy knows, and those of their words that it was trained with.

    A policy that does not say so may know all tasks of the list.
    """
    said = about.said_by(config.model.path) if config.model.path else {}
    every = tuple(dict.fromkeys(each.task for each in listed if each.task is not None))
    own = tuple(said["instructions"].value) if "instructions" in said else every
    parsed = {text: parse(text) for text in own}
    known = {
        text: task
        for text, task in parsed.items()
        if isinstance(task, Task) and task.colour in config.world.colours
    }
    return frozenset(known.values()), tuple(known)


def asked(
    policy: Policy, known: frozenset[Task], own: Sequence[str], listed: Sequence[Wording] = WORDINGS
) -> list[Row]:
    """Return a row per wording, with the policy's answer in words; nothing is driven.

    A task that it does not know it must refuse. Policies that refuse nothing follow everything.
    """
    refusal = policy.refusal if isinstance(policy, Interpreter) else _follow_all
    rows = [Row(text, IN_TRAINING, text, refusal(text)) for text in own]
    for each in listed:
        knows = each.task is not None and _task(each.task) in known
        rows.append(Row(each.text, each.group, each.task if knows else None, refusal(each.text)))
    return rows


def _follow_all(instruction: str) -> None:
    del instruction


def _task(text: str) -> Task:
    task = parse(text)
    assert not isinstance(task, NotUnderstood), text
    return task


def starts(rows: Sequence[Row], config: EvaluateConfig) -> Iterator[Start]:
    """Yield the episodes of the rows that are followed: the same scenes for each."""
    colours = config.world.colours
    for row in rows:
        assert row.task is not None
        if row.refusal is not None:
            continue
        counted_colour = _task(row.task).colour
        if config.swapped:
            counted_colour = colours[(colours.index(counted_colour) + 1) % len(colours)]
        for seed in range(config.first_seed, config.first_seed + config.wording_episodes):
            yield Start(seed, row.text, counted_colour)


def counted(row: Row, driven: Sequence[Result], episodes: int) -> Row:
    """Return the row with its episodes; one that was refused has failed in all of them."""
    if row.task is None:
        return row
    colour = _task(row.task).colour
    mine = [each for each in driven if each.instruction == row.text]
    return replace(
        row,
        episodes=episodes,
        right_first=sum(each.first == colour for each in mine),
        success=sum(each.success for each in mine),
    )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the totals: for all wordings never seen, for the words of training, by group."""
    unseen = [row for row in rows if row.group != IN_TRAINING]
    groups = dict.fromkeys(row.group for row in rows)
    return {
        "unseen": _totals(unseen),
        "groups": {name: _totals([row for row in rows if row.group == name]) for name in groups},
    }


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
    to_follow = [row for row in rows if row.task is not None]
    to_refuse = [row for row in rows if row.task is None]
    episodes = sum(row.episodes for row in to_follow)
    found: dict[str, Any] = {
        "followed": {"count": sum(row.answered for row in to_follow), "of": len(to_follow)},
        "refused": {"count": sum(row.answered for row in to_refuse), "of": len(to_refuse)},
    }
    for name in ("right_first", "success"):
        count = sum(int(getattr(row, name)) for row in to_follow)
        found[name] = _rate(count, episodes) if episodes else None
    return found


def _rate(count: int, episodes: int) -> dict[str, Any]:
    low, high = wilson(count, episodes)
    return {
        "rate": count / episodes, "low": low, "high": high, "count": count, "episodes": episodes,
    }  # fmt: skip
