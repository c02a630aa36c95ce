"""`completion`: a shell's name → the code that it runs to complete commands and flags.

crane-x7-remote completion bash >> ~/.bashrc
crane-x7-remote completion zsh >> ~/.zshrc
crane-x7-remote completion fish > ~/.config/fish/completions/crane-x7-remote.fish
"""

from __future__ import annotations

import argparse
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help="your shell")


def run(args: argparse.Namespace) -> int:
    """Print the code; returns 0."""
    from argcomplete.shell_integration import shellcode

    print(shellcode([args.program], shell=args.shell))
    return 0
