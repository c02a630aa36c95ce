#!/usr/bin/env bash
# Check the arm's port, source ROS and the driver, and run the command.
set -eo pipefail # no -u: ROS's setup files read variables that are not set

port="${ARM_PORT:-/dev/ttyUSB0}"
if [ "$port" != none ] && [ ! -c "$port" ]; then
    echo "robot: no $port; plug in the arm's USB and switch on its power, or set ARM_PORT" >&2
    exit 1
fi
timer="/sys/bus/usb-serial/devices/$(basename "$(readlink -f "$port")")/latency_timer"
if [ -r "$timer" ] && [ "$(cat "$timer")" != 1 ]; then
    echo "robot: $timer is $(cat "$timer") ms, expected 1: joint states will not reach 200 Hz;" \
        "install docker/robot/99-crane-x7.rules on the host" >&2
fi

# shellcheck source=/dev/null
source "/opt/ros/${ROS_DISTRO:?}/setup.bash"
# shellcheck source=/dev/null
source /opt/crane_x7/install/setup.bash
exec "$@"
