"""One demonstration, inside a process with its own simulation. Seed → `Episode`."""

from __future__ import annotations

from typing import Final

import numpy as np

from crane_x7_vla_rl.data.demos.config import DemosConfig
from crane_x7_vla_rl.data.demos.policy_start import PolicyStart
from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.kinematics import UnreachableError
from crane_x7_vla_rl.scenes import PICK_PLACE_ID
from crane_x7_vla_rl.sim.expert import Expert, ExpertPhase, Manner
from crane_x7_vla_rl.sim.layout import Arrangement
from crane_x7_vla_rl.sim.world import World
from crane_x7_vla_rl.types import Image

NOISE_STREAM: Final = 2
"""Stream of a seed's random numbers; the scene and the camera use other streams."""
ON_THE_WAY: Final = (ExpertPhase.HOVER, ExpertPhase.DESCEND)
REARRANGEMENTS: Final = (
    Arrangement.ALONE, Arrangement.SORTED, Arrangement.ANY, Arrangement.EXCHANGED
)  # fmt: skip
"""Used alternately. A single cube shows what cubes look like; sorted ones, that the instruction
names the position; the others, that it names the colour. With only the last two, a small model
learned all of it later."""
REARRANGED: Final = 0.7
"""Probability that a scene is rearranged after a step, while the arm approaches."""


def manner(config: DemosConfig) -> Manner:
    """Return how the expert moves."""
    return Manner(arm_rad_s=config.arm_rad_s, turns_wrist=not config.keep_wrist)


def policy_start(config: DemosConfig) -> PolicyStart | None:
    """Load the policy of `--from`; raises PolicyLoadError."""
    if config.start is None:
        return None
    return PolicyStart(config.start, config.start_s, config.start_late_s)


class DemoRecorder:
    """Records the expert in the scene of one seed after another."""

    def __init__(self, config: DemosConfig) -> None:
        """Start the simulation, and load the policy of `--from`; raises SimError and
        PolicyLoadError."""
        self._config = config
        self._world = World(config.world)
        self._expert = Expert(self._world, manner(config))
        self._start = policy_start(config)

    def __call__(self, seed: int) -> Episode:
        """Return the episode, which ends `hold_s` after success or with a timeout."""
        world, expert = self._world, self._expert
        noise = np.random.default_rng([seed, NOISE_STREAM])
        level_rad = self._config.joint_noise_rad * noise.uniform()
        world.reset(seed)
        expert.reset()
        if self._start is not None:
            self._start.reset()
            self._start.drive(world, world.instruction, noise, world.position_rad())
            places = world.config.task == PICK_PLACE_ID
            expert.take(world.named_colour, places)
            # What the policy can do, or has pushed out of reach, is shown from its start.
            if world.success or not expert.reaches():
                world.reset(seed)
                expert.take(world.named_colour, places)
        rearranged, after = 0, round(self._config.hold_s * world.config.control_hz)
        images: list[bytes | Image] = []
        states, actions = [], []
        end = world.step_index + world.config.max_steps  # what the policy took does not count
        while not (world.success or world.step_index >= end) or (world.success and after > 0):
            after -= world.success
            image, state = world.image(), world.position_rad()
            try:
                action = expert.act()
            except UnreachableError:
                break  # a cube pushed out of reach: a failure like any other
            images.append(image)
            states.append(state)
            actions.append(action)
            world.step(action + noise.normal(0, level_rad, len(action)))
            free = expert.phase in ON_THE_WAY and rearranged < self._config.rearrange
            if free and noise.uniform() < REARRANGED:
                world.rearrange(noise, REARRANGEMENTS[rearranged % len(REARRANGEMENTS)])
                rearranged += 1
        return Episode(
            images=images,
            state=np.array(states, dtype=np.float32),
            action=np.array(actions, dtype=np.float32),
            instruction=world.instruction,
            fps=world.config.control_hz,
            success=world.success,
            source=f"{world.config.task} seed {seed}",
            seed=seed,
        )
