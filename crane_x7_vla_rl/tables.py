"""Tables on standard output: with rules on a terminal, aligned columns in a file or a pipe.

Cells → lines. Text from outside can neither colour a cell nor break its line.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from crane_x7_vla_rl.log_text import escape


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> None:
    """Print rows of as many cells as there are columns; those in `right` are numbers."""
    if sys.stdout.isatty():
        _rule(title, columns, rows, right)
        return
    print(title)
    for line in aligned(columns, rows, right):
        print(line)


def aligned(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> list[str]:
    """Return a line of headings and one per row, columns two blanks apart."""
    table = [[escape(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in table
    ]


def _rule(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(escape(title)), title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)
