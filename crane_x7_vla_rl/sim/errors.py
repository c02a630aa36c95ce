"""What can go wrong before a simulation runs; each message says the cure."""


class SimError(Exception):
    """The simulation cannot start: no Vulkan device, GPU PhysX missing, a wrong option."""
