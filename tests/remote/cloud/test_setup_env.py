"""setup_env.sh on a bare machine: what it installs, once; programs are stand-ins that take notes.

The real installation takes 6 GB: see docs/log.md.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from crane_x7_remote.cloud import bundle, run
from crane_x7_remote.cloud import session as module

MACHINE = Path(module.__file__).with_name("machine")
TOOLS = (
    "bash", "sh", "env", "cat", "cut", "sha256sum", "tar", "gzip", "rm", "mv", "mkdir", "cp", "df",
    "awk", "chmod", "dirname", "id", "ln", "ldconfig", "printf", "grep",
)  # fmt: skip
UV = (
    r"#!/bin/sh\necho \"uv $*\" >>{notes}\n"
    r"[ \"$2\" != find ] || echo {folder}/managed/bin/python3\n"
)
PYTHON = """#!/bin/bash
case "$*" in
    *"sys.version_info"*) exit {fits} ;;
    "-m venv --clear "*)
        mkdir -p "${{!#}}/bin" "${{!#}}/lib/python3.12/site-packages"
        cp "$0" "${{!#}}/bin/python"
        printf '{uv}' >"${{!#}}/bin/uv"
        chmod +x "${{!#}}/bin/uv" ;;
    "-m pip"*) echo "pip $*" >>{notes}; exit {pip} ;;
esac
exit 0
"""


class Bare:
    """A machine's folder, and programs before all others on its PATH."""

    def __init__(self, folder: Path, job: str = "lerobot") -> None:
        self.folder, self.notes = folder / "run", folder / "notes"
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        self.folder.mkdir()
        for name in module.SCRIPTS:
            shutil.copy(MACHINE / name, self.folder)
        (self.folder / "job_kind").write_text(job)
        (self.folder / "package.tar.gz").write_bytes(bundle.pack())
        for name in TOOLS:
            if found := shutil.which(name, path=f"{os.environ['PATH']}:/sbin:/usr/sbin"):
                (self.programs / name).symlink_to(found)
        self.program("apt-get", f'#!/bin/sh\necho "apt-get $*" >>{self.notes}\n')

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def python(self, name: str, fits: bool = True, pip: int = 0) -> None:
        uv = UV.format(notes=self.notes, folder=self.programs.parent)
        text = PYTHON.format(fits=int(not fits), notes=self.notes, pip=pip, uv=uv)
        self.program(name, text)

    def run(self, code: int = 0) -> str:
        self.notes.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "setup_env.sh", "none"], cwd=self.folder, capture_output=True, text=True,
            env={"PATH": str(self.programs), "HOME": str(self.folder)}, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        self.said = done.stdout
        return self.notes.read_text() if self.notes.exists() else ""


def test_a_bare_machine_gets_this_project_and_lerobot_by_their_pins_once(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    bare.python("python3.12")
    notes = bare.run()
    ours, theirs = (line for line in notes.splitlines() if line.startswith("pip"))
    assert "-c package/constraints.txt -r package/requirements.txt" in ours
    assert "-c package/constraints-lerobot.txt lerobot[training,smolvla,pi" in theirs
    for venv in (".venv", ".venv-lerobot"):
        (pth,) = (bare.folder / venv).glob("lib/python3.12/site-packages/crane_x7.pth")
        assert pth.read_text().strip() == str(bare.folder / "package")
    assert (bare.folder / "package/crane_x7_vla_rl/training/cli.py").is_file()
    assert (bare.folder / ".venv/bin/crane-x7-vla-rl").stat().st_mode & stat.S_IXUSR
    assert "pip" not in bare.run()


def test_an_installation_that_broke_off_is_repeated(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    bare.python("python3.12", pip=1)
    bare.run(code=1)
    bare.python("python3.12")
    shutil.rmtree(bare.folder / ".venv")
    assert bare.run().count("pip -m pip install") == 2


@pytest.mark.parametrize(("job", "wanted"), [("sft", "requirements-sft"), ("train", "-train")])
def test_our_own_trainers_need_no_lerobot(job: str, wanted: str, tmp_path: Path) -> None:
    bare = Bare(tmp_path, job)
    bare.python("python3.12")
    notes = bare.run()
    assert wanted in notes
    assert "lerobot[" not in notes


def test_an_older_distribution_gets_a_python_of_uv(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    bare.python("python3", fits=False)
    managed = tmp_path / "managed/bin"
    managed.mkdir(parents=True)
    bare.python("made")
    shutil.move(bare.programs / "made", managed / "python3")
    notes = bare.run()
    assert "python3.12-venv" in notes
    assert "uv python install" in notes
    assert "lerobot[" in notes


def test_an_image_of_this_project_installs_nothing(tmp_path: Path) -> None:
    bare = Bare(tmp_path, "sft")
    bare.program("crane-x7-vla-rl", "#!/bin/sh\necho crane-x7-vla-rl 0.1.0\n")
    assert bare.run() == ""
    assert "nothing is installed" in bare.said


def test_an_image_without_lerobot_gets_the_package_that_installs_it(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    bare.program("crane-x7-vla-rl", "#!/bin/sh\necho crane-x7-vla-rl 0.1.0\n")
    lerobot = tmp_path / "lerobot/bin"
    lerobot.mkdir(parents=True)
    (lerobot / "python").symlink_to(bare.programs / "sh")

    def said(script: str, **variables: str) -> str:
        environ = {"PATH": str(bare.programs), **variables}
        return subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, env=environ, check=True
        ).stdout.strip()

    assert said(run.PROBE) == "crane-x7-vla-rl 0.1.0"
    assert said(run.PROBE_LEROBOT) == "none"
    assert said(run.PROBE_LEROBOT, LEROBOT_VENV=str(lerobot.parent)) == "crane-x7-vla-rl 0.1.0"
    bare.python("python3.12")
    assert "lerobot[" in bare.run()  # and setup_env.sh then installs it


def test_a_small_disk_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    bare.python("python3.12")
    bare.program("df", "#!/bin/sh\necho head\necho /dev/x 1 1 900 1 /\n")
    assert bare.run(code=1) == ""
    assert "--disk-gb" in bare.said
    assert "900 MB" in bare.said
