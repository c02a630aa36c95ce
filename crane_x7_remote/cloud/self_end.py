"""How a rented machine ends itself: a provider's call → lines of shell for the dead-man's switch.

The machine uses a key that its provider puts into every machine and that can end only that machine.
No key of the account ever leaves home.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelfEnd:
    """One HTTP call with variables of the machine's first process; none: switch off only."""

    stops_billing: str
    """What no longer costs money afterwards, in words for the log and the docs."""
    method: str | None = None
    """None: there is no call, the machine can only switch itself off."""
    url: str = ""
    """With ${VARIABLE} for the machine's own variables."""
    key: str = ""
    """Variable with the key that can end only this machine."""
    variables: tuple[str, ...] = ()
    """Variables that `url` and `body` use."""
    body: str = ""
    """JSON, with ${VARIABLE} as in `url`."""

    def shell(self) -> str:
        """Return a POSIX shell function `end_machine`.

        The key is read from the environment of process 1 and goes to curl through its standard
        input, so that no argument list shows it. The call is repeated until it succeeds; whatever
        happens, `poweroff` follows.
        """
        lines = ["end_machine() {"]
        if self.method is not None:
            lines += [f"  {name}=$({_FROM_FIRST.format(name)})" for name in self._names()]
            lines += [
                "  for pause in 1 2 4 8 16 32 64 128 256; do",
                f'    printf \'header = "Authorization: Bearer %s"\\n\' "${self.key}" |',
                f"      curl -fsS -K - -m 60 -X {self.method}"
                f" -H 'Content-Type: application/json'{self._data()} \"{self.url}\" && break",
                '    sleep "$pause"',
                "  done",
            ]
        return "\n".join([*lines, "  poweroff || shutdown -h now || kill -TERM 1", "}\n"])

    def _names(self) -> tuple[str, ...]:
        return (self.key, *self.variables)

    def _data(self) -> str:
        body = self.body.replace("\\", "\\\\").replace('"', '\\"')
        return f' -d "{body}"' if body else ""


_FROM_FIRST = "tr '\\0' '\\n' < /proc/1/environ | sed -n 's/^{}=//p'"
