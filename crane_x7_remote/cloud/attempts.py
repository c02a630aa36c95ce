"""The machines of one run: the next one resumes where the last one was taken away.

A plan, a provider → exit of the whole run. From where a machine continues: the newest complete
checkpoint on the Hub, else the disk that was kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from crane_x7_remote.cloud.follow import EvictedError
from crane_x7_remote.cloud.job import LEROBOT
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.plan import Plan
from crane_x7_remote.cloud.provider import CreateRefusedError, Provider
from crane_x7_remote.cloud.run import Attempt
from crane_x7_remote.cloud.types import Offer, Volume
from crane_x7_remote.errors import CloudError, CloudOfferError

logger = logging.getLogger(__name__)

OFFERS = 5
"""How many offers are tried where the provider refuses an order: capacity may be gone."""


@dataclass(frozen=True)
class From:
    """Where a machine begins."""

    mode: str
    volume_id: str | None = None
    location: str | None = None


def run(plan: Plan, provider: Provider, ledger: Ledger) -> None:
    """Train to the end, on as many machines as `auto_resume` allows.

    Raises CloudError for the cause of a failure; then nothing is rented but what was said.
    """
    begin = _first(plan, provider)
    warn(plan, provider)
    spent = plan.budget.spent
    for left in range(plan.auto_resume, -1, -1):
        attempt = Attempt(plan, provider, ledger, replace(plan.budget, spent=spent))
        try:
            _rent(plan, provider, attempt, begin)
        except EvictedError as error:
            spent = attempt.cost
            follow = _next(provider, attempt, begin)
            if left == 0:
                raise EvictedError(f"{error}; {_advice(plan, follow)}") from error
            logger.warning(
                "%s; renting another machine (%s), %d left", error, follow.mode, left - 1
            )
            begin = follow
        else:
            logger.info("run %s is done, it cost $%.2f", plan.run_id, attempt.cost)
            return


def warn(plan: Plan, provider: Provider) -> None:
    """Say what an eviction would lose. Raises CloudError where --auto-resume cannot work."""
    job = plan.job
    if job.survives_eviction or provider.keeps_volumes:
        return
    what = f"{provider.name} keeps no disk, and "
    if job.kind != LEROBOT:
        what += f"--job {job.kind} resumes from a disk alone: use --provider verda or --on-demand"
    else:
        what += (
            f"checkpoints go {'to the Hub at the end only' if job.repo_id else 'nowhere'}: set"
            " checkpoint.repo_id and checkpoint.upload_every_save in the YAML"
        )
    if plan.auto_resume:
        raise CloudError(f"--auto-resume has nothing to resume from: {what}")
    if plan.wanted.spot:
        logger.warning("an eviction would lose the whole run: %s", what)


def _first(plan: Plan, provider: Provider) -> From:
    if plan.os_volume_id is None:
        return From(plan.mode)
    volume = find_volume(provider, plan.os_volume_id)
    return From(plan.mode, volume.volume_id, volume.location)


def find_volume(provider: Provider, volume_id: str) -> Volume:
    """Return a disk that a machine can start from. Raises CloudError."""
    for volume in provider.volumes():
        if volume.volume_id == volume_id:
            if problem := unusable(volume):
                raise CloudError(f"--os-volume-id {volume_id}: {problem}")
            return volume
    raise CloudError(
        f"--os-volume-id {volume_id}: {provider.name} has no such volume; `crane-x7-remote cloud"
        " list` shows them"
    )


def unusable(volume: Volume) -> str | None:
    """Return why no machine can start from a volume."""
    if volume.machine_id is not None:
        return f"it is attached to machine {volume.machine_id}; end that one first"
    if volume.trashed:
        return "it is in the trash; restore it on the provider's page"
    return None if volume.is_os else "it is no OS disk"


def _offers(plan: Plan, provider: Provider, begin: From) -> list[Offer]:
    """Return what fits, the cheapest first; a disk decides the location. Raises CloudOfferError."""
    wanted = plan.wanted
    if begin.location is not None:
        if wanted.location not in (None, begin.location):
            logger.warning("the disk is in %s: --location is ignored", begin.location)
        wanted = replace(wanted, location=begin.location)
    offers = provider.offers(wanted)
    if not offers:
        cap = wanted.max_price_per_hour
        raise CloudOfferError(
            f"{provider.name} has no {'spot ' if wanted.spot else ''}machine with {wanted.gpus} ×"
            f" {wanted.gpu_model}{_in(wanted.location)}"
            f"{'' if cap is None else f' for at most ${cap:g} per hour'} now; try later, another"
            " --gpu-model, --location or --max-price, or --on-demand"
        )
    return offers[:OFFERS]


def _rent(plan: Plan, provider: Provider, attempt: Attempt, begin: From) -> None:
    """Train on the first offer that the provider does not refuse."""
    offers = _offers(plan, provider, begin)
    for offer in offers:
        logger.info(
            "%s: %d × %s in %s, %s, $%.2f per hour", offer.provider, offer.gpus, offer.gpu_model,
            offer.location, "spot" if offer.spot else "on demand", offer.price_per_hour,
        )  # fmt: skip
        try:
            attempt.run(offer, begin.mode, begin.volume_id)
        except CreateRefusedError as error:
            if offer is offers[-1]:
                raise
            logger.warning("%s; trying the next offer", error)
        else:
            return


def _in(location: str | None) -> str:
    return "" if location is None else f" in {location}"


def _next(provider: Provider, attempt: Attempt, begin: From) -> From:
    """Return from where the run continues."""
    safety = attempt.safety
    if attempt.kept:
        volume = find_volume(provider, attempt.kept[0])
        return From("resume_local", volume.volume_id, volume.location)
    if safety.uploaded is not None:
        return From("resume_hub")
    return From("auto" if begin.mode == "train" else begin.mode)


def _advice(plan: Plan, follow: From) -> str:
    if follow.volume_id is not None:
        return (
            f"resume with `crane-x7-remote cloud resume_local --os-volume-id {follow.volume_id}`,"
            f" or delete the disk with `crane-x7-remote cloud down {plan.run_id}`"
        )
    if follow.mode == "resume_hub":
        return f"resume with `crane-x7-remote cloud resume --checkpoint-repo-id {plan.job.repo_id}`"
    return "no checkpoint was saved: start again"
