"""Two processes learn what one with all of their environments would, and can take it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import ppo_rig as rig
import pytest
import torch
import training_rig

from crane_x7_vla_rl.training.rl.update import UpdateIndex, update

PATIENCE_S = 300


@pytest.mark.timeout(PATIENCE_S + 30)
def test_two_processes_equal_one_with_twice_the_environments(tmp_path: Path) -> None:
    agent = rig.agent(rig.EVERYTHING)
    buffer = rig.collect(agent)
    torch.save(buffer, tmp_path / "buffer.pt")
    torch.save(agent.core.state_dict(), tmp_path / "weights.pt")
    shutil.copytree(training_rig.base(), tmp_path / "base")
    alone = [
        vars(update(agent, buffer, rig.EVERYTHING, UpdateIndex(number))) for number in range(2)
    ]
    wanted = rig.weights(agent)
    with training_rig.together(
        [], processes=2, first=("ppo_rig", "run_rank", str(tmp_path))
    ) as processes:
        said = "".join(process.communicate(timeout=PATIENCE_S)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    for sharding in ("ddp", "fsdp"):
        together = torch.load(tmp_path / f"{sharding}.pt", weights_only=True)
        _assert_gradients_are_exchanged_once(together["collectives"])
        assert together["weights"].keys() == wanted.keys()
        for name, weights in wanted.items():
            distance = float((together["weights"][name] - weights).abs().max())
            assert distance <= 1e-5, (sharding, name, distance)
            assert not torch.equal(together["moved"][name], together["weights"][name])
            assert torch.equal(together["rewound"][name], together["weights"][name])
        before, after = (together[name]["state"] for name in ("optimizer", "rewound optimizer"))
        for name, state in before.items():
            assert all(torch.equal(state[key], after[name][key]) for key in state), (sharding, name)
        for one, two in zip(alone, together["metrics"], strict=True):
            for name in one.keys() - {"policy_grad_norm"}:  # of other samples
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (sharding, name)


def _assert_gradients_are_exchanged_once(passes: list[dict[str, int]]) -> None:
    """Three passes are accumulated: only the last one sends gradients.

    FSDP gathers its weights in each; that is what saves the memory.
    """
    *earlier, last = passes
    gathered = {name: count for name, count in last.items() if name == "_allgather_base_"}
    assert earlier == [gathered, gathered]
    sent = {name: count for name, count in last.items() if name not in gathered}
    assert sent in ({"allreduce_": 1}, {"_reduce_scatter_base_": 5}), passes
