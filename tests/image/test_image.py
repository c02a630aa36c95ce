"""What is in the image and what is not. Built from docker/Dockerfile on a debootstrapped Debian."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import BASE, ROOT, Workshop

pytestmark = pytest.mark.container

SLIM_LIMIT_MB = 1200
FORBIDDEN_NAMES = re.compile(
    r"ssh_host_.*|id_(rsa|ecdsa|ed25519)|\.netrc|authorized_keys|\.env|.*\.sock|tailscaled\.state"
)
COUNT_VULKAN_DEVICES = """
import ctypes
vulkan = ctypes.CDLL("libvulkan.so.1")
class Create(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
                ("application", ctypes.c_void_p), ("layers", ctypes.c_uint32),
                ("layer_names", ctypes.c_void_p), ("extensions", ctypes.c_uint32),
                ("extension_names", ctypes.c_void_p)]
instance, count = ctypes.c_void_p(), ctypes.c_uint32()
assert vulkan.vkCreateInstance(ctypes.byref(Create(type=1)), None, ctypes.byref(instance)) == 0
assert vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None) == 0
print(count.value)
"""
DRAW_THE_SCENE = """
from crane_x7_vla_rl import sim
env = sim.make(sim.PICK_PLACE_ID)
observation, _ = env.reset(seed=0)
print(float(observation["sensor_data"]["base_camera"]["rgb"].float().std()))
"""


def _inside(workshop: Workshop, image: str, *command: str, user: str = "vla") -> str:
    return workshop.run(
        *("podman", "run", "--rm", "--network", "none", "--user", user),
        *("--entrypoint", command[0], image, *command[1:]),
    ).stdout


def _layer_folders(workshop: Workshop, image: str) -> Iterator[Path]:
    """Every layer above the base, as the folder of what it adds: also what a later one removes."""
    driver = workshop.inspect("image", image)["GraphDriver"]["Data"]
    base = workshop.inspect("image", BASE)["GraphDriver"]["Data"]["UpperDir"]
    for folder in (driver["UpperDir"], *driver.get("LowerDir", "").split(":")):
        if folder != base:
            yield Path(folder)


def _extras() -> list[str]:
    return sorted(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_image_without_torch_stays_below_its_limit(workshop: Workshop, image: str) -> None:
    size_mb = workshop.inspect("image", image)["Size"] / 1e6
    assert 100 < size_mb <= SLIM_LIMIT_MB
    assert "torch" not in _inside(workshop, image, "pip", "list", "--format", "freeze")


def test_second_build_takes_every_layer_from_the_cache(workshop: Workshop, image: str) -> None:
    before = workshop.inspect("image", image)["Id"]
    assert workshop.build(extras="") == image
    assert workshop.inspect("image", image)["Id"] == before


def test_no_layer_holds_a_key_or_a_secret(workshop: Workshop, image: str) -> None:
    folders = list(_layer_folders(workshop, image))
    assert len(folders) > 5
    for folder in folders:
        for path in folder.rglob("*"):
            assert not FORBIDDEN_NAMES.fullmatch(path.name), path


def test_configuration_of_the_image_holds_no_secret(workshop: Workshop, image: str) -> None:
    config = workshop.inspect("image", image)["Config"]
    names = {line.partition("=")[0] for line in config["Env"]}
    assert not {name for name in names if re.search("KEY|TOKEN|SECRET|CERT|PROXY", name)}


def test_every_python_package_has_its_version_from_constraints(
    workshop: Workshop, image: str
) -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {
        normal(line.partition("==")[0]): line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    listed = json.loads(_inside(workshop, image, "pip", "list", "--format", "json"))
    own = {"pip", "setuptools", "crane-x7-remote"}
    found = {normal(entry["name"]): entry["version"] for entry in listed}
    assert "numpy" in found
    assert {name: version for name, version in found.items() if name not in own} == {
        name: pinned.get(name) for name in found if name not in own
    }


def test_user_vla_owns_caches_and_outputs_and_has_no_password(
    workshop: Workshop, image: str
) -> None:
    script = 'id -u; whoami; touch "$HF_HOME/x" "$WANDB_DIR/x" /workspace/x && echo writable'
    assert _inside(workshop, image, "sh", "-c", script).split() == ["1000", "vla", "writable"]
    shadow = _inside(workshop, image, "cat", "/etc/shadow", user="root").splitlines()
    password = {line.split(":")[0]: line.split(":")[1] for line in shadow}
    assert password["vla"] == "*"
    assert password["root"] in ("*", "!")


def test_results_have_one_root_by_both_of_its_paths(workshop: Workshop, image: str) -> None:
    script = 'touch /workspace/outputs/x && ls "$OUTPUT_ROOT"; echo "$OUTPUT_ROOT"'
    seen = _inside(workshop, image, "sh", "-c", script).split()
    assert seen == ["x", "/workspace/vla-rl/outputs"]


def test_tools_for_a_lost_session_and_for_troubleshooting_are_there(
    workshop: Workshop, image: str
) -> None:
    script = "tmux -V; autossh -V; vulkaninfo --summary"
    seen = _inside(workshop, image, "sh", "-c", script)
    assert re.search(r"^tmux \d", seen, re.MULTILINE)
    assert re.search(r"^autossh \d", seen, re.MULTILINE)
    assert "deviceName" in seen


def test_image_says_what_it_is_and_how_it_starts(workshop: Workshop, image: str) -> None:
    about = workshop.inspect("image", image)
    config = about["Config"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert labels["org.opencontainers.image.base.name"] == BASE
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "crane-x7-remote", "boot"]
    assert config["Volumes"] == {"/workspace/vla-rl/outputs": {}}
    assert about["Healthcheck"]["Test"][:2] == ["CMD", "crane-x7-remote"]


def test_vulkan_finds_a_device_without_a_gpu(workshop: Workshop, image: str) -> None:
    assert int(_inside(workshop, image, "python", "-c", COUNT_VULKAN_DEVICES)) >= 1


def test_files_that_lead_to_the_nvidia_driver_are_there(workshop: Workshop, image: str) -> None:
    vulkan = json.loads(_inside(workshop, image, "cat", "/usr/share/vulkan/icd.d/nvidia_icd.json"))
    egl = json.loads(
        _inside(workshop, image, "cat", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json")
    )
    assert vulkan["ICD"]["library_path"] == "libGLX_nvidia.so.0"
    assert egl["ICD"]["library_path"] == "libEGL_nvidia.so.0"
    libraries = _inside(workshop, image, "ldconfig", "-p", user="root")
    for name in ("libXext.so.6", "libEGL.so.1", "libGLX.so.0", "libGL.so.1", "libvulkan.so.1"):
        assert name in libraries


def test_source_is_not_shipped_beside_the_installed_package(workshop: Workshop, image: str) -> None:
    found = _inside(workshop, image, "find", "/", "-xdev", "-name", "pyproject.toml", user="root")
    assert found == ""
    where = _inside(
        workshop, image, "python", "-c", "import crane_x7_remote as m; print(m.__file__)"
    )
    assert where.startswith("/opt/venv/")


def test_unknown_extra_is_refused_by_name() -> None:
    script = ROOT / "docker" / "requirements.py"
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "pyproject.toml"), "sim,trian"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert all(extra in done.stderr for extra in _extras())


@pytest.mark.slow
@pytest.mark.timeout(3600, func_only=True)
def test_full_image_renders_the_simulated_arm_without_a_gpu(
    workshop: Workshop, whole_image: str
) -> None:
    drawn = _inside(workshop, whole_image, "python", "-c", DRAW_THE_SCENE).split()
    assert float(drawn[-1]) > 5
