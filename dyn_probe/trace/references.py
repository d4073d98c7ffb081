"""Reference traces: small recorded runs that come with the package, to compare one's own run with.

``reference:NAME`` stands for the folder of one of them wherever a trace's folder is asked for.
"""

from __future__ import annotations

from pathlib import Path

from dyn_probe.errors import TraceError, unknown

PREFIX = "reference:"
FOLDER = Path(__file__).parent / "references"
"""Holds ``reference-NAME`` for each."""


def reference_names() -> list[str]:
    """The names that there are."""
    return sorted(one.name.removeprefix("reference-") for one in FOLDER.glob("reference-*") if one.is_dir())


def is_reference(path: str | Path) -> bool:
    """Whether this names a reference trace, and no folder."""
    return str(path).startswith(PREFIX)


def trace_folder(path: str | Path) -> Path:
    """The folder that a trace's name or path stands for.

    Raises:
        TraceError: there is no reference trace of that name.
    """
    if not is_reference(path):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    if name not in reference_names():
        raise TraceError(unknown("reference trace", name, reference_names(), PREFIX + "{}"))
    return FOLDER / f"reference-{name}"
