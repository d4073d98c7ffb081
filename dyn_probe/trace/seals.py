"""CRC-32 of what is written, inside of it: a flipped bit is noticed before anything is decoded.

Bytes that are to be sealed hold ``BLANK`` where the eight digits go; the CRC is that of all bytes with it in place.
"""

from __future__ import annotations

import zlib

MARK = b"crc32:"
DIGITS = 8
BLANK = MARK + b"0" * DIGITS


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
