"""Parse `tf.train.Example` and `tf.train.SequenceExample` without TensorFlow. Bytes → named values.

The messages are described here, not generated: a `_pb2` module would need protoc, be opaque, and
not import with a protobuf older than its compiler. An Example is wire-compatible with a
SequenceExample that has only a context, so one message reads both.
Source: tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from crane_x7_vla_rl.data.reader_options import RecordingError

Values = npt.NDArray[np.float32] | npt.NDArray[np.int64] | list[bytes]
"""The flat content of a feature: float_list, int64_list or bytes_list."""

SCHEMA: Final = """
name: "crane_x7_vla_rl/example.proto" package: "crane_x7_vla_rl" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 <many> type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 <many> type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 <many> type: TYPE_INT64 } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 <one> type_name: "BytesList" }
  field { name: "float_list" number: 2 <one> type_name: "FloatList" }
  field { name: "int64_list" number: 3 <one> type_name: "Int64List" } }
message_type { name: "FeaturesEntry"
  field { name: "key" number: 1 <one> type: TYPE_STRING }
  field { name: "value" number: 2 <one> type_name: "Feature" } }
message_type { name: "Features"
  field { name: "feature" number: 1 <many> type_name: "FeaturesEntry" } }
message_type { name: "FeatureList" field { name: "feature" number: 1 <many> type_name: "Feature" } }
message_type { name: "FeatureListsEntry"
  field { name: "key" number: 1 <one> type: TYPE_STRING }
  field { name: "value" number: 2 <one> type_name: "FeatureList" } }
message_type { name: "FeatureLists"
  field { name: "feature_list" number: 1 <many> type_name: "FeatureListsEntry" } }
message_type { name: "SequenceExample"
  field { name: "context" number: 1 <one> type_name: "Features" }
  field { name: "feature_lists" number: 2 <one> type_name: "FeatureLists" } }
""".replace("<one>", "label: LABEL_OPTIONAL").replace("<many>", "label: LABEL_REPEATED")
"""A FileDescriptorProto. Its package is not TensorFlow's, so that one process can import both; maps
are written as repeated entries, as on the wire."""


class Example:
    """One parsed record; `where` names it in errors."""

    def __init__(self, content: bytes, where: str) -> None:
        """Parse; raises RecordingError if `content` is not an Example."""
        self.where, self.content = where, content
        message = _message_class()()
        try:
            message.ParseFromString(content)
        except DecodeError as error:
            raise RecordingError(
                where, "bytes", f"({len(content)}) are not a tf.train.Example: {error}"
            ) from error
        self._context = {entry.key: entry.value for entry in message.context.feature}
        self._lists = {entry.key: entry.value for entry in message.feature_lists.feature_list}
        if not self._context and not self._lists:
            raise RecordingError(where, "bytes", f"({len(content)}) contain no named feature")

    @property
    def names(self) -> list[str]:
        """Names of all features and feature lists, sorted."""
        return sorted({*self._context, *self._lists})

    @property
    def list_names(self) -> list[str]:
        """Names of the feature lists, which only a SequenceExample has, sorted."""
        return sorted(self._lists)

    def values(self, name: str) -> Values | None:
        """Return the values of a feature, or None if the record has none of that name.

        Those of a feature list are concatenated. Raises RecordingError if its steps have different
        kinds of values.
        """
        if name in self._lists:
            parts = [_values(feature) for feature in self._lists[name].feature]
            if len({type(part) for part in parts}) > 1:
                raise RecordingError(self.where, name, "mixes bytes and numbers, expected one kind")
            return strung(parts) if parts else None
        feature = self._context.get(name)
        return None if feature is None else _values(feature)

    def size(self, name: str) -> int:
        """Return the number of values under `name`, without copying them."""
        if name in self._lists:
            return sum(_size(feature) for feature in self._lists[name].feature)
        return _size(self._context[name]) if name in self._context else 0


def strung(parts: list[Values]) -> Values:
    """Return values of one kind, concatenated."""
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
    """Return the class of SequenceExample, from a separate pool."""
    file = text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    name = f"{file.package}.SequenceExample"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
