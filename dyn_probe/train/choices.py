"""Unknown names answered with the known ones, the nearest first."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, got: str, choices: Iterable[str], form: str = "{}") -> str:
    """One line: what is unknown, the nearest choice if one is near, and all choices.

    Args:
        kind: what was named, e.g. ``objective``.
        form: how a choice is written, e.g. ``sentiment:{}``.
    """
    known = list(choices)
    near = get_close_matches(got, known, n=1, cutoff=0.6)
    hint = f" (did you mean {form.format(near[0])}?)" if near else ""
    return f"unknown {kind} {got!r}{hint}; choose from: {', '.join(form.format(name) for name in known)}"
