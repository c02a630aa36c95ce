"""Group `robot`: rosbridge, and what comes from the robot's topics."""

from __future__ import annotations

import socket
from typing import Final

from crane_x7_remote.addresses import is_loopback
from crane_x7_remote.doctor import topics
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Stop,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_remote.doctor.watch import Sight, client_config, watch
from crane_x7_remote.errors import PeerUnreachableError
from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.link.clock_check import check_clocks
from crane_x7_remote.inference.safety import check_frame, check_joints
from crane_x7_remote.rosbridge.connection import explain
from crane_x7_remote.rosbridge.frames import EncodedFrame, decode_image
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.tunnel.probe import probe_now

OFFSET_S: Final = 1.0
"""Between the clocks of robot and this machine. The loop measures and allows any offset; logs and
recordings of two machines do not."""
SLOW_S: Final = 0.15
"""Round trip that leaves little of MAX_FRAME_AGE."""
SMALLEST: Final = (64, 48)
"""Width and height of a camera image, at least."""
OUTSIDE: Final = HoldReason.JOINTS_OUT_OF_LIMITS
NOT_REACHED: Final = "rosbridge was not reached; see port and handshake"
GIVE_TOKEN: Final = "read -rs ROSBRIDGE_TOKEN && export ROSBRIDGE_TOKEN"


def _need_robot(context: Context) -> None:
    if not context.is_set("rosbridge_host", "rosbridge_port"):
        raise Stop(skipped("no robot is set (ROSBRIDGE_HOST)"))


def port(context: Context) -> Finding:
    """Whether a process listens on the port."""
    _need_robot(context)
    settings, link = context.settings, client_config(context.settings).link
    where = f"{link.host}:{link.port}"
    if settings.rosbridge_proxy is not None:
        return skipped("a proxy leads there; see handshake")
    try:
        socket.create_connection((link.host, link.port), timeout=link.open_timeout_s).close()
    except OSError as error:
        return failure(f"{where}: {explain(error, link)}", _why_not_reached(context, error))
    return ok(f"{where} accepts connections")


def _why_not_reached(context: Context, error: OSError) -> str:
    host = context.settings.rosbridge_host
    listening = "ss -ltn | grep -E '9090|9091'"
    if isinstance(error, socket.gaierror):
        return f"getent hosts {host} || tailscale status"
    if "refused" not in str(error):
        return f"tailscale ping {host} || ping -c 3 {host}"
    return listening if is_loopback(host) else f'ssh {host} "{listening}"'


def handshake(context: Context) -> Finding:
    """Whether what listens there is rosbridge or the guard, and lets us in."""
    _need_robot(context)
    link = client_config(context.settings).link
    try:
        _shake_hands(context)
    except PeerUnreachableError as error:
        text = str(error)
        cure = "crane-x7-remote doctor --only tailnet"
        if "HTTP 401" in text:
            cure = GIVE_TOKEN
        elif "HTTP" in text or "not a WebSocket" in text:
            cure = "unset ROSBRIDGE_PORT"
        elif "refused" in text:
            cure = "ros2 launch rosbridge_server rosbridge_websocket_launch.xml"
        return failure(text, cure)
    return ok(f"a WebSocket server answers at {link.host}:{link.port}")


def _shake_hands(context: Context) -> None:
    """Connect once and leave; raises PeerUnreachableError."""
    context.once("handshake", lambda: probe_now(client_config(context.settings).link))


def _sight(context: Context) -> Sight:
    """Return what came from the robot; ends the check if it was not reached."""
    _need_robot(context)
    try:
        _shake_hands(context)  # before: the guard may have a place for one of both
        return context.once("robot", lambda: watch(context.settings))
    except PeerUnreachableError as error:
        raise Stop(skipped(NOT_REACHED)) from error


def link(context: Context) -> Finding:
    """Whether the connection holds, and its round trip."""
    sight = _sight(context)
    status = sight.link
    host = context.settings.rosbridge_host
    if not status.connected or status.reconnects:
        return failure(
            f"the connection broke within {sight.duration_s:.0f} s: {status.last_error}",
            f"tailscale ping {host} || ping -c 3 {host}",
        )
    rtt = "unknown" if status.rtt_s is None else f"{status.rtt_s * 1000:.0f} ms"
    said = f"round trip {rtt}"
    if status.throttle_rate_ms:
        said += f"; the camera is throttled to one image per {status.throttle_rate_ms} ms"
    if status.rtt_s is not None and status.rtt_s > SLOW_S:
        return warning(f"{said}: slow for a control loop", f"tailscale ping {host}")
    return ok(said)


def ros(context: Context) -> Finding:
    """Which ROS the robot runs, by its stamps."""
    status = _sight(context).link
    if status.ros_version is not None:
        return ok(f"ROS {status.ros_version}")
    if status.ros_version_doubt is None:
        return skipped("no stamped message came; see camera and joints")
    return failure(status.ros_version_doubt, "crane-x7-remote doctor --only robot")


def _echo(context: Context, topic: str) -> str:
    version = _sight(context).link.ros_version
    return f"rostopic echo -n 1 {topic}" if version == 1 else f"ros2 topic echo --once {topic}"


def _hz(context: Context, topic: str) -> str:
    version = _sight(context).link.ros_version
    return f"rostopic hz {topic}" if version == 1 else f"ros2 topic hz {topic}"


def _silent(context: Context, topic: str, variable: str, kind: str, because: str) -> Finding:
    """Return the failure of a topic without usable messages, with what rosapi knows of it."""
    cure = _hz(context, topic)
    link = client_config(context.settings).link
    types = context.once("rosapi", lambda: topics.published(link))
    if types is None:
        return failure(f"{topic}: {because}", cure)
    said, other = topics.explain(topic, kind, types)
    return failure(
        f"{topic}: {because}; {said}", cure if other is None else f"export {variable}={other}"
    )


def camera(context: Context) -> Finding:
    """Whether images come: their type, rate and age."""
    sight, settings = _sight(context), context.settings
    topic, cure = settings.camera_topic, _hz(context, settings.camera_topic)
    if sight.frame is None:
        because = sight.link.no_frame_because or f"no image came in {sight.duration_s:.0f} s"
        return _silent(context, topic, "CAMERA_TOPIC", "sensor_msgs/CompressedImage", because)
    age_s, stamp_s = sight.frame_age_s, sight.frame.stamp_s
    if hold := check_frame(age_s, stamp_s, True, settings.max_frame_age):
        return failure(f"{topic}: {hold.detail}", cure)
    rate_hz = sight.rate_hz(sight.frames)
    said = (
        f"{topic}: {sight.frame.format or 'no format'}, {rate_hz:.1f} Hz,"
        f" {len(sight.frame.image_bytes) / 1000:.0f} kB each, {age_s * 1000:.0f} ms old"
    )
    if rate_hz < 0.8 * settings.vla_inference_rate and not sight.link.throttle_rate_ms:
        wanted = f"VLA_INFERENCE_RATE is {settings.vla_inference_rate:g} Hz"
        return warning(f"{said}; {wanted}, and each image is used once", cure)
    return ok(said)


def image(context: Context) -> Finding:
    """Whether the newest image decodes."""
    frame = _sight(context).frame
    if frame is None:
        return skipped("no image came; see camera")
    return _image(context, context.settings.camera_topic, frame)


def wrist_camera(context: Context) -> Finding:
    """Whether images of the wrist camera come, stamped by the base camera's clock."""
    topic, limit_s = _wrist_topic(context), context.settings.max_frame_age
    sight, cure = _sight(context), _hz(context, topic)
    if sight.wrist_frame is None:
        because = sight.link.no_wrist_frame_because or f"no image came in {sight.duration_s:.0f} s"
        return _silent(context, topic, "WRIST_CAMERA_TOPIC", "sensor_msgs/CompressedImage", because)
    if sight.frame is None:
        return skipped("no image of the base camera came; see camera")
    age_s, stamp_s = sight.wrist_age_s, sight.wrist_frame.stamp_s
    if hold := check_frame(age_s, stamp_s, True, limit_s):
        return failure(f"{topic}: {hold.detail}", cure)
    ahead_s = stamp_s - sight.frame.stamp_s
    if abs(ahead_s) > limit_s:
        return failure(
            f"{topic}: stamped {ahead_s:+.2f} s from {context.settings.camera_topic}, expected"
            f" within {limit_s:g} s (MAX_FRAME_AGE): both cameras must be stamped by one clock",
            _echo(context, topic),
        )
    rate_hz = sight.rate_hz(sight.wrist_frames)
    size_kb = len(sight.wrist_frame.image_bytes) / 1000
    return ok(f"{topic}: {rate_hz:.1f} Hz, {size_kb:.0f} kB each, {age_s * 1000:.0f} ms old")


def wrist_image(context: Context) -> Finding:
    """Whether the newest image of the wrist camera decodes."""
    topic, frame = _wrist_topic(context), _sight(context).wrist_frame
    if frame is None:
        return skipped("no image came; see wrist_camera")
    return _image(context, topic, frame)


def _wrist_topic(context: Context) -> str:
    """Return the topic; ends the check without one."""
    topic = context.settings.wrist_camera_topic
    if not topic:
        raise Stop(skipped("no wrist camera is set (WRIST_CAMERA_TOPIC)"))
    return topic


def _image(context: Context, topic: str, frame: EncodedFrame) -> Finding:
    try:
        height, width, _ = decode_image(frame).shape
    except MessageError as error:
        return failure(f"{topic}: {error}", _echo(context, topic))
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return warning(f"{topic}: only {width}×{height} pixels", _echo(context, topic))
    return ok(f"{width}×{height} pixels")


def joints(context: Context) -> Finding:
    """Whether joint states come with this arm's joints: rate and age."""
    sight, settings = _sight(context), context.settings
    topic = settings.joint_states_topic
    if sight.joints is None:
        because = sight.link.no_joints_because or f"no state came in {sight.duration_s:.0f} s"
        return _silent(context, topic, "JOINT_STATES_TOPIC", "sensor_msgs/JointState", because)
    hold = check_joints(
        sight.joints.state, sight.joints_age_s, Limits(), settings.max_frame_age, fault=sight.fault
    )
    if hold is not None and hold.reason is not OUTSIDE:
        return failure(f"{topic}: {hold.detail}", f"ros2 topic info -v {topic}")
    rate_hz = sight.rate_hz(sight.states)
    return ok(f"{topic}: all joints, {rate_hz:.0f} Hz, {sight.joints_age_s * 1000:.0f} ms old")


def limits(context: Context) -> Finding:
    """Whether every joint is inside its limits."""
    sight, topic = _sight(context), context.settings.joint_states_topic
    if sight.joints is None:
        return skipped("no joint state came; see joints")
    hold = check_joints(sight.joints.state, 0.0, Limits(), 1.0)
    if hold is not None and hold.reason is not OUTSIDE:
        return skipped("the joint states cannot be used; see joints")
    if hold is not None:
        return failure(f"{topic}: {hold.detail}", _echo(context, topic))
    return ok("all joints are inside their limits")


def clock(context: Context) -> Finding:
    """Whether the robot's clocks can be used, and how far they are from this machine's."""
    sight, cure = _sight(context), "chronyc tracking"
    if sight.frame is None and sight.joints is None:
        return skipped("no stamped message came; see camera and joints")
    hold = check_clocks(sight.clocks, float("inf"), context.settings.max_frame_age, 0.0)
    if hold is not None and sight.frame is None and hold.reason is HoldReason.CLOCK_UNKNOWN:
        hold = None  # the camera's clock cannot be known; see camera
    if hold is not None and sight.states > 0:
        return failure(hold.detail, cure)
    if sight.ahead_s is None:
        return skipped("no stamped joint state came; see joints")
    way = "ahead of" if sight.ahead_s > 0 else "behind"
    said = f"the robot's clock is {abs(sight.ahead_s):.3f} s {way} this machine's"
    if abs(sight.ahead_s) > OFFSET_S:
        return warning(f"{said}: the loop allows for it, logs and recordings do not", cure)
    return ok(said)


def guard(context: Context) -> Finding:
    """Whether a guard checks what is sent to the arm, and lets it pass."""
    sight, settings = _sight(context), context.settings
    if not sight.guarded:
        return warning(
            "no guard in front of rosbridge: nothing stops the arm if the link fails",
            "crane-x7-remote guard",
        )
    if sight.stopped is not None:
        return failure(
            f"the guard is stopped ({sight.stopped}); look at the arm, then",
            f"crane-x7-remote resume --host {settings.rosbridge_host} --port"
            f" {settings.rosbridge_port}",
        )
    return ok("a guard checks every trajectory")


def loops(context: Context) -> Finding:
    """Which loops drive this robot now."""
    sight = _sight(context)
    driving = [loop for loop in sight.loops if not loop.dry_run]
    if not sight.loops:
        return ok("no loop is connected to this robot")
    said = "; ".join(
        f"loop {loop.session} {'holds: ' + loop.hold if loop.hold else 'drives'}"
        for loop in sight.loops
    )
    if len(driving) > 1:
        return warning(f"{said}; only one may drive", "crane-x7-remote stop")
    return ok(said)


CHECKS = tuple(
    Check("robot", function.__name__, function)
    for function in (
        port, handshake, link, ros, camera, image, wrist_camera, wrist_image, joints, limits, clock,
        guard, loops,
    )
)  # fmt: skip
