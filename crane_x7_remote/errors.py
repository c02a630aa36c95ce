"""Every expected failure of this package, with one exit code per cause."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `crane-x7-remote`; documented in docs/exit-codes.md."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    SETTINGS = 3
    PEER_UNREACHABLE = 4
    POLICY_LOAD = 5
    POLICY_FAILING = 6
    SIMULATION = 7
    OUTPUT = 8
    DEMO_CHILD = 9
    DEMO_TASK = 10
    GUARD = 11
    TASK_REFUSED = 12
    NO_LOOP = 13
    SERVE = 14
    CALIBRATION = 15
    RECORD = 16
    DASHBOARD = 17
    TAILNET_KEY = 20
    TAILNET_KEY_EXPIRED = 21
    CONTROL_UNREACHABLE = 22
    TAILSCALED = 23
    SSHD = 24
    STATE = 25
    ROLE = 26
    UNHEALTHY = 27
    PEER_UNKNOWN = 30
    PEER_OFFLINE = 31
    TAILNET_DOWN = 32
    SSH_AUTH = 33
    SSH_HOST_KEY = 34
    SSH_UNREACHABLE = 35
    FORWARD_REFUSED = 36
    CLOUD = 40
    CLOUD_KEY = 41
    CLOUD_OFFER = 42
    CLOUD_TRAINING = 43
    CLOUD_LEFT = 44


class RemoteError(Exception):
    """Base of all expected failures: the message says where it failed, what came and what to do."""

    exit_code = ExitCode.UNEXPECTED


class SettingsError(RemoteError):
    """Variables or flags have wrong values; the message lists all of them."""

    exit_code = ExitCode.SETTINGS


class PeerUnreachableError(RemoteError):
    """The robot's rosbridge did not answer within PEER_WAIT_TIMEOUT."""

    exit_code = ExitCode.PEER_UNREACHABLE


class LinkFailedError(RemoteError):
    """A bug in this program ended the thread of the connection to rosbridge; it does not reconnect.

    `__cause__` is the error that ended the thread.
    """

    exit_code = ExitCode.UNEXPECTED


class PolicyError(RemoteError):
    """The policy or its model could not be loaded."""

    exit_code = ExitCode.POLICY_LOAD


class PolicyFailingError(RemoteError):
    """The policy failed too often in a row; the loop stops."""

    exit_code = ExitCode.POLICY_FAILING


class SimulationError(RemoteError):
    """The simulated robot could not be started."""

    exit_code = ExitCode.SIMULATION


class OutputError(RemoteError):
    """Results could not be written: full disk, no permission."""

    exit_code = ExitCode.OUTPUT


class DemoError(RemoteError):
    """A process that the demo started ended too early."""

    exit_code = ExitCode.DEMO_CHILD


class GuardError(RemoteError):
    """The guard cannot listen, or did not confirm a stop."""

    exit_code = ExitCode.GUARD


class TaskRefusedError(RemoteError):
    """A loop refused its task; the message says why."""

    exit_code = ExitCode.TASK_REFUSED


class NoLoopError(RemoteError):
    """No loop answered a task."""

    exit_code = ExitCode.NO_LOOP


class ServeError(RemoteError):
    """The policy server cannot listen, or must not without an API key."""

    exit_code = ExitCode.SERVE


class CalibrationError(RemoteError):
    """The images do not give the camera's lens or pose; the message says what is missing."""

    exit_code = ExitCode.CALIBRATION


class RecordError(RemoteError):
    """Nothing can be recorded, or a recorded episode cannot be replayed."""

    exit_code = ExitCode.RECORD


class DashboardError(RemoteError):
    """The dashboard cannot listen, or has nothing to show."""

    exit_code = ExitCode.DASHBOARD


class TailnetKeyError(RemoteError):
    """The tailnet's control server refused TS_AUTHKEY or a request in TS_EXTRA_ARGS."""

    exit_code = ExitCode.TAILNET_KEY


class TailnetKeyExpiredError(TailnetKeyError):
    """TS_AUTHKEY has expired."""

    exit_code = ExitCode.TAILNET_KEY_EXPIRED


class ControlUnreachableError(RemoteError):
    """The login at the tailnet's control server did not succeed within TS_LOGIN_TIMEOUT."""

    exit_code = ExitCode.CONTROL_UNREACHABLE


class TailscaledError(RemoteError):
    """tailscaled is not installed, or exits immediately."""

    exit_code = ExitCode.TAILSCALED


class SshdError(RemoteError):
    """sshd is not installed, cannot listen, or exits immediately."""

    exit_code = ExitCode.SSHD


class StateError(RemoteError):
    """A folder for state that survives restarts is full, read-only or owned by another user."""

    exit_code = ExitCode.STATE


class RoleError(RemoteError):
    """The role is not a program on this machine."""

    exit_code = ExitCode.ROLE


class UnhealthyError(RemoteError):
    """`status` found no running boot."""

    exit_code = ExitCode.UNHEALTHY


class PeerUnknownError(RemoteError):
    """No machine of the tailnet has this name; the message lists its machines."""

    exit_code = ExitCode.PEER_UNKNOWN


class PeerOfflineError(RemoteError):
    """The machine belongs to the tailnet but is not connected to it."""

    exit_code = ExitCode.PEER_OFFLINE


class TailnetDownError(RemoteError):
    """This machine is not on a tailnet: tailscaled does not run or is not logged in."""

    exit_code = ExitCode.TAILNET_DOWN


class SshAuthError(RemoteError):
    """The other end's sshd refused every available key."""

    exit_code = ExitCode.SSH_AUTH


class SshHostKeyError(RemoteError):
    """The other end's host key has changed, or is not known."""

    exit_code = ExitCode.SSH_HOST_KEY


class SshUnreachableError(RemoteError):
    """The ssh connection was not established in time."""

    exit_code = ExitCode.SSH_UNREACHABLE


class ForwardRefusedError(RemoteError):
    """A port to listen on is in use, or sshd forbids the forwarding."""

    exit_code = ExitCode.FORWARD_REFUSED


class CloudError(RemoteError):
    """Renting failed, and nothing is left rented."""

    exit_code = ExitCode.CLOUD


class CloudKeyError(CloudError):
    """A provider's key is missing or refused."""

    exit_code = ExitCode.CLOUD_KEY


class CloudOfferError(CloudError):
    """No machine can be rented as wanted: no offer, a price above the cap, a quota."""

    exit_code = ExitCode.CLOUD_OFFER


class CloudTrainingError(CloudError):
    """The training on the rented machine failed; nothing is left rented."""

    exit_code = ExitCode.CLOUD_TRAINING


class CloudLeftError(CloudError):
    """Something may still be rented and cost money; the message says what, and how to end it."""

    exit_code = ExitCode.CLOUD_LEFT
