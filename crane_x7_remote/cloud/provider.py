"""The protocol that every provider of machines fulfils, and its errors.

Verda, Vast.ai and Runpod differ in words and faults; the rest of this room sees these methods.
"""

from __future__ import annotations

from typing import Protocol

from crane_x7_remote.cloud.self_end import SelfEnd
from crane_x7_remote.cloud.types import Machine, Offer, Order, Volume, Wanted
from crane_x7_remote.errors import CloudError, CloudOfferError


class ProviderError(CloudError):
    """The provider did not do it; the message holds its answer. Trying again may help."""


class ListUnreadableError(ProviderError):
    """A list did not arrive or did not parse. It says nothing about what exists."""


class CreateRefusedError(ProviderError, CloudOfferError):
    """The provider refused the order: surely nothing was rented."""


class CreateUnclearError(ProviderError):
    """Something may have been rented: look for the label before anything else."""

    def __init__(self, message: str, machine_id: str | None = None) -> None:
        """`machine_id`: what the provider made although it reports an error."""
        super().__init__(message)
        self.machine_id = machine_id


class DeleteRefusedError(ProviderError):
    """Deletion is not possible yet (still provisioning, rate limit): repeat it."""


class Provider(Protocol):
    """One account at one provider."""

    name: str
    """verda, vast or runpod."""
    keeps_volumes: bool
    """Whether an OS volume can be kept and booted again (resume_local)."""
    self_end: SelfEnd
    """How the machine can end itself, for the dead-man's switch."""

    def check_key(self) -> None:
        """Raise CloudKeyError if the provider refuses the key. Rents nothing."""
        ...

    def offers(self, wanted: Wanted) -> list[Offer]:
        """Return what fits, cheapest first; [] if nothing does."""
        ...

    def create(self, order: Order) -> str:
        """Send the order once, never twice, and return the machine's id.

        Raises CreateRefusedError if surely nothing was made, CreateUnclearError otherwise.
        """
        ...

    def machines(self) -> list[Machine]:
        """Return every machine of the account, all pages; raises ListUnreadableError."""
        ...

    def volumes(self) -> list[Volume]:
        """Return every volume, the trash included; raises ListUnreadableError."""
        ...

    def delete_machine(self, machine_id: str) -> bool:
        """Delete a machine; separate volumes stay, and are deleted afterwards.

        Returns False when the provider has accepted it: `machines` says when it is gone; True if
        the provider says that it has ended already. Raises DeleteRefusedError where it must be
        repeated.
        """
        ...

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume for good, also out of the trash; one that is gone is no error."""
        ...

    def forget(self, label: str) -> None:
        """Remove what costs nothing and has this label, such as a login key made for the order."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
