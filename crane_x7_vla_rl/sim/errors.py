"""What can go wrong before a simulation runs; each message says the cure."""


class SimError(Exception):
    """The simulation cannot start: no Vulkan device, GPU PhysX missing, a wrong option."""


class WorkerLostError(SimError):
    """A process that holds simulations ended by itself, or does not answer in time."""
