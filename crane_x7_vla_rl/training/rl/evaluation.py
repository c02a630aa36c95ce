"""How well a policy does during a run, on scenes that the run never learns from.

The acting policy → the success rate, and `evaluation/update_<n>/` with results and videos.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from crane_x7_vla_rl.data.files import write_json
from crane_x7_vla_rl.policies.base import ModelOptions, NotFiniteError
from crane_x7_vla_rl.policies.openvla.policy import OpenVLAPolicy
from crane_x7_vla_rl.policies.openvla.run.gaussian import GaussianRunner
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.timing import Timing
from crane_x7_vla_rl.training import non_finite
from crane_x7_vla_rl.training.evaluate.config import RESULTS, VIDEOS, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.ranks import Ranks
from crane_x7_vla_rl.training.evaluate.report import summary
from crane_x7_vla_rl.training.rl.run import RlRun

EVALUATION: Final = "evaluation"


def success(run: RlRun, runner: Runner | GaussianRunner, step: int) -> float:
    """Evaluate in all processes of the run; the first one writes results and shows videos to W&B.

    Returns the rate, 0 to 1, in each process alike. Raises SpoiltError where the policy's logits
    are NaN or infinite.
    """
    from crane_x7_vla_rl.training.evaluate.policies import Candidate
    from crane_x7_vla_rl.training.evaluate.rollout import roll_out

    config, accelerator = run.config, run.session.accelerator
    ranks = Ranks(accelerator.process_index, accelerator.num_processes)
    settings = config.evaluation
    model = ModelOptions(
        path=str(run.folder),
        unnorm_key=config.start.unnorm_key,
        temperature=settings.temperature,
        seed=config.training.seed,
    )
    evaluation = EvaluateConfig(
        model=model,
        output=run.folder / EVALUATION / f"update_{step}",
        world=replace(
            config.env.world(round(1 / run.rollout.codec.inputs.period_s)), episode_s=None
        ),
        num_episodes=settings.episodes,
        first_seed=settings.first_seed,
        processes=config.env.processes,
        videos=settings.videos,
        execute_steps=config.training.execute_steps,
        timing=Timing(delay_s=config.env.delay_s),
    )
    evaluation.output.mkdir(parents=True, exist_ok=True)
    inputs = run.rollout.codec.inputs
    if isinstance(runner, GaussianRunner):  # sampled as widely as the rollouts of this update
        inputs = replace(inputs, action_std=runner.noise.deviation)
    acting = OpenVLAPolicy(
        replace(run.session.origin.loaded, model=runner.model),
        replace(model, seed=model.seed + ranks.rank),
        runner.policy if isinstance(runner, GaussianRunner) else runner,
        inputs,
    )
    try:
        rollouts = roll_out(Candidate(acting, acting.period_s, batched=True), evaluation, ranks)
    except NotFiniteError as error:
        where = f"update {step}, evaluation"
        raise non_finite.answer(where, run.agent.core, error) from error
    results = summary(evaluation, rollouts)
    if ranks.is_first:
        write_json(evaluation.output / RESULTS, results)
    if run.session.tracker.wandb_run is not None:
        run.session.tracker.wandb_run.show(sorted((evaluation.output / VIDEOS).glob("*.mp4")), step)
    return float(results["success"]["rate"])
