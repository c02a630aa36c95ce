"""Reach the robot's rosbridge: through the tailnet, through ssh in either direction, or directly.

- `peer`     which machine of the tailnet is the robot, and is it online
- `probe`    does rosbridge answer at an address
- `forward`  a port of the loopback that leads to the robot, for programs that know no proxy
- `ssh`      a tunnel of OpenSSH that is reconnected whenever it dies
- `ssh_cli`  OpenSSH's command line and messages
- `command`  `crane-x7-remote tunnel`

The loop is the same in all cases; only ROSBRIDGE_HOST, _PORT and _PROXY differ.
"""
