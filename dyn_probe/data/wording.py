"""Numbers of things in words."""

from __future__ import annotations

from collections.abc import Sequence


def share(found: Sequence[object], pairs: Sequence[object], noun: str = "pair") -> str:
    """``3 of 10 pairs``."""
    return f"{len(found):,} of {counted(len(pairs), noun)}"


def counted(number: int, noun: str) -> str:
    """``1 pair``, ``6 pairs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def verb(stem: str, found: Sequence[object]) -> str:
    """The verb for so many: ``begins`` for one, ``begin`` for more."""
    return stem + ("s" if len(found) == 1 else "")
