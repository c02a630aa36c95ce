"""`doctor --bundle`: findings, versions, settings, logs → a .tar.gz for a bug report.

Every text and every name goes through one `Redactor`. Sizes are bounded, links are not followed,
and only text files that a run or a boot writes are taken. The archive appears complete or not at
all, readable by its owner alone.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from crane_x7_remote import settings as settings_module
from crane_x7_remote import settings_values
from crane_x7_remote.boot.files import run_dirs
from crane_x7_remote.doctor import child
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.redact import Redactor, remember_all
from crane_x7_remote.errors import OutputError
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.file_errors import why

ENDINGS: Final = (".log", ".jsonl", ".json", ".yaml", ".yml", ".csv", ".txt", ".md")
"""Files of runs: train.log, metrics, configurations, reports."""
SKIPPED: Final = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")
MOST_FILES, MOST_SEEN = 40, 20_000
"""Files that are taken, and that are looked at."""
FILE_BYTES: Final = 256 * 1024
"""Of each file the end."""
TOTAL_BYTES: Final = 8 * 1024 * 1024
PROGRAM_S: Final = 10.0
PROGRAMS: Final = {
    "uname.txt": ("uname", "-a"),
    "nvidia-smi.txt": ("nvidia-smi",),
    "vulkaninfo.txt": ("vulkaninfo", "--summary"),
    "df.txt": ("df", "-h"),
    "free.txt": ("free", "-h"),
    "ports.txt": ("ss", "-ltn"),
    "tailscale.txt": ("tailscale", "status"),
}
PROC: Final = {"meminfo.txt": Path("/proc/meminfo"), "os-release.txt": Path("/etc/os-release")}
TOP: Final = "doctor"
"""The archive's one folder."""


@dataclass
class _Archive:
    """Collects redacted texts up to a size."""

    redact: Redactor
    tar: tarfile.TarFile
    left_bytes: int
    names: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        content = self.redact(text).encode(errors="replace")
        content = content[-max(0, self.left_bytes) :] if self.left_bytes > 0 else b""
        if not content:
            return
        self.left_bytes -= len(content)
        safe = self.redact(name).replace("..", "_").lstrip("/")
        info = tarfile.TarInfo(f"{TOP}/{safe}")
        info.size, info.mtime, info.mode = len(content), int(time.time()), 0o600
        self.tar.addfile(info, io.BytesIO(content))
        self.names.append(safe)


def write(path: Path, document: Mapping[str, Any], settings: Settings) -> str:
    """Write the archive and return what to tell the user; raises OutputError."""
    remember_all(settings)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    redact = Redactor()
    try:
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            archive = _Archive(redact, tar, TOTAL_BYTES)
            _fill(archive, document, settings)
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise OutputError(
            f"--bundle {path}: {why(error)}; name a file in a folder that exists and can be written"
        ) from error
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    masked = sum(redact.counts.values())
    return (
        f"wrote {path}: {len(archive.names)} files, {path.stat().st_size / 1000:.0f} kB,"
        f" {masked} secrets masked; look through it before you send it: tar -tzf {path}"
    )


def _fill(archive: _Archive, document: Mapping[str, Any], settings: Settings) -> None:
    archive.add("doctor.json", json.dumps(document, indent=2, ensure_ascii=False))
    archive.add("settings.json", json.dumps(_settings(settings), indent=2))
    archive.add("versions.json", json.dumps(_versions(), indent=2))
    archive.add("packages.txt", _packages())
    for name, command in PROGRAMS.items():
        archive.add(f"machine/{name}", _output(command))
    for name, source in PROC.items():
        if source.is_file():
            archive.add(f"machine/{name}", source.read_text(errors="replace"))
    for root, source in _sources(settings):
        if (text := _tail(source)) is not None:
            archive.add(f"{root.name or 'root'}/{source.relative_to(root)}", text)
    counts = {kind: count for kind, count in archive.redact.counts.items() if count}
    archive.add("masked.json", json.dumps(counts, indent=2))


def _settings(settings: Settings) -> dict[str, Any]:
    """Return each setting as text, secrets as ***, and whether it is set."""
    return {
        name.upper(): {
            "value": _shown(name, getattr(settings, name)),
            "is_set": name in settings.model_fields_set,
        }
        for name in type(settings).model_fields
    }


def _shown(name: str, value: object) -> str:
    is_open = value is None or name == "vla_unnorm_key"
    return repr(value) if is_open else settings_values.shown(name, value)


def _versions() -> dict[str, str]:
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "executable": sys.executable,
        "crane-x7-remote": _version("crane-x7-remote"),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def _packages() -> str:
    """Return what `pip list --format freeze` would print."""
    found = {str(each.metadata["Name"]): each.version for each in metadata.distributions()}
    return "\n".join(f"{name}=={found[name]}" for name in sorted(found, key=str.lower))


def _output(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed\n"
    try:
        code, output, errors = child.call(command, PROGRAM_S)
    except ChildError as error:
        return f"{command[0]}: {error}\n"
    return (output + errors + (f"exit code {code}\n" if code else ""))[-FILE_BYTES:]


def _sources(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """Yield the newest files of OUTPUT_ROOT and of boot, with their root; no links."""
    roots = [Path(settings.output_root or settings_module.output_root()).expanduser()]
    roots += [folder / "role" for folder in run_dirs(settings.boot_run_dir)]
    for root in roots:
        found: list[tuple[float, Path]] = []
        for path in _walk(root):
            try:
                found.append((path.stat().st_mtime, path))
            except OSError:
                continue
        for _, path in sorted(found, reverse=True)[:MOST_FILES]:
            yield root, path


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not Path(folder, name).is_symlink()]
        for name in sorted(names):
            seen += 1
            if seen > MOST_SEEN:
                return
            path = Path(folder, name)
            is_text = name.lower().endswith(ENDINGS) and name not in SKIPPED
            if is_text and not path.is_symlink() and path.is_file():
                yield path


def _tail(path: Path) -> str | None:
    """Return the end of a text file, from the start of a line; None for what is no text."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - FILE_BYTES))
            content = file.read(FILE_BYTES)
    except OSError:
        return None
    if b"\0" in content:
        return None
    text = content.decode(errors="replace")
    if size > len(content):  # its first line may start in the middle of a secret
        text = text.partition("\n")[2]
    return text
