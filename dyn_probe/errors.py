"""The errors this package raises: one small tree, so that a caller can catch all of it or one branch.

And the words for a name that is not in a table: what came, the nearest name, all names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version

FLOORS = {"torch": (2, 11), "transformers": (5, 0), "pandas": (2, 2), "pyarrow": (17, 0)}
"""Package → the oldest version that this one works with, as in its metadata."""
NEWEST = {"torch": (2, 13), "transformers": (5, 24), "pandas": (3, 1), "pyarrow": (26, 0)}
"""Package → the newest version that the tests have run with."""
_SAID: set[str] = set()


class DynProbeError(Exception):
    """Base of every error that dyn-probe raises on purpose."""


class BadInput(DynProbeError, ValueError):
    """An argument, option or data file is not usable; the message says what was wanted and what came."""


class UnsupportedUse(DynProbeError):
    """A model uses parameters in a way whose per-row gradient cannot be recovered; the message lists every one."""


class TraceError(DynProbeError):
    """A trace folder cannot be read or written as asked."""


class WriteFailed(TraceError):
    """The system refused to write a file of the run: a full disk, a file-size limit, a folder that is gone."""

    exit_code = 1


class CertificationError(DynProbeError):
    """The recorder disagrees with plain autograd by more than its tolerance."""


class Diverged(DynProbeError):
    """Training diverged (a loss, gradient or log-probability is not finite); what was recorded before is kept."""

    exit_code = 1


def nearest(got: object, choices: Iterable[str]) -> str | None:
    """The choice that ``got`` was probably meant to be, whatever its case and hyphens; None if none is near."""
    known = {_folded(name): name for name in choices}
    near = get_close_matches(_folded(str(got)), known, n=1, cutoff=0.6)
    return known[near[0]] if near else None


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")


def did_you_mean(got: object, choices: Iterable[str], form: str = "{}") -> str:
    """`` (did you mean dpo?)``, to be put behind a wrong name; empty if nothing is near.

    Args:
        form: how a choice is written, e.g. ``sentiment:{}``.
    """
    near = nearest(got, choices)
    return "" if near is None else f" (did you mean {form.format(near)}?)"


LONGEST_NAME = 80
"""Characters of an unknown name that a message repeats."""


def unknown(kind: str, got: str, choices: Iterable[str], form: str = "{}") -> str:
    """One line: what is unknown, the nearest choice if one is near, and all choices.

    Args:
        kind: what was named, e.g. ``objective``.
        form: how a choice is written, e.g. ``sentiment:{}``.
    """
    known = list(choices)
    listed = ", ".join(form.format(name) for name in known)
    short = got if len(got) <= LONGEST_NAME else f"{got[: LONGEST_NAME - 1]}…"
    return f"unknown {kind} {short!r}{did_you_mean(got, known, form)}; choose one of: {listed}"


def escaped(text: str, kept: str = "") -> str:
    """A text that others wrote, fit for a terminal: what steers one (ANSI sequences, bidirectional marks, odd spaces)
    stands as the escape that Python writes for it, ``\\x1b`` or ``\\u202e``.

    Args:
        kept: characters that stay as they are, such as the line feed.
    """
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in text)


def on_one_line(text: object, most: int = 300) -> str:
    """A text that others wrote, fit for a message: one line, no control characters, cut at ``most`` characters."""
    line = escaped(" ".join(str(text)[: 4 * most].split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def half_character(text: str) -> str:
    """What is wrong with a text that contains a lone surrogate, which no tokenizer accepts; "" if nothing is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"contains a lone surrogate (\\u{ord(text[error.start]):04x}) at character {error.start}"
    return ""


def check_versions() -> None:
    """Refuse installed packages that are older than FLOORS, and warn once of those that are newer than NEWEST; imports
    none of them.

    Raises:
        BadInput: names all that are older, and what to install.
    """
    found, newer = {}, {}
    for name, floor in FLOORS.items():
        with suppress(PackageNotFoundError):
            came = version(name)
            number = tuple(map(int, re.findall(r"\d+", came)[:2]))
            if number < floor:
                found[name] = came
            elif number > NEWEST[name]:
                newer[name] = came
    if found:
        wanted = " ".join(f"'{name}>={'.'.join(map(str, FLOORS[name]))}'" for name in found)
        came = ", ".join(f"{name} {old}" for name, old in found.items())
        raise BadInput(f"dyn-probe does not work with {came}; write: pip install {wanted}")
    said = ", ".join(f"{name} {new} (up to {'.'.join(map(str, NEWEST[name]))})" for name, new in newer.items())
    if said and said not in _SAID:
        _SAID.add(said)
        warnings.warn(
            f"untested with {said}: dyn-probe goes on, and a recording checks itself against plain autograd at its "
            "first step",
            RuntimeWarning,
            stacklevel=3,
        )
