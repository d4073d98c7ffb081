"""Reference traces: small recorded runs that come with the package, to compare one's own run with.

``reference:NAME`` stands for the folder of one of them wherever a trace is read; nothing is written beside it.
"""

from __future__ import annotations

from pathlib import Path

from dyn_probe.errors import BadInput, TraceError, unknown

PREFIX = "reference:"
FOLDER = Path(__file__).resolve().parent / "references"
"""Holds ``reference-NAME`` for each."""


def reference_names() -> list[str]:
    """The names that there are."""
    return sorted(one.name.removeprefix("reference-") for one in FOLDER.glob("reference-*") if one.is_dir())


def is_reference(path: str | Path) -> bool:
    """Whether this names a reference trace, or is the folder of one."""
    return str(path).startswith(PREFIX) or Path(path).resolve().parent == FOLDER


def refuse_beside(path: str | Path, what: str, place: str = "a folder") -> None:
    """Refuse to write in the folder of a reference trace, where no other place was named.

    Args:
        what: what would be written, and ``place`` what ``--out`` is to name.

    Raises:
        BadInput: it is a reference trace.
    """
    if is_reference(path):
        raise BadInput(f"{path} comes with the package, and no {what} is written beside it; name {place} with --out")


def trace_folder(path: str | Path) -> Path:
    """The folder that a trace's name or path stands for.

    Raises:
        TraceError: there is no reference trace of that name.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    if name not in reference_names():
        raise TraceError(unknown("reference trace", name, reference_names(), PREFIX + "{}"))
    return FOLDER / f"reference-{name}"
