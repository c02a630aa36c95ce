"""What only evaluations may use reaches no training: seeds and wordings against every recipe."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.files import DemoFiles
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.policies.openvla import builder
from crane_x7_vla_rl.policies.skills import SKILLS
from crane_x7_vla_rl.reserved import EVALUATION_SEED, WORDINGS, Group
from crane_x7_vla_rl.vector_config import episode_seed

PACKAGE = ROOT / "crane_x7_vla_rl"
EVALUATIONS = (PACKAGE / "reserved.py", PACKAGE / "training" / "evaluate")
RECIPES = ("teach", "prepare", "reinforce", "ship", "gather", "improve")
"""How names of scripts begin that make or use training data."""
TASKS = {
    *(f"pick up the {colour} cube" for colour in ("red", "green", "blue")),
    *(f"place the {colour} cube on the plate" for colour in ("red", "green", "blue")),
}
SHORT = 12
"""Shorter English wordings are words of code, too, and are compared as whole strings."""


def recipes() -> Iterator[Path]:
    """Yield every configuration and script of a training."""
    yield from (path for path in (ROOT / "configs").rglob("*") if path.is_file())
    for path in (ROOT / "scripts").iterdir():
        if path.name.startswith(RECIPES):
            yield from path.rglob("*") if path.is_dir() else [path]


def sources() -> Iterator[Path]:
    """Yield the code that makes or uses training data."""
    for path in PACKAGE.rglob("*.py"):
        if not any(path.is_relative_to(place) for place in EVALUATIONS):
            yield path


def read(paths: Iterable[Path]) -> dict[str, str]:
    return {
        str(path): path.read_text(encoding="utf-8", errors="ignore")
        for path in paths
        if path.is_file() and path.suffix != ".pyc"
    }


def reserved_in(texts: dict[str, str]) -> list[str]:
    """Return each place that holds a reserved wording."""
    found = []
    for name, text in texts.items():
        folded = text.casefold()
        quoted = set(re.findall(r"""["'](.+?)["']""", folded))
        for wording in WORDINGS:
            words = wording.text.casefold()
            is_short = words.isascii() and len(words) < SHORT
            if words in quoted if is_short else words in folded:
                found.append(f"{name}: {wording.text}")
    return found


def seeds_in(texts: dict[str, str]) -> list[str]:
    """Return each place that holds a number which is an evaluation's seed.

    A run's evaluations, below the key `evaluation`, choose among its checkpoints and teach nothing.
    """
    return [
        f"{name}: {number}"
        for name, text in texts.items()
        for number in re.findall(
            r"(?:seed|--from)\D{0,12}(\d[\d_]*)", re.sub(r"(?m)^evaluation:\n( .*\n)*", "", text)
        )
        if int(number.replace("_", "")) >= EVALUATION_SEED
    ]


def test_no_recipe_and_no_code_of_training_holds_a_reserved_wording() -> None:
    texts = read([*recipes(), *sources()])
    assert len(texts) > 100
    assert not reserved_in(texts)


def test_no_recipe_holds_an_evaluation_s_seed() -> None:
    texts = read(recipes())
    assert any("teach-tiny" in name for name in texts)
    assert any("rl_tiny.yaml" in name for name in texts)
    assert not seeds_in(texts)


@pytest.mark.parametrize("wording", [WORDINGS[0], WORDINGS[-1]])
def test_a_recipe_that_held_one_would_be_found(wording: object) -> None:
    text = wording.text  # type: ignore[attr-defined]
    assert reserved_in({"configs/new.yaml": f"instructions:\n  - {text.upper()}\n"})
    assert seeds_in({"scripts/teach-new": f"demos --first-seed {EVALUATION_SEED + 5} --episodes 3"})
    below = "evaluation:\n  every: 20\n  first_seed: 2000000\n"
    assert not seeds_in({"configs/new.yaml": f"seed: 1\n{below}output:\n  dir: x\n"})
    assert seeds_in({"configs/new.yaml": f"{below}training:\n  seed: 2000000\n"})


def test_no_instruction_that_policies_are_built_or_trained_with_is_reserved() -> None:
    used = {text.casefold() for text in builder.instructions()} | TASKS
    for path in PACKAGE.rglob(SKILLS):
        used |= {text.casefold() for text in json.loads(path.read_text())["instructions"]}
    assert not used & {wording.text.casefold() for wording in WORDINGS}


def test_demonstrations_and_rollouts_never_have_an_evaluation_s_seed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reserved for evaluation"):
        DemoFiles(DemosConfig(tmp_path / "demos", first_seed=EVALUATION_SEED), resume=False)
    numbers = np.random.default_rng(0).integers(0, 2**31, (500, 3)).tolist()
    assert max(episode_seed(*each) for each in numbers) < EVALUATION_SEED


def test_the_list_is_large_has_every_kind_and_no_wording_twice() -> None:
    texts = [wording.text.casefold() for wording in WORDINGS]
    assert len(set(texts)) == len(texts) >= 100
    kinds = Counter(wording.group for wording in WORDINGS)
    assert set(kinds) == set(Group)
    refused = {wording.group for wording in WORDINGS if wording.task is None}
    assert refused == {
        Group.OTHER_COLOUR, Group.IMPOSSIBLE, Group.FORBIDDING, Group.NO_REQUEST,
    }  # fmt: skip
    tasks = Counter(wording.task for wording in WORDINGS if wording.task is not None)
    assert set(tasks) == TASKS
    assert min(tasks.values()) >= 5
