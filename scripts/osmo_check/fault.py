"""One fault of a workflow file: where, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What check-osmo prints as one line."""

    line: int
    """Line of the file, or of the rendered text; from 1."""
    key: str
    """Dotted key, or the text that is wrong."""
    what: str
    """What is there, what was expected, what to do."""
    rendered: bool = False
    """Whether `line` counts the rendered text, which --show prints."""

    def shown(self, file: str) -> str:
        """Return the line of text."""
        place = f"{file} (rendered)" if self.rendered else file
        return f"{place}:{self.line}: {self.key}: {self.what}"
