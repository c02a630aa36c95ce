"""One task of a workflow: its keys, inputs, outputs, files and tokens. Node → faults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from osmo_check import values
from osmo_check.nodes import Faults, Node, expect, mapping
from osmo_check.rendering import MARKS, TOKEN

KEYS: Final = (
    "name", "image", "command", "args", "lead", "environment", "credentials", "inputs", "outputs",
    "files", "resource", "volumeMounts", "exitActions", "checkpoint", "privileged", "hostNetwork",
    "downloadType", "cacheSize", "kpis",
)  # fmt: skip
GONE: Final = {
    "count": "write each task, in a {% for item in range(n) %} loop, with one lead",
    "rank": "write it into each task's script, as --node_rank {{item}} of a loop",
    "secrets": "use credentials: {name: {VARIABLE: key}} and `osmo credential set`",
    "env": "use environment",
    "resources": "use resource: <name>, and define it below workflow.resources",
    "depends_on": "use inputs: [{task: name}]",
}
DATASET: Final = "OSMO 6 has no datasets; use {url: s3://…} with `osmo data upload` and `download`"
ABSOLUTE: Final = "an absolute path in the container"
OUTPUT: Final = ("{{output}}", "/osmo/output")


def check(task: Node, folder: Path, resources: Node | None, faults: Faults) -> None:
    """Check everything of a task that does not concern other tasks. `folder`: of the workflow."""
    if not mapping(task, KEYS, faults, ("name", "image", "command"), GONE):
        return
    image = task.get("image")
    is_text = expect(image, (str,), "an image", faults)
    if image is not None and is_text and not re.fullmatch(r"\S+", image.value):
        faults.add(image, f"is {image.value!r}, expected registry/name:tag")
    _words(task.get("command"), faults, least=1)
    _words(task.get("args"), faults)
    for key in ("lead", "privileged", "hostNetwork"):
        if (found := task.get(key)) is not None:
            expect(found, (bool,), "true or false", faults)
    values.environment(task.get("environment"), faults)
    values.credentials(task.get("credentials"), faults)
    values.exit_actions(task.get("exitActions"), faults)
    _places(task, faults)
    local = _files(task, folder, faults)
    _resource(task, resources, faults)
    _outputs_are_written(task, local, faults)


def _words(node: Node | None, faults: Faults, least: int = 0) -> None:
    if node is None or not expect(node, (list,), "a list of words", faults):
        return
    if len(node.value) < least:
        faults.add(node, "is empty, expected a program")
    for each in node.value:
        expect(each, (str, int, float), "a word", faults)


def _places(task: Node, faults: Faults) -> None:
    for key in ("inputs", "outputs", "checkpoint", "files", "kpis", "volumeMounts"):
        if (found := task.get(key)) is not None:
            expect(found, (list,), "a list", faults)
    for each in task.items("inputs"):
        if mapping(each, ("task", "url", "regex"), faults, gone={"dataset": DATASET}):
            if ("task" in each.value) == ("url" in each.value):
                faults.add(each, "expected either task or url")
            if "url" in each.value:
                values.url(each.get("url"), faults)
            values.regex(each.get("regex"), faults)
    for each in task.items("outputs"):
        if mapping(each, ("url", "regex"), faults, ("url",), {"dataset": DATASET}):
            values.url(each.get("url"), faults)
            values.regex(each.get("regex"), faults)
    for each in task.items("checkpoint"):
        if mapping(each, ("path", "url", "frequency", "regex"), faults,
                   ("path", "url", "frequency")):  # fmt: skip
            _absolute(each.get("path"), faults)
            values.url(each.get("url"), faults)
            values.duration(each.get("frequency"), faults)
            values.regex(each.get("regex"), faults)
    for each in task.items("kpis"):
        mapping(each, ("index", "path"), faults, ("index", "path"))
    for each in task.items("volumeMounts"):
        if expect(each, (str,), "/source or /source:/target", faults):
            parts = each.value.split(":")
            if len(parts) > 2 or not all(part.startswith("/") for part in parts):
                faults.add(each, f"is {each.value!r}, expected /source or /source:/target")
    kind = task.get("downloadType")
    if kind is not None and kind.value != "download":
        faults.add(kind, f"is {kind.value!r}, expected download")


def _absolute(node: Node | None, faults: Faults) -> bool:
    if not expect(node, (str,), ABSOLUTE, faults) or node is None:
        return False
    if not node.value.startswith("/"):
        faults.add(node, f"is {node.value!r}, expected {ABSOLUTE}")
        return False
    return True


def _files(task: Node, folder: Path, faults: Faults) -> list[str]:
    """Check `files`; return the contents of those that `localpath` names."""
    paths: set[str] = set()
    contents = []
    for each in task.items("files"):
        if not mapping(each, ("path", "contents", "localpath", "base64"), faults, ("path",)):
            continue
        if ("contents" in each.value) == ("localpath" in each.value):
            faults.add(each, "expected either contents or localpath")
        path = each.get("path")
        if _absolute(path, faults) and path is not None:
            if PurePosixPath(path.value).parts[1:2] in ((), ("osmo",)):
                faults.add(path, f"is {path.value!r}; / and /osmo are OSMO's")
            if path.value in paths:
                faults.add(path, f"is {path.value} a second time in this task")
            paths.add(path.value)
        if (local := each.get("localpath")) is not None:
            contents.append(_local(local, folder, faults))
    return contents


def _local(node: Node, folder: Path, faults: Faults) -> str:
    """Return the content of a file beside the workflow; OSMO renders it, too."""
    if not expect(node, (str,), "a path relative to the workflow file", faults):
        return ""
    path = folder / node.value
    if path.is_dir():
        faults.add(node, f"is the folder {path}; OSMO sends single files, use an input's url")
        return ""
    try:
        content: str = path.read_text(encoding="utf-8")
    except OSError as error:
        faults.add(node, f"{path}: {error.strerror}; the path is relative to the workflow file")
        return ""
    except UnicodeDecodeError:
        faults.add(node, f"{path} is not UTF-8 text; use an input's url")
        return ""
    for mark in MARKS:
        if mark in TOKEN.sub("", content):
            line = next(
                at for at, text in enumerate(content.splitlines(), 1) if mark in TOKEN.sub("", text)
            )
            faults.add(node, f"{path} has {mark} on line {line}: OSMO gives the file to Jinja when"
                       " it submits; write it otherwise")  # fmt: skip
    return content


def _resource(task: Node, resources: Node | None, faults: Faults) -> None:
    known = {"default": None} if resources is None else resources.value
    named = task.get("resource")
    if not isinstance(known, Mapping):
        return
    if named is None and "default" not in known:
        faults.add(task, f"lacks resource; defined: {', '.join(known)}")
    elif named is not None and named.value not in known:
        faults.add(named, f"is {named.value!r}; defined below workflow.resources:"
                   f" {', '.join(known)}")  # fmt: skip


def _outputs_are_written(task: Node, local: list[str], faults: Faults) -> None:
    outputs = task.get("outputs")
    texts = [*task.texts(), *local]
    if outputs is not None and not any(place in text for place in OUTPUT for text in texts):
        faults.add(outputs, "would stay empty: no script of the task writes to {{output}}")


def tokens(task: Node, mates: set[str], faults: Faults) -> None:
    """Check that every token of a task has a meaning. `mates`: names of its group's tasks."""
    known = {"output", "workflow_id"} | {f"host:{mate}" for mate in mates}
    for at, each in enumerate(task.items("inputs")):
        known.add(f"input:{at}")
        if (upstream := each.get("task")) is not None:
            known.add(f"input:{str(upstream.value).rpartition(':')[2]}")
    for text in sorted({*task.texts()}):
        for match in TOKEN.findall(text):
            word = match[2:-2]
            if word in known:
                continue
            listed = ", ".join(f"{{{{{each}}}}}" for each in sorted(known))
            why = "names no task of its group" if word.startswith("host:") else "stays as it is"
            faults.add(task, f"{match} {why}; known here: {listed}")
