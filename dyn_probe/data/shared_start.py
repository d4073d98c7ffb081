"""How far two sequences agree."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Number of equal items (characters, tokens, messages) at the beginning of both."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
