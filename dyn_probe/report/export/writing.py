"""Export a run: into one folder that is new, empty, or an older export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput, unknown
from dyn_probe.report.export.dashboards import needs, write_tensorboard, write_wandb
from dyn_probe.report.export.table_files import ENDINGS, table_names, write_tables
from dyn_probe.report.unfit import naming_runs
from dyn_probe.trace.failures import naming
from dyn_probe.trace.references import refuse_beside
from dyn_probe.trace.run_folder import RUN_FILE
from dyn_probe.trace.schema import TABLES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MARK = "export.json"
WRITER = "dyn-probe export"


@dataclass(frozen=True)
class Form:
    """One form of export: what writes it into a folder, the package that it needs, what one types next, and the names
    of its files where these are always the same."""

    write: Callable[[Trace, Path], str]
    package: str = ""
    next_command: str = "dyn-probe report {run}"
    names: Callable[[Trace], list[str]] = lambda trace: []


FORMS: dict[str, Form] = {
    **{name: Form(partial(write_tables, form=name), names=partial(table_names, form=name)) for name in ENDINGS},
    "tensorboard": Form(write_tensorboard, "tensorboard", "tensorboard --logdir {out}"),
    "wandb": Form(write_wandb, "wandb", "wandb sync {out}/wandb/offline-run-*"),
}
"""Name → form; `dyn-probe export --to` takes these names."""


def export(trace: Trace, form: str | None, out: Path | None = None, force: bool = False) -> tuple[Path, str]:
    """Write a run for another program.

    Args:
        trace: a run, closed or still being written.
        form: a name of FORMS.
        out: the folder, RUN/export-FORM by default; nothing outside of it is written.
        force: write into a folder that holds something. Files of an older export go, others stay.

    Returns:
        The folder, and what was written, in words.

    Raises:
        BadInput: an unknown form, one whose package is not installed, a folder in use, other files under the names
            that are written, a run without rows, a reference trace without ``out``.
        WriteFailed: the system refuses to write a file.
    """
    if form is None:
        raise BadInput(f"wanted what to export to; write --to with one of: {', '.join(FORMS)}")
    if form not in FORMS:
        raise BadInput(unknown("format", form, FORMS))
    if FORMS[form].package:
        needs(FORMS[form].package)
    if out is None:
        refuse_beside(trace.path, "export")
        out = trace.path / f"export-{form}"
    if not any(trace.arrow(name).num_rows for name in TABLES):
        raise BadInput(f"{trace.path} has no rows yet, so there is nothing to export")
    _make_ready(out, force, [*FORMS[form].names(trace), MARK])
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
    before = _files(out)
    try:
        with naming_runs([trace.path]):
            said = FORMS[form].write(trace, out)
    finally:  # also what a failed export has written is its own
        _mark(out, sorted(path.relative_to(out).as_posix() for path in _files(out) - before))
    return out, said


def _make_ready(out: Path, force: bool, names: list[str]) -> None:
    """Refuse what is in use, and files under these names that no export wrote; with force remove the files of an older
    export."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"an export needs a folder, and {out} is a file; write --out FOLDER")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if (out / RUN_FILE).exists():
        raise BadInput(f"{out} is the folder of a run, and an export never writes among its tables; write --out FOLDER")
    if not force:
        raise BadInput(
            f"{out} is not empty; name another folder with --out, or write --force (an older export in it is "
            "replaced, other files stay)"
        )
    older = older_files(out)
    own = {path.relative_to(out).as_posix() for path in older} | ({MARK} if _listed(out) is not None else set())
    foreign = [name for name in names if os.path.lexists(out / name) and name not in own]
    if foreign:
        raise BadInput(
            f"{out} holds files that no export wrote, under names that this one writes ({', '.join(foreign)}); move "
            "them, or name another folder with --out"
        )
    _remove(out, older)
    links = [path.name for path in out.iterdir() if path.is_symlink() and path.is_dir()]
    if links:
        raise BadInput(f"{out} holds links to other folders ({', '.join(links)}); name another folder with --out")


def _remove(out: Path, files: list[Path]) -> None:
    """Remove files, and the folders and links below `out` in which nothing is left by that."""
    for path in files:
        path.unlink(missing_ok=True)
    for top in {out / path.relative_to(out).parts[0] for path in files}:
        for path in sorted(top.rglob("*"), reverse=True) if top.is_dir() and not top.is_symlink() else ():
            if path.is_symlink() and not path.exists():
                path.unlink()
            elif path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()


def older_files(out: Path) -> list[Path]:
    """Files of an older export in this folder, by its own list; empty if there is none."""
    root = out.resolve()
    inside = [out / name for name in _listed(out) or []]
    return [path for path in inside if path.parent.resolve().is_relative_to(root) and path.is_file()]


def _listed(out: Path) -> list[str] | None:
    """The list of an older export; None where this folder has none."""
    try:
        content = json.loads((out / MARK).read_text(encoding="utf-8"))
        return [str(name) for name in content["files"]] if content["written_by"] == WRITER else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(out: Path) -> set[Path]:
    return {path for path in out.rglob("*") if path.is_file() and path.name != MARK}


def _mark(out: Path, files: list[str]) -> None:
    path = out / MARK
    with naming(path):
        path.unlink(missing_ok=True)
        path.write_text(json.dumps({"written_by": WRITER, "files": files}, indent=1), encoding="utf-8")
