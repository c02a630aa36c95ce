"""Parse `tf.train.Example` and `tf.train.SequenceExample` without TensorFlow. Bytes → named values.

The messages are described here rather than generated, so that no compiler is needed. An Example is
wire-compatible with a SequenceExample that has a context alone, so one message reads both.
Source: tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from crane_x7_vla_rl.data.reader_options import RecordingError

Values = npt.NDArray[np.float32] | npt.NDArray[np.int64] | list[bytes]
"""The flat content of a feature: float_list, int64_list or bytes_list."""

PACKAGE: Final = "crane_x7_vla_rl"
"""Not TensorFlow's own, so that both can be imported by one process."""
SCALARS: Final = {
    "BytesList": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "FloatList": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "Int64List": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}
MESSAGES: Final = {
    "Feature": (("bytes_list", "BytesList"), ("float_list", "FloatList"),
                ("int64_list", "Int64List")),
    "FeaturesEntry": (("key", ""), ("value", "Feature")),
    "Features": (("feature", "repeated FeaturesEntry"),),
    "FeatureList": (("feature", "repeated Feature"),),
    "FeatureListsEntry": (("key", ""), ("value", "FeatureList")),
    "FeatureLists": (("feature_list", "repeated FeatureListsEntry"),),
    "SequenceExample": (("context", "Features"), ("feature_lists", "FeatureLists")),
}  # fmt: skip
"""Message → its fields in the order of their numbers, each with its type; "" is a string.

Maps are spelt as the repeated entries that they are on the wire."""


class Example:
    """One parsed record; `where` names it in errors."""

    def __init__(self, content: bytes, where: str) -> None:
        """Parse; raises RecordingError where `content` is no Example."""
        self.where, self.content = where, content
        message = _message_class()()
        try:
            message.ParseFromString(content)
        except DecodeError as error:
            raise RecordingError(
                where, "bytes", f"({len(content)}) are no tf.train.Example: {error}"
            ) from error
        self._context = {entry.key: entry.value for entry in message.context.feature}
        self._lists = {entry.key: entry.value for entry in message.feature_lists.feature_list}
        if not self._context and not self._lists:
            raise RecordingError(where, "bytes", f"({len(content)}) hold no feature by name")

    @property
    def names(self) -> list[str]:
        """Names of all features and feature lists, sorted."""
        return sorted({*self._context, *self._lists})

    @property
    def list_names(self) -> list[str]:
        """Names of the feature lists, which only a SequenceExample has, sorted."""
        return sorted(self._lists)

    def values(self, name: str) -> Values | None:
        """Return the values of a feature, or None where the record has none of that name.

        Those of a feature list are strung together. Raises RecordingError where its steps hold
        different kinds of values.
        """
        if name in self._lists:
            parts = [_values(feature) for feature in self._lists[name].feature]
            if len({type(part) for part in parts}) > 1:
                raise RecordingError(self.where, name, "mixes bytes and numbers, expected one kind")
            return strung(parts) if parts else None
        feature = self._context.get(name)
        return None if feature is None else _values(feature)

    def size(self, name: str) -> int:
        """Return the number of values under `name`, 0 where there are none, without copying."""
        if name in self._lists:
            return sum(_size(feature) for feature in self._lists[name].feature)
        return _size(self._context[name]) if name in self._context else 0


def strung(parts: list[Values]) -> Values:
    """Return values of one kind one after the other."""
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    joined: Values = np.concatenate([np.asarray(part) for part in parts])
    return joined


def _values(feature: Any) -> Values:
    kind = _kind(feature)
    content = getattr(feature, kind).value
    if kind == "bytes_list":
        return list(content)
    if kind == "float_list":
        return np.array(content, dtype=np.float32)
    return np.array(content, dtype=np.int64)


def _size(feature: Any) -> int:
    return len(getattr(feature, _kind(feature)).value)


def _kind(feature: Any) -> str:
    kinds = ("bytes_list", "float_list", "int64_list")
    return next((kind for kind in kinds if feature.HasField(kind)), "float_list")


@cache
def _message_class() -> Any:
    """Return the class of SequenceExample, from a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{PACKAGE}/example.proto", package=PACKAGE, syntax="proto3"
    )
    for name, scalar in SCALARS.items():
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, label=_label(repeated=True), type=scalar)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            _add_field(message, number, field, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.SequenceExample"))


def _add_field(message: Any, number: int, name: str, kind: str) -> None:
    label = _label(repeated=kind.startswith("repeated "))
    kinds = descriptor_pb2.FieldDescriptorProto
    added = message.field.add(
        name=name, number=number, label=label, type=kinds.TYPE_MESSAGE if kind else
        kinds.TYPE_STRING,
    )  # fmt: skip
    if kind:
        added.type_name = f".{PACKAGE}.{kind.removeprefix('repeated ')}"


def _label(*, repeated: bool) -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    return kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
