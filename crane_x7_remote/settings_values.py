"""What settings' values mean. Texts of variables and flags → tidy values, and one line per mistake.

No setting is declared here, and no environment is read: `settings.load` hands the values in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import SecretStr

from crane_x7_remote import addresses, public_keys
from crane_x7_remote.errors import SettingsError
from crane_x7_vla_rl import secret_text, variables
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import cut
from crane_x7_vla_rl.suggest import did_you_mean

OWN_PREFIXES = ("VLA_", "ROSBRIDGE_", "LIFT_")
"""A variable with this prefix that is not a field is treated as a typing mistake."""
SHARED_PREFIXES = ("TS_", "SSH_", "GUARD_", "POLICY_")
"""Other programs, such as Tailscale and OpenSSH, define more of these than this file: only a close
match is a mistake."""
KEY_FIELDS = ("ssh_public_key", "public_key")
PROXIES = ("rosbridge_proxy", "policy_proxy")


def topic_types(value: str) -> dict[str, str]:
    """Return topic → type of "topic=type,…". Raises ValueError."""
    found = {}
    for word in value.replace(",", " ").split():
        topic, _, kind = word.partition("=")
        if not topic.startswith("/") or "/" not in kind:
            raise ValueError(
                f"{word!r}: expected topic=type, such as /camera/info=sensor_msgs/CameraInfo"
            )
        found[topic] = kind
    return found


def token_text(value: SecretStr | None, variable: str) -> str | None:
    """Return a token, given directly or as file:/path; raises SettingsError."""
    if value is None:
        return None
    text = value.get_secret_value().strip()
    path = text.removeprefix("file:")
    if path != text:
        try:
            with open(path) as file:
                text = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}=file:{path} cannot be read: {why(error)}") from error
    if not text.isascii() or not text.isprintable() or not text or " " in text:
        raise SettingsError(f"{variable} must be one word of printable ASCII characters")
    return text


def read_secrets(
    values: dict[str, Any], problems: list[str], secret_variables: Iterable[str]
) -> None:
    """Strip secrets, also those of flags; mask them, and report the unusable ones."""
    for variable in secret_variables:
        name = variable.lower()
        if isinstance(values.get(name), str):
            secret_text.remember(_without_path(values[name]))
            try:
                values[name] = variables.secret(values[name])
            except ValueError as error:
                problems.append(f"{variable}=***: {error}")
                del values[name]


def _without_path(secret: str) -> str:
    return "" if secret.startswith(variables.FILE_PREFIX) else secret


def read_keys(values: dict[str, Any], problems: list[str]) -> list[str]:
    """Put each public key on its own line; return which parts of PUBLIC_KEY are skipped.

    Platforms inject PUBLIC_KEY: next to a usable SSH_PUBLIC_KEY, a problem in it must not block
    every login.
    """
    found = {name: public_keys.read(values.get(name)) for name in KEY_FIELDS}
    for name in KEY_FIELDS:
        if name in values:
            values[name] = "\n".join(found[name].lines)
    own, injected = (found[name] for name in KEY_FIELDS)
    problems += [f"SSH_PUBLIC_KEY=***: {text}" for text in own.problems]
    if own.lines:
        return [f"PUBLIC_KEY: {text}; it is skipped" for text in injected.problems]
    problems += [f"PUBLIC_KEY=***: {text}" for text in injected.problems]
    return []


def read_addresses(values: dict[str, Any], problems: list[str]) -> None:
    """Split a port off ROSBRIDGE_HOST, and refuse values that are not addresses."""
    host = values.get("rosbridge_host")
    if isinstance(host, str):
        if not variables.bare(host):
            del values["rosbridge_host"]
        else:
            _read_host(host, values, problems)
    for name in PROXIES:
        proxy = values.get(name)
        if isinstance(proxy, str) and variables.bare(proxy):
            secret_text.remember_password(proxy)
            try:
                values[name] = addresses.read_proxy(proxy)
            except ValueError as error:
                problems.append(f"{name.upper()}={shown(name, proxy)}: {error}")
                del values[name]


def _read_host(text: str, values: dict[str, Any], problems: list[str]) -> None:
    try:
        values["rosbridge_host"], port = addresses.read_host(text)
    except ValueError as error:
        problems.append(f"ROSBRIDGE_HOST={shown('rosbridge_host', text)}: {error}")
        del values["rosbridge_host"]
        return
    if port is None:
        return
    other = values.setdefault("rosbridge_port", port)
    if str(other).strip() != str(port):
        problems.append(
            f"ROSBRIDGE_HOST={shown('rosbridge_host', text)} names port {port}, and ROSBRIDGE_PORT"
            f" is {cut(str(other), 20)}; name one port"
        )


def unknown_variables(
    environ: Mapping[str, str], known: Collection[str], old_names: Collection[str]
) -> Iterable[str]:
    for variable in sorted(environ):
        if variable.startswith(SHARED_PREFIXES) and variable not in {*known, *old_names}:
            hint = did_you_mean(variable, known, cutoff=0.9)
            if hint:
                yield f"{variable} is unknown{hint}"
        if variable.startswith(OWN_PREFIXES) and variable not in known:
            yield f"{variable} is unknown{did_you_mean(variable, known, cutoff=0.5)}"


def shown(name: str, value: object) -> str:
    """Return the value as text without secrets."""
    if "token" in name or "key" in name or name.endswith("extra_args"):
        return "***"
    text = (
        addresses.without_password(value) if name in PROXIES and isinstance(value, str) else value
    )
    return cut(repr(text), 120)
