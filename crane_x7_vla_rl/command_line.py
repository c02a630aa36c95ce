"""The command line of both programs. Table of commands, words → help, completion or exit code.

A command is a module with `add_arguments(parser)` and `run(args) -> int`; it is imported only when
it is chosen. A module may also have `COMMON`, the names of the values whose flags `--help` shows;
`--help-all` then shows the others, too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import logging
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, NoReturn

from crane_x7_vla_rl import log_text
from crane_x7_vla_rl.fields import argument_type
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.old_names import value_hint
from crane_x7_vla_rl.suggest import did_you_mean, nearest

logger = logging.getLogger(__name__)

DISTRIBUTION: Final = "crane-x7-remote"
"""Package that contains both commands."""
LEVELS: Final = ("debug", "info", "warning", "error")
COMPLETION: Final = (
    "crane_x7_vla_rl.completion",
    "print what a shell needs to complete commands and flags",
)
WIDTH: Final = 100
"""Columns of help, at most."""
NO_VALUE: Final = re.compile(r"(\S+): ignored explicit argument '(.*)'", re.DOTALL)
MISSING: Final = "the following arguments are required"
USAGE, OUTPUT, INTERRUPTED = 2, 8, 128 + 2
"""Exit codes that are the same in both packages."""


@dataclass(frozen=True)
class Program:
    """One command of the shell, and its own commands."""

    name: str
    description: str
    commands: Mapping[str, tuple[str, str]]
    """Name → module, and its line of help."""
    failure_code: Callable[[Exception], int | None]
    """Exit code of an expected failure; None for a bug in this program."""
    old_names: Mapping[str, str]
    """Flag of older documents → its present name."""


class Help(argparse.HelpFormatter):
    """Help as wide as the terminal, up to WIDTH."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns - 2
        super().__init__(prog, max_help_position=30, width=min(columns, WIDTH))
        self._action_max_length = 16  # argparse forgets that commands are indented


class Parser(argparse.ArgumentParser):
    """Errors without usage and without secrets, no abbreviated flags, short help."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Help)
        super().__init__(**options, allow_abbrev=False)
        self.common: Collection[str] = ()
        """Names of the values whose flags `format_help` shows; all if empty."""
        self.unknown_flags: Callable[[], str] = str
        """What to say about unknown flags where something is missing: that is often their doing."""
        for kind in (int, float):
            self.register("type", kind, argument_type(kind))

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with code 2."""
        if message.startswith(MISSING):
            message = self.unknown_flags() or message
        message = NO_VALUE.sub(r"\1: takes no value, got '\2'", message.removeprefix("argument "))
        text = f"{self.prog}: {message}\nsee {self.prog} --help"
        print(log_text.tell(text), file=sys.stderr)
        sys.exit(USAGE)

    def format_help(self, everything: bool = False) -> str:
        """Return the help, only of the common flags if some are marked so."""
        hidden = [] if everything or not self.common else self._rare()
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            with self._short_usage():
                text = super().format_help()
        finally:
            for action, help_text in zip(hidden, texts, strict=True):
                action.help = help_text
        return f"{text}\n{len(hidden)} more flags: {self.prog} --help-all\n" if hidden else text

    def format_usage(self) -> str:
        """Return the usage: the required arguments."""
        with self._short_usage():
            return super().format_usage()

    def _rare(self) -> list[argparse.Action]:
        return [
            action
            for action in self._actions
            if action.option_strings
            and action.help != argparse.SUPPRESS
            and action.dest not in (*self.common, "help", "help_all", "log_level")
        ]

    @contextlib.contextmanager
    def _short_usage(self) -> Iterator[None]:
        needed = [each for each in self._actions if each.required or not each.option_strings]
        formatter = self._get_formatter()
        formatter.add_usage(None, needed, [], "")
        words = formatter.format_help().strip().replace("%", "%%")
        self.usage = words if self._subparsers else f"{words} [FLAG …]"
        try:
            yield
        finally:
            self.usage = None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else ""
        few = len(names) <= 15 or not all(name.isdecimal() for name in names)
        expected = ", ".join(names) if few else f"{names[0]} to {names[-1]}"
        old = value_hint(action.option_strings, str(value))
        hint = old or did_you_mean(str(value), names)
        if what:
            text = f"there is no command {value!r}{hint or '; commands: ' + expected}"
            raise argparse.ArgumentError(None, text)
        raise argparse.ArgumentError(action, f"{value!r}, expected one of {expected}{hint}")


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, 0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_help(everything=True), end="")
        parser.exit()


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, 0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        try:
            version = importlib.metadata.version(DISTRIBUTION)
        except importlib.metadata.PackageNotFoundError:
            version = "of a checkout that is not installed"
        print(f"{parser.prog} {version}")
        parser.exit()


def main(
    program: Program,
    argv: Sequence[str] | None,
    line_to_complete: str | None,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run the command named in `argv` (default: the process's) and return its exit code.

    `line_to_complete` is the line to complete, if a shell runs this process for completion.
    `check` raises an expected failure if no command may run.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log_text.install()
    if line_to_complete is not None:
        words = line_to_complete.split()[1:]
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        parser, module = _parser(program, chosen)
    except ModuleNotFoundError as error:
        return _missing(f"{program.name} {chosen}", error)
    if line_to_complete is not None:
        import argcomplete

        argcomplete.autocomplete(parser)  # and ends the process
    if not words:
        parser.print_help()
        return 0
    args = _parse(parser, words, program)
    log_text.configure(args.log_level)
    try:
        check()
        return int(module.run(args))
    except ModuleNotFoundError as error:
        return _missing(f"{program.name} {args.command}", error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return OUTPUT
    except Exception as error:
        code, text = program.failure_code(error), str(error)
        if code is None and isinstance(error, OSError) and error.filename is not None:
            logger.debug("the error in full", exc_info=error)
            code, text = OUTPUT, f"{error.filename}: {why(error)}"
        if code is None:
            raise
        print(log_text.tell(f"{program.name} {args.command}: {text}"), file=sys.stderr)
        return code


def _parser(program: Program, chosen: str | None) -> tuple[Parser, Any]:
    """Return the parser, with only the flags of the chosen command, and that command's module."""
    parser, module = Parser(prog=program.name, description=program.description), None
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    for name, (module_name, help_text) in {**program.commands, "completion": COMPLETION}.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name != chosen:
            continue
        module = importlib.import_module(module_name)
        command.add_argument(
            "--log-level", choices=LEVELS, type=str.lower, default="info",
            help="least severe lines that the log shows (%(default)s)",
        )  # fmt: skip
        module.add_arguments(command)
        command.set_defaults(program=program.name)
        command.common = getattr(module, "COMMON", ())
        if command.common:
            command.add_argument("--help-all", action=_HelpAll, help="show every flag and exit")
    return parser, module


def _parse(parser: Parser, words: Sequence[str], program: Program) -> argparse.Namespace:
    at = next((at for at, word in enumerate(words) if not word.startswith("-")), len(words))
    early = [word for word in words[:at] if _flag(word) not in parser._option_string_actions]
    if early:
        later = f"flags follow the command: {program.name} COMMAND {early[0]} …"
        parser.error(f"{early[0]} is unknown here; {later}")
    if at < len(words) and (chosen := _commands(parser).get(words[at])) is not None:
        chosen.unknown_flags = partial(_unknown_flags, chosen, words[at + 1 :], program)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        command = _commands(parser)[args.command]
        command.error(explain_unknown(unknown, command._option_string_actions, program.old_names))
    return args


def _commands(parser: Parser) -> Mapping[str, Parser]:
    (commands,) = (each for each in parser._actions if each.dest == "command")
    assert isinstance(commands, argparse._SubParsersAction)
    return commands.choices


def _unknown_flags(parser: Parser, words: Sequence[str], program: Program) -> str:
    """Return what to say about flags in `words` that `parser` does not know, "" without any."""
    words = words[: words.index("--")] if "--" in words else words
    known = parser._option_string_actions
    unknown = [word for word in words if word.startswith("--") and _flag(word) not in known]
    return explain_unknown(unknown, known, program.old_names)


def _flag(word: str) -> str:
    return word.partition("=")[0]


def explain_unknown(
    words: Sequence[str], flags: Collection[str], old_names: Mapping[str, str]
) -> str:
    """Return the error for unknown words: the present name, or the nearest flags."""
    texts = []
    for before, word in pairwise(("", *words)):
        if before.startswith("-") and (not word.startswith("-") or word[1:2].isdigit()):
            continue  # most likely its value
        name = word.partition("=")[0]
        hint = f"; it is now {old_names[name]}" if name in old_names else ""
        texts.append(f"{word} is unknown{hint or _flag_hint(name, flags)}")
    return ", ".join(texts)


def _flag_hint(name: str, flags: Collection[str]) -> str:
    """Return the nearest flag; the dashes that all share do not make them near."""
    bare = {flag.lstrip("-"): flag for flag in flags}
    near = nearest(name.lstrip("-"), bare)
    return f"; did you mean {bare[near[0]]}?" if near else ""


def _missing(command: str, error: ModuleNotFoundError) -> int:
    """Print the missing package; a missing module of this project is a bug, raised again."""
    if (error.name or "").startswith("crane_x7"):
        raise error
    text = f"the package {error.name} is missing: pip install 'crane-x7-remote[train,sim]'"
    print(log_text.tell(f"{command}: {text}"), file=sys.stderr)
    return USAGE
