"""Options of the environments: wrong ones are named, seeds stay out of the evaluation's range."""

from __future__ import annotations

from typing import Any

import pytest

from crane_x7_vla_rl.scenes import EVALUATION_SEED, WorldConfig
from crane_x7_vla_rl.vector_config import (
    Rewards,
    VectorConfig,
    VectorConfigError,
    episode_seed,
    spread,
)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Lift-CRANEX7", "did you mean Lift-CRANE-X7"),
        ("pickplace-crane-x7", "did you mean PickPlace-CRANE-X7"),
        ("Cook", r"is unknown\. Known: Lift-CRANE-X7, PickPlace-CRANE-X7"),
    ],
)
def test_an_unknown_env_id_names_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(VectorConfigError, match=meant):
        VectorConfig(world=WorldConfig(task=given))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "gpuu"}, r"backend 'gpuu' is unknown; did you mean gpu or cpu\?"),
        ({"simulator": "isaac"}, r"simulator 'isaac' is unknown; did you mean isaacsim\?"),
        ({"num_envs": 0}, "num_envs is 0, expected 1 or more"),
        ({"first_seed": -1}, "first_seed is -1, expected 0 or more"),
        ({"deadline_s": 0.0}, r"deadline_s is 0\.0"),
        (
            {"backend": "gpu", "world": WorldConfig(render="cpu")},
            "render is cpu, but backend is",
        ),
    ],
)
def test_a_wrong_option_says_what_was_expected(options: dict[str, Any], says: str) -> None:
    with pytest.raises(VectorConfigError, match=says):
        VectorConfig(**options)


def test_an_unknown_reward_names_those_there_are() -> None:
    with pytest.raises(VectorConfigError, match="binary, sparse, dense"):
        Rewards("shaped")  # type: ignore[arg-type]


def test_seeds_stay_below_those_of_the_evaluation_and_differ() -> None:
    seeds = [episode_seed(base, env, 5) for base in range(3) for env in range(300)]
    assert max(seeds) < EVALUATION_SEED
    assert min(seeds) >= 0
    assert len(set(seeds)) > 0.99 * len(seeds)


def test_a_seed_depends_on_base_environment_and_episode_and_is_the_same_for_ever() -> None:
    assert episode_seed(0, 1, 2) == 845570
    assert len({episode_seed(*numbers) for numbers in [(0, 1, 2), (1, 0, 2), (2, 1, 0)]}) == 3


def test_environments_are_spread_evenly_and_no_part_is_empty() -> None:
    assert spread(7, 2) == (range(4), range(4, 7))
    assert spread(2, 5) == (range(1), range(1, 2))
