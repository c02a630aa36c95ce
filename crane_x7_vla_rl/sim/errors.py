"""Errors of simulations; each message says what to do."""


class SimError(Exception):
    """The simulation cannot start: no Vulkan device, GPU PhysX missing, a wrong option."""


class WorkerLostError(SimError):
    """A process with simulations exited, or does not answer in time."""
