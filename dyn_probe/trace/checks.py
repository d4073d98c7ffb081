"""Checks of a Parquet file that the format itself lacks: CRC-32 of every column chunk and of the footer.

The format's checksums cover pages but not their headers, of which a single bit can turn a column into another one. So a
block stands between the last chunk and the footer, where any other reader of Parquet passes over it::

    CRC of the footer | number of chunks | CRC of each chunk | CRC of all that | length of all that | b"DYNC"

Chunks are counted row group by row group, column by column; all numbers have four bytes, the lowest first.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.parquet as pq

_MAGIC = b"DYNC"
_END = b"PAR1"
_LONGEST, _PIECE = 2**28, 2**22
"""Bytes that a footer may have; bytes that are read at a time."""


@dataclass(frozen=True)
class Checks:
    """What a file's block says, and whether the footer is as it says."""

    footer: bool
    chunks: tuple[int, ...]


def read_footer(file: BinaryIO) -> tuple[int, bytes]:
    """(place, content) of a Parquet file's footer, to the end of the file.

    Raises:
        OSError: the file does not end as a Parquet file does.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read()
    long = int.from_bytes(end[:4], "little")
    start = size - 8 - long
    if end[4:] != _END or start < len(_END):
        raise OSError("it does not end as a Parquet file does")
    if long > _LONGEST:
        raise OSError(f"its footer has {long:,} bytes, at most {_LONGEST:,} are read")
    file.seek(start)
    return start, file.read()


def chunk_places(about: pq.FileMetaData) -> list[tuple[int, int]]:
    """(place, size) of every column chunk: row group by row group, column by column."""
    groups = (about.row_group(group) for group in range(about.num_row_groups))
    chunks = (group.column(column) for group in groups for column in range(group.num_columns))
    return [
        (min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place is not None), size)
        for chunk in chunks
        if (size := chunk.total_compressed_size) is not None
    ]


def crc_of(file: BinaryIO, place: int, size: int) -> int:
    """CRC-32 of a part of a file, read piece by piece; of what is there where it ends before."""
    file.seek(place)
    left, found = max(0, min(size, os.fstat(file.fileno()).st_size - place)), 0
    while left and (piece := file.read(min(left, _PIECE))):
        left, found = left - len(piece), zlib.crc32(piece, found)
    return found


def append_checks(file: BinaryIO) -> None:
    """Put the block into a Parquet file that was just written, and the footer behind it."""
    start, footer = read_footer(file)
    file.seek(0)
    crcs = [crc_of(file, *place) for place in chunk_places(pq.ParquetFile(file).metadata)]
    block = struct.pack(f"<{2 + len(crcs)}I", zlib.crc32(footer), len(crcs), *crcs)
    block += struct.pack("<I", zlib.crc32(block))
    file.seek(start)
    file.write(block + struct.pack("<I", len(block)) + _MAGIC + footer)


def read_checks(file: BinaryIO, start: int, footer: bytes) -> Checks | None:
    """The block before a footer; None where there is none, or it is damaged itself.

    Args:
        start, footer: as ``read_footer`` returns them.
    """
    file.seek(max(0, start - 8))
    length, magic = struct.unpack("<I4s", file.read(8).ljust(8))
    if magic != _MAGIC or not 12 <= length <= start - 8:
        return None
    file.seek(start - 8 - length)
    block = file.read(length)
    if length % 4 or zlib.crc32(block[:-4]) != int.from_bytes(block[-4:], "little"):
        return None
    crc, count, *crcs, _ = struct.unpack(f"<{length // 4}I", block)
    return Checks(zlib.crc32(footer) == crc, tuple(crcs)) if count == len(crcs) else None
