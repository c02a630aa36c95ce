"""Single values of a workflow: names, URLs, durations, exit codes, quantities. Node → faults.

[NVIDIA/OSMO at 1da31e1: src/utils/job/{common,task,workflow}.py, src/lib/api/storage.py,
src/lib/utils/{common,resource_quantities}.py, src/utils/connectors/postgres.py]
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import Final

from osmo_check.nodes import Faults, Node, expect, mapping

NAME: Final = re.compile(r"[a-zA-Z]([a-zA-Z0-9_-]*[a-zA-Z0-9])?")
PART: Final = r"[^/,;*]+"
URL: Final = re.compile(
    rf"swift://{PART}(/{PART}){{2,}}/*|s3://{PART}(/{PART})*/*|gs://{PART}(/{PART})*/*"
    rf"|tos://{PART}(/{PART})+/*|azure://{PART}(/{PART})+/*"
)
BLOB: Final = re.compile(r"https://([^./]+)\.blob\.core\.windows\.net/?(.*)")
DURATION: Final = re.compile(
    r"\d+(ms|us|[dhms])|P(\d+D)?(T(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?", re.ASCII
)
CODES: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
HIGHEST_CODE: Final = 255
ACTIONS: Final = ("COMPLETE", "FAIL", "RESCHEDULE")
QUANTITY: Final = re.compile(r"\d+(\.\d+)?(T|Ti|TiB|G|Gi|GiB|M|Mi|MiB|K|Ki|KiB|B|m)?")
ENVIRONMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET: Final = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY|SAS)(_|$)", re.I)
RESOURCE: Final = ("cpu", "gpu", "memory", "storage", "platform", "nodesExcluded", "topology")


def name(node: Node | None, faults: Faults) -> str | None:
    """Return a valid name."""
    if not expect(node, (str,), "a name", faults) or node is None:
        return None
    if NAME.fullmatch(node.value) is None:
        faults.add(node, f"is {node.value!r}, expected letters, digits, _ and -, a letter first and"
                   " no - or _ last")  # fmt: skip
        return None
    if same(node.value) == "osmo-ctrl":
        faults.add(node, "is osmo-ctrl, which OSMO keeps for itself")
    return str(node.value)


def same(text: str) -> str:
    """Return the name as Kubernetes has it: two that are the same here cannot be together."""
    return text.lower().replace("_", "-")


def url(node: Node | None, faults: Faults) -> None:
    """Check a storage URL."""
    if not expect(node, (str,), "a URL", faults) or node is None or URL.fullmatch(node.value):
        return
    hint = "expected s3://, gs://, swift://, tos:// or azure://account/container/path"
    if found := BLOB.match(node.value):
        hint = f"OSMO wants azure://{found[1]}/{found[2]}"
    faults.add(node, f"is {node.value!r}; {hint}")


def duration(node: Node | None, faults: Faults) -> None:
    """Check a duration."""
    if not expect(node, (int, float, str), "a duration such as 30m", faults) or node is None:
        return
    if isinstance(node.value, str) and (
        node.value in ("P", "PT") or not DURATION.fullmatch(node.value)
    ):
        faults.add(node, f"is {node.value!r}, expected one number and one unit, such as 90s, 30m,"
                   " 8h or 2d")  # fmt: skip


def regex(node: Node | None, faults: Faults) -> None:
    """Check a regular expression."""
    if node is None or not expect(node, (str,), "a regular expression", faults):
        return
    try:
        re.compile(node.value)
    except re.error as error:
        faults.add(node, f"is no regular expression: {error}")


def exit_actions(node: Node | None, faults: Faults) -> None:
    """Check exit codes and that no two actions share one."""
    if node is None or not mapping(node, ACTIONS, faults):
        return
    codes: dict[str, set[int]] = {}
    for action, each in node.value.items():
        text = str(each.value).replace(" ", "")
        if not CODES.fullmatch(text):
            faults.add(each, f"is {each.value!r}, expected exit codes such as 1-10,16")
            continue
        codes[action] = set()
        for part in text.split(","):
            low, _, high = part.partition("-")
            codes[action] |= {*range(int(low), int(high or low) + 1)}
        if max(codes[action], default=0) > HIGHEST_CODE:
            faults.add(each, f"names codes above {HIGHEST_CODE}, which OSMO keeps for itself")
        if not codes[action]:
            faults.add(each, f"is {each.value!r}, which names no code")
    for one, two in combinations(codes, 2):
        if both := codes[one] & codes[two]:
            faults.add(node, f"gives {min(both)} to {one} and to {two}")


def environment(node: Node | None, faults: Faults) -> None:
    """Check variables, and that none holds a secret."""
    if node is None or not expect(node, (dict,), "names and values", faults):
        return
    for key, each in node.value.items():
        if not ENVIRONMENT.fullmatch(key):
            faults.add(each, "is no name of a variable")
        if not isinstance(each.value, str | int | float):
            faults.add(each, "has no plain value")
        elif SECRET.search(key) and str(each.value):
            faults.add(each, "looks like a secret, which everyone reads in the workflow; use"
                       " credentials and `osmo credential set`")  # fmt: skip


def credentials(node: Node | None, faults: Faults) -> None:
    """Check {credential: {variable: key}} or {credential: /path}."""
    if node is None or not expect(node, (dict,), "credentials by name", faults):
        return
    for each in node.value.values():
        if isinstance(each.value, dict):
            for key, value in each.value.items():
                if not ENVIRONMENT.fullmatch(key):
                    faults.add(value, "is no name of a variable")
                expect(value, (str,), "a key of the credential's payload", faults)
        elif not (isinstance(each.value, str) and each.value.startswith("/")):
            faults.add(each, "expected {VARIABLE: key of the payload}, or an absolute path to mount"
                       " the credential at")  # fmt: skip


def resource(node: Node, faults: Faults) -> None:
    """Check one entry of `resources`."""
    if not mapping(node, RESOURCE, faults):
        return
    for key in ("cpu", "gpu"):
        found = node.get(key)
        if expect(found, (int,), "a whole number", faults) and found and found.value < 0:
            faults.add(found, f"is {found.value}, expected 0 or more")
    for key in ("memory", "storage"):
        found = node.get(key)
        if found is not None and not QUANTITY.fullmatch(str(found.value)):
            faults.add(found, f"is {found.value!r}, expected a quantity such as 32Gi")
    for key, kinds in (("platform", (str,)), ("nodesExcluded", (list,)), ("topology", (list,))):
        if (found := node.get(key)) is not None:
            expect(found, kinds, "a list" if list in kinds else "a name", faults)
