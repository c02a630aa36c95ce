"""Boot in the image without root, as some clouds start containers: all of it still works."""

from __future__ import annotations

from pathlib import Path

import pytest
from containers import Container, Network, Workshop
from ssh_login import Login

pytestmark = pytest.mark.container


def test_container_of_user_vla_needs_no_root(
    workshop: Workshop, image: str, network: Network, tmp_path: Path
) -> None:
    login = Login.make(network, tmp_path).on(port=2222)
    environ = {"SSH_PUBLIC_KEY": login.public_key, "SSH_PORT": "2222", "HF_TOKEN": "hf_abc#1"}
    command, options = ("sleep", "600"), ("--user", "vla")
    with Container(workshop, image, network, command, environ, options) as container:
        login.wait()
        assert "HF_TOKEN=hf_abc#1" in login.run("cat /proc/self/environ").stdout.split("\0")
        assert "role    up" in login.run("crane-x7-remote status").stdout
        assert container.is_healthy()
        assert "root" not in container.exec("ps", "-eo", "user=", user="vla").stdout.split()
        container.stop()
        assert container.exit_code == 128 + 15
