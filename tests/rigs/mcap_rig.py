"""MCAP files whose index lacks what is optional for writers. Format: mcap.dev/spec."""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = 0x02, 0x03, 0x04, 0x06, 0x07, 0x08
STATISTICS, SUMMARY_OFFSET, DATA_END = 0x0B, 0x0E, 0x0F


def records(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, opcode and body of each record."""
    at = len(MAGIC)
    while at < len(content) - len(MAGIC):
        (size,) = struct.unpack_from("<Q", content, at + 1)
        yield at, content[at], content[at + 9 : at + 9 + size]
        at += 9 + size


def record(opcode: int, body: bytes) -> bytes:
    return bytes([opcode]) + struct.pack("<Q", len(body)) + body


def without_summary(content: bytes) -> bytes:
    """Keep the data section alone."""
    end = next(at + 9 + len(body) for at, code, body in records(content) if code == DATA_END)
    return content[:end] + record(FOOTER, bytes(20)) + MAGIC


def without_channel_counts(content: bytes) -> bytes:
    """Empty the map of the statistics, as the format allows where a writer did not count."""
    data = MAGIC
    for _, code, body in records(content):
        if code == STATISTICS:
            body = body[:42] + bytes(4)
        if code == FOOTER:
            body = body[:8] + bytes(12)
        if code != SUMMARY_OFFSET:
            data += record(code, body)
    return data + MAGIC


def with_chunk_index_alone(content: bytes, kept: tuple[int, ...] = ()) -> bytes:
    """Keep the data without message indexes; of the summary, where chunks begin and `kept`."""
    data, summary, moved, start = MAGIC, b"", {}, 0
    for at, code, body in records(content):
        if not start and code != MESSAGE_INDEX:
            moved[at] = len(data)
            data += record(code, body)
            start = len(data) if code == DATA_END else 0
        elif start and code in kept:
            summary += record(code, body)
        elif start and code == CHUNK_INDEX:
            chunk_at, chunk_size, index_size = struct.unpack_from("<QQI", body, 16)
            rest = body[36 + index_size + 8 :]
            place = struct.pack("<QQIQ", moved[chunk_at], chunk_size, 0, 0)
            summary += record(code, body[:16] + place + rest)
    return data + summary + record(FOOTER, struct.pack("<QQI", start, 0, 0)) + MAGIC
