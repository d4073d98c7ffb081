"""Bad input of every kind: bytes that were damaged, JSON values that nobody expects, texts that steer."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

STEERING = "\x1b[2J\x1b]0;owned\x07</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\u2066[bold]=1+1"
TEXTS = (
    "", " ", "\x00", "\ud800", STEERING, "=cmd|' /C calc'!A0", "é" * 300, "x" * 5000, "NaN", "null", "-1", "1e999",
    "../../etc/passwd", "a\r\nb", "\u2028", "{}", "%s%n", "\N{PILE OF POO}",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1.7e308,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def value(draw: Random, depth: int = 0) -> Any:
    """A value that JSON can hold (or Python's JSON: NaN and infinity too)."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(TEXTS), lambda: draw.choice(NUMBERS), lambda: None, lambda: draw.random() < 0.5,
    ]  # fmt: skip
    if depth < 3:
        kinds += [
            lambda: [value(draw, depth + 1) for _ in range(draw.randrange(4))],
            lambda: {draw.choice(TEXTS): value(draw, depth + 1) for _ in range(draw.randrange(4))},
            lambda: nested(draw.randrange(2, 300)),
        ]
    return draw.choice(kinds)()


def nested(levels: int) -> Any:
    """Lists within one another."""
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON value, its own among them."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, one in inner for found in places(one, (*path, key)))]


def changed(content: Any, draw: Random) -> Any:
    """A copy of a JSON value, with another value at one place, or with a place less."""
    copy = json.loads(json.dumps(content))
    *way, last = draw.choice([path for path in places(copy) if path])
    holder = copy
    for key in way:
        holder = holder[key]
    if draw.random() < 0.2:
        del holder[last]
    else:
        holder[last] = value(draw)
    return copy


def as_json(content: Any) -> bytes:
    """JSON text; what UTF-8 cannot hold stays as the bytes that it would be."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _flip(content: bytearray, draw: Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _overwrite(content: bytearray, draw: Random) -> None:
    place = draw.randrange(len(content))
    content[place : place + draw.randrange(1, 32)] = draw.randbytes(draw.randrange(1, 32))


def _cut(content: bytearray, draw: Random) -> None:
    del content[draw.randrange(len(content)) :]


def _drop(content: bytearray, draw: Random) -> None:
    place = draw.randrange(len(content))
    del content[place : place + draw.randrange(1, 200)]


def _double(content: bytearray, draw: Random) -> None:
    place = draw.randrange(len(content))
    part = content[place : place + draw.randrange(1, 2000)]
    content[place:place] = part


def _zero(content: bytearray, draw: Random) -> None:
    place = draw.randrange(len(content))
    part = content[place : place + draw.randrange(1, 4096)]
    content[place : place + len(part)] = b"\0" * len(part)


def _largest(content: bytearray, draw: Random) -> None:
    place = draw.randrange(len(content))
    content[place : place + 4] = draw.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"])


DAMAGE = (_flip, _flip, _flip, _overwrite, _cut, _drop, _double, _zero, _largest)


def damaged(content: bytes, draw: Random) -> bytes:
    """The bytes with one to three damages."""
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if found:
            draw.choice(DAMAGE)(found, draw)
    return bytes(found)
