"""Print the requirements of pyproject.toml, which the image installs before it copies the source.

    python docker/requirements.py pyproject.toml sim,train

The extras are separated by commas and may be empty. An unknown one is an error with exit code 2.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(path: str, extras: str) -> int:
    """Write one requirement per line to stdout; return the exit code."""
    project = tomllib.loads(Path(path).read_text())["project"]
    known = project["optional-dependencies"]
    wanted = [name.strip() for name in extras.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(
            f"EXTRAS: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}",
            file=sys.stderr,
        )
        return 2
    for requirements in (project["dependencies"], *(known[name] for name in wanted)):
        print(*requirements, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
