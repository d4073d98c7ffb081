"""Sealed Arrow IPC messages: a stream's head and its batches, each with a CRC-32 of its own bytes.

A batch carries in its custom metadata, ``dyn_probe``: the number of its first row in the stream, its rows, the CRC-32
of the head it belongs to and that of its body, and the seal over its own metadata. To any other reader of Arrow streams
these are ordinary messages.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass

import pyarrow as pa

from dyn_probe.trace.damage import REFUSED

MARK = b"crc32:"
DIGITS = 8
BLANK = MARK + b"0" * DIGITS
"""Where the eight digits go in bytes that are to be sealed; the CRC is that of all bytes with it in place: a flipped
bit is noticed before anything is decoded."""

KEY = "dyn_probe"
_PREFIX = b"\xff\xff\xff\xff"
_BODY = b"body:"
_HEAD = re.compile(rb"head crc32:([0-9a-f]{8})")
_BATCH = re.compile(rb"first:(\d{1,18}) rows:(\d{1,18}) head:([0-9a-f]{8}) body:([0-9a-f]{8}) crc32:[0-9a-f]{8}")
_LONGEST = 2**16
"""Bytes that a message's metadata have at most; more is not searched for a beginning."""


def digits(content: bytes | memoryview) -> bytes:
    """The CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}".encode()


def sealed(content: bytes) -> bytes:
    """``content`` with the digits in the last blank of it."""
    place = content.rindex(BLANK) + len(MARK)
    return content[:place] + digits(content) + content[place + DIGITS :]


def is_sound(content: bytes) -> bool | None:
    """Whether sealed bytes are as they were; None where they have no seal."""
    place = content.rfind(MARK) + len(MARK)
    if place < len(MARK) or place + DIGITS > len(content):
        return None
    blank = content[:place] + b"0" * DIGITS + content[place + DIGITS :]
    return content[place : place + DIGITS] == digits(blank)


@dataclass(frozen=True)
class Batch:
    """A sealed batch whose metadata are whole: where it lies, and what it says of itself."""

    start: int
    end: int
    first: int
    rows: int
    head: bytes
    whole: bool  # its body too


def head_message(schema: pa.Schema) -> bytes:
    """The beginning of a stream, sealed."""
    about = {KEY: b"head " + BLANK}
    return sealed(schema.with_metadata({**(schema.metadata or {}), **about}).serialize().to_pybytes())


def head_crc(head: bytes) -> bytes | None:
    """The seal's digits of a sound head; None where it is not sound."""
    found = _HEAD.search(head)
    return found[1] if found and is_sound(head) else None


def batch_message(batch: pa.RecordBatch, first: int, head: bytes) -> bytes:
    """A batch, sealed.

    Args:
        first: number of its first row in the stream.
        head: the head's digits.
    """
    blank = b"0" * DIGITS
    about = b"first:%d rows:%d head:%s %s%s %s" % (first, batch.num_rows, head, _BODY, blank, BLANK)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch, custom_metadata={KEY: about})
        content = sink.getvalue()
    metadata, body = _split(content[message_end(content, 0) :])
    place = metadata.rindex(_BODY + blank) + len(_BODY)
    return sealed(metadata[:place] + digits(body) + metadata[place + DIGITS :]) + body


def _split(message: bytes) -> tuple[bytes, bytes]:
    """(prefix and metadata, body)."""
    end = 8 + int.from_bytes(message[4:8], "little")
    return message[:end], message[end:]


def is_sealed(content: bytes) -> bool:
    """Whether a stream was written with seals: its head or any batch has one."""
    return bool(_HEAD.search(content, 0, _LONGEST) or _BATCH.search(content))


def message_end(content: bytes, start: int) -> int | None:
    """Where the message at ``start`` ends by its own account; None where it is none, or not all of it is there."""
    try:
        source = pa.BufferReader(pa.py_buffer(content).slice(start))
        pa.ipc.read_message(source)
        return start + int(source.tell())
    except (*REFUSED, EOFError):
        return None


def is_compressed(content: bytes, start: int) -> bool:
    """Whether the record batch at ``start`` has compressed buffers, as its flatbuffer says: they would unpack to what
    they like. (Table ``Message``: header at field 2; table ``RecordBatch``: compression at field 3.)

    Raises:
        ValueError: the metadata end before what they point at.
    """
    size = int.from_bytes(content[start + 4 : start + 8], "little")
    metadata = content[start + 8 : start + 8 + size]
    root = _number(metadata, 0, 4)
    header = _field(metadata, root, 2)
    return header is not None and _field(metadata, header + _number(metadata, header, 4), 3) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer table has one of its fields; None where it has it not."""
    vtable = table - _number(metadata, table, 4, signed=True)
    if 4 + 2 * number >= _number(metadata, vtable, 2):
        return None
    return table + offset if (offset := _number(metadata, vtable + 4 + 2 * number, 2)) else None


def _number(metadata: bytes, place: int, wide: int, signed: bool = False) -> int:
    if not 0 <= place <= len(metadata) - wide:
        raise ValueError("the metadata of a message point beyond their end")
    return int.from_bytes(metadata[place : place + wide], "little", signed=signed)


def batch_at(content: bytes, start: int) -> Batch | None:
    """The sealed batch at ``start``; None where its metadata are not whole."""
    size = int.from_bytes(content[start + 4 : start + 8], "little")
    if content[start : start + 4] != _PREFIX or not 0 < size <= _LONGEST:
        return None
    metadata = content[start : start + 8 + size]
    found = list(_BATCH.finditer(metadata))
    end = message_end(content, start) if found and is_sound(metadata) else None
    if end is None:
        return None
    first, rows, head, body = found[-1].groups()
    whole = digits(memoryview(content)[start + len(metadata) : end]) == body
    return Batch(start, end, int(first), int(rows), head, whole)


def next_batch(content: bytes, start: int) -> Batch | None:
    """The first sealed batch at ``start`` or behind it whose metadata are whole."""
    for seal in _BATCH.finditer(content, start):
        place = seal.start()
        while (place := content.rfind(_PREFIX, max(start, seal.start() - _LONGEST), place)) >= 0:
            if (found := batch_at(content, place)) and found.end > seal.end():
                return found
    return None
