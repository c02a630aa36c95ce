"""A checkpoint folder's JSON and safetensors headers. A file → its content, checked.

This module reads only headers; `loading` reads the tensors. No file of a checkpoint is ever
executed or unpickled: weights are safetensors, other files JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl.fields import quoted
from crane_x7_vla_rl.file_errors import kind_in_words, why
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ITEM_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "U8": 1,
    "BOOL": 1,
}
_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 100_000_000
"""The limit of the safetensors library."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file's header."""

    file: Path
    key: str
    dtype: str
    """Name in safetensors: F32, BF16, …"""
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises CheckpointError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; is {path.parent} a complete checkpoint?"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {why(error)}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {kind_in_words(found)}, expected an object")
    return found


def has_weights(folder: Path) -> bool:
    """Whether the folder itself holds a model, complete or not."""
    return (folder / INDEX).exists() or (folder / SINGLE).exists()


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor of the model in `folder` by its key; raises CheckpointError."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise CheckpointError(_no_weights(folder))
        return read_header(folder / SINGLE)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or {type(name) for name in weight_map.values()} != {str}:
        raise CheckpointError(f"{folder / INDEX}: weight_map is missing, expected key → file name")
    found: dict[str, Stored] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; {INDEX} expects"
                f" {sum(file == name for file in weight_map.values())} tensors in it: fetch the"
                " checkpoint again"
            )
        found |= _listed(read_header(folder / name), weight_map, name)
    _check_complete(found, weight_map, folder)
    return found


def _listed(
    header: Mapping[str, Stored], weight_map: Mapping[str, str], name: str
) -> dict[str, Stored]:
    """Return the tensors of a shard that the index lists for it."""
    return {key: stored for key, stored in header.items() if weight_map.get(key, name) == name}


def _check_complete(
    found: Mapping[str, Stored], weight_map: Mapping[str, str], folder: Path
) -> None:
    for key, name in weight_map.items():
        if key not in found:
            raise CheckpointError(f"{folder / name} lacks {key}, which {INDEX} lists for it")


def _no_weights(folder: Path) -> str:
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")
    )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    message = f"{folder} holds no weights: expected {SINGLE} or {INDEX} with its files"
    if shards:
        message += f"; found {', '.join(shards)} without an index"
    if others:
        message += f"; pickled files such as {others[0]} are not loaded: convert to safetensors"
    return message


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors in a safetensors header, after checking that the file is complete."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or not 0 < length <= min(_LONGEST_HEADER, size):
                raise CheckpointError(
                    f"{path} has {size} bytes and a header of {length}; it is truncated"
                    " or not a safetensors file: fetch it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} has no safetensors header: {why(error)}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a header that is {kind_in_words(header)}, not an object")
    header.pop("__metadata__", None)
    tensors = {key: _stored(path, key, entry) for key, entry in header.items()}
    ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes, expected {expected}; it is"
            f" {'truncated' if size < expected else 'damaged'}: fetch it again"
        )
    return tensors


def _stored(path: Path, key: str, entry: object) -> Stored:
    try:
        assert isinstance(entry, dict)
        dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
        begin, end = map(int, entry["data_offsets"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {key} is described by {quoted(entry)}") from error
    needed = ITEM_BYTES.get(dtype, 0) * math.prod(shape)
    if dtype in ITEM_BYTES and end - begin != needed:
        raise CheckpointError(
            f"{path}: {key} of shape {shape} in {dtype} takes {end - begin} bytes, expected"
            f" {needed}"
        )
    return Stored(path, key, dtype, shape)
