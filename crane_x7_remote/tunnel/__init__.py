"""Reach the robot's rosbridge: through the tailnet, through ssh in either direction, or directly.

- `peer`     which machine of the tailnet is the robot, and whether it is online
- `probe`    whether rosbridge answers at an address
- `forward`  a loopback port that leads to the robot, for programs without proxy support
- `ssh`      an OpenSSH tunnel that reconnects whenever it dies
- `ssh_cli`  OpenSSH's command line and messages
- `command`  `crane-x7-remote tunnel`

The loop is the same in all cases; only ROSBRIDGE_HOST, _PORT and _PROXY differ.
"""
