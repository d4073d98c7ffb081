"""Export a run: into one folder that is new, empty, or an older export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput, unknown
from dyn_probe.report.export.dashboards import needs, write_tensorboard, write_wandb
from dyn_probe.report.export.table_files import ENDINGS, write_tables
from dyn_probe.report.unfit import naming_runs
from dyn_probe.trace.failures import naming
from dyn_probe.trace.run_folder import RUN_FILE
from dyn_probe.trace.schema import TABLES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MARK = "export.json"
WRITER = "dyn-probe export"


@dataclass(frozen=True)
class Form:
    """One form of export: what writes it into a folder, the package that it needs, and what one types next."""

    write: Callable[[Trace, Path], str]
    package: str = ""
    next_command: str = "dyn-probe report {run}"


FORMS: dict[str, Form] = {
    **{name: Form(partial(write_tables, form=name)) for name in ENDINGS},
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
        BadInput: an unknown form, one whose package is not installed, a folder in use, a run without rows.
        WriteFailed: the system refuses to write a file.
    """
    if form is None:
        raise BadInput(f"wanted what to export to; write --to with one of: {', '.join(FORMS)}")
    if form not in FORMS:
        raise BadInput(unknown("format", form, FORMS))
    if FORMS[form].package:
        needs(FORMS[form].package)
    out = trace.path / f"export-{form}" if out is None else out
    if not any(trace.arrow(name).num_rows for name in TABLES):
        raise BadInput(f"{trace.path} has no rows yet, so there is nothing to export")
    _make_ready(out, force)
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
    before = _files(out)
    with naming_runs([trace.path]):
        said = FORMS[form].write(trace, out)
    files = sorted(path.relative_to(out).as_posix() for path in _files(out) - before)
    _mark(out, files)
    return out, said


def _make_ready(out: Path, force: bool) -> None:
    """Refuse what is in use; with force remove the files of an older export."""
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
    _remove(out, older_files(out))
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
    try:
        content = json.loads((out / MARK).read_text(encoding="utf-8"))
        names = content["files"] if content["written_by"] == WRITER else []
        inside = [out / str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    root = out.resolve()
    return [path for path in inside if path.parent.resolve().is_relative_to(root) and path.is_file()]


def _files(out: Path) -> set[Path]:
    return {path for path in out.rglob("*") if path.is_file() and path.name != MARK}


def _mark(out: Path, files: list[str]) -> None:
    path = out / MARK
    with naming(path):
        path.unlink(missing_ok=True)
        path.write_text(json.dumps({"written_by": WRITER, "files": files}, indent=1), encoding="utf-8")
