"""On the rented machine: a mode → the training, in place of this process.

    train_lerobot_entry.py --mode train|resume_hub|resume_local|auto --config train.remote.yaml
        [--checkpoint-repo-id owner/name]
    train_lerobot_entry.py --mode job            the words of job.json

Needs nothing but Python; setup_env.sh has read .env. The trainer is `crane-x7-vla-rl lerobot`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = "crane-x7-vla-rl"


def words(args: argparse.Namespace) -> list[str]:
    """Return the words of the training's command."""
    if args.mode == "job":
        return [str(word) for word in json.loads((HERE / "job.json").read_text())]
    found = ["lerobot", "--config", args.config]
    if args.checkpoint_repo_id:
        found += ["--checkpoint-repo-id", args.checkpoint_repo_id]
    if args.mode == "auto":
        return [*found, "--resume", "auto"]
    return [*found, "--mode", args.mode]


def main() -> None:
    """Become the training."""
    parser = argparse.ArgumentParser(description="start the training on the rented machine")
    modes = ("train", "resume_hub", "resume_local", "auto", "job")
    parser.add_argument("--mode", choices=modes, required=True)
    parser.add_argument("--config", default="train.remote.yaml")
    parser.add_argument("--checkpoint-repo-id")
    args = parser.parse_args()
    os.chdir(HERE)
    command = [PROGRAM, *words(args)]
    print(f"starting: {shlex.join(command)}", flush=True)
    try:
        os.execvp(PROGRAM, command)
    except OSError as error:
        sys.exit(f"{PROGRAM} cannot be started: {error.strerror}; run setup_env.sh first")


if __name__ == "__main__":
    main()
