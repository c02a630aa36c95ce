"""What the image has for a GPU, as far as a machine without one shows it.

The compiler with which Triton builds its launchers, for user vla; Triton's cache on the volume of
models; SAPIEN's GPU PhysX library, for which a small archive stands in.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import container_packages
import pytest
from containers import ROOT, Workshop, build_command

from crane_x7_vla_rl.physx_library import NAME, PINNED

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800, func_only=True)]

PROGRAM = ROOT / "tests" / "rigs" / "compile_kernel.py"
STAND_IN = b"\x7fELF stand-in"
CHECK = """
from pathlib import Path
from crane_x7_vla_rl import physx_library
print(physx_library.problem(
    Path.home() / physx_library.FOLDER / physx_library.PINNED.version / physx_library.NAME))
"""


def _inside(
    workshop: Workshop, image: str, *command: str, flags: tuple[str, ...] = (), user: str = "vla"
) -> str:
    return workshop.run(
        *("podman", "run", "--rm", "--network", "none", "--user", user, *flags),
        *("--entrypoint", command[0], image, *command[1:]),
    ).stdout


@pytest.fixture(scope="module")
def extras_image(workshop: Workshop) -> str:
    """The image with an extra that has no packages: what every extra gets, without torch."""
    return workshop.build(extras="cloud")


def test_user_vla_compiles_a_kernel_for_a_gpu(workshop: Workshop, extras_image: str) -> None:
    flags = (
        *container_packages.mounted(workshop, extras_image),
        f"--volume={PROGRAM}:/compile_kernel.py:ro",
    )
    said = _inside(workshop, extras_image, "python", "/compile_kernel.py", flags=flags)
    assert said.splitlines() == ["machine code: True", "module: True", "cached: True"]


def test_only_an_image_with_extras_has_a_compiler(
    workshop: Workshop, image: str, extras_image: str
) -> None:
    script = "command -v gcc || echo none"
    assert _inside(workshop, image, "sh", "-c", script).strip() == "none"
    assert _inside(workshop, extras_image, "sh", "-c", script).strip() == "/usr/bin/gcc"


def test_caches_of_kernels_are_on_the_volume_of_models(workshop: Workshop, image: str) -> None:
    script = 'echo "$HF_HOME"; dirname "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR"'
    assert len(set(_inside(workshop, image, "sh", "-c", script).split())) == 1


@pytest.mark.parametrize("user", ["vla", "root"])
def test_every_user_looks_for_physx_where_the_image_has_it(
    workshop: Workshop, image: str, tmp_path: Path, user: str
) -> None:
    folder = f"/opt/physx/{PINNED.version}"
    missing = _inside(workshop, image, "python", "-c", CHECK, user=user)
    assert f".sapien/physx/{PINNED.version}/{NAME} is missing" in missing
    tmp_path.chmod(0o755)
    (tmp_path / NAME).write_bytes(STAND_IN)
    flags = (f"--volume={tmp_path}:{folder}:ro",)
    said = _inside(workshop, image, "python", "-c", CHECK, flags=flags, user=user)
    assert f"{NAME} has {len(STAND_IN)} bytes, expected {PINNED.library_bytes}" in said


def _context(folder: Path) -> Path:
    """Return a build context whose pinned release is the stand-in."""
    for path in ("docker", "crane_x7_vla_rl"):
        (folder / path).mkdir()
    for path in ("docker/nvidia_icd.json", "docker/10_nvidia.json", "docker/Dockerfile"):
        shutil.copy2(ROOT / path, folder / path)
    archive = folder / "docker" / "linux-so.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(NAME, STAND_IN)
    code = (ROOT / "crane_x7_vla_rl" / "physx_library.py").read_text()
    for old, new in (
        (PINNED.archive_sha256, hashlib.sha256(archive.read_bytes()).hexdigest()),
        (PINNED.library_sha256, hashlib.sha256(STAND_IN).hexdigest()),
        (f"{PINNED.library_bytes:_}", str(len(STAND_IN))),
    ):
        assert old in code
        code = code.replace(old, new)
    (folder / "crane_x7_vla_rl" / "physx_library.py").write_text(code)
    return folder


def test_the_build_takes_the_library_from_a_file_and_refuses_another(
    workshop: Workshop, image: str, tmp_path: Path
) -> None:
    context = _context(tmp_path)
    name = f"{image}-physx"
    build = build_command(name, "sim", archive="docker/linux-so.zip")[:-1]
    build += ["--target", "physx", str(context)]
    workshop.run(*build, timeout_s=600)
    path = f"/opt/physx/{PINNED.version}/{NAME}"
    try:
        assert (
            _inside(workshop, name, "sha256sum", path).split()[0]
            == hashlib.sha256(STAND_IN).hexdigest()
        )
    finally:
        workshop.run("podman", "rmi", "--force", name)
    with (context / "docker" / "linux-so.zip").open("ab") as archive:
        archive.write(b"!")
    done = workshop.run(*build, check=False, timeout_s=600)
    assert done.returncode != 0
    assert re.search(r"linux-so\.zip has SHA-256 .*, expected", done.stdout + done.stderr)
