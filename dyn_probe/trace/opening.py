"""How a trace folder comes to be: created, overwritten, resumed by rank 0; waited for by the other ranks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dyn_probe import __version__
from dyn_probe.errors import TraceError
from dyn_probe.trace.lock import FolderLock
from dyn_probe.trace.manifest import fitting, keep_room, now, read_manifest, write_manifest
from dyn_probe.trace.merge import is_own_parquet
from dyn_probe.trace.run_folder import (
    RUN_FILE,
    STREAMS,
    list_open_marks,
    open_mark,
    own_files,
    parquet_file,
)
from dyn_probe.trace.schema import SCHEMA_VERSION, TABLES


def open_folder(
    run: Path,
    fields: Mapping[str, Any],
    *,
    force: bool,
    resume: bool,
    resume_step: int | None,
    session: str | None,
) -> tuple[FolderLock, dict[str, Any]]:
    """Rank 0: make the folder ready to record into, and write its ``run.json``.

    Args:
        run: folder of the trace.
        fields: what the recorder says about the run, as JSON values.
        force: remove an older trace that is there; other files stay.
        resume: continue the trace that is there.
        resume_step: recorded rows of this step and later are no longer read.
        session: a name for this launch; None generates one.

    Returns:
        The lock on the folder, and the manifest as written.
    """
    if run.exists() and not run.is_dir():
        raise TraceError(f"wanted a folder to record into, but {run} is a file; name another folder")
    if resume:
        read_manifest(run)
    lock: FolderLock | None = None
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(run)
        old = read_manifest(run) if resume else _start_empty(run, force)
        (run / STREAMS).mkdir(exist_ok=True)
        manifest = _manifest(old, fields, session or uuid.uuid4().hex)
        if resume:
            manifest["resumes"].append(_resume_point(manifest, resume_step))
        write_manifest(run, manifest)
        keep_room(run)
    except BaseException as error:
        if lock:
            lock.release()
        if isinstance(error, OSError):
            raise TraceError(f"cannot record into {run}: {error}") from error
        raise
    return lock, manifest


def _start_empty(run: Path, force: bool) -> dict[str, Any]:
    """Refuse a folder in use, or remove the trace in it; returns an empty old manifest."""
    content = sorted(os.listdir(run))
    if not content:
        return {}
    if not force:
        about = "holds a trace" if (run / RUN_FILE).exists() else "is not empty"
        raise TraceError(
            f"wanted a new or empty folder to record into, but {run} {about} ({', '.join(content[:5])}); "
            f"name another folder, resume the trace, or overwrite it with force (--force)"
        )
    _remove_trace(run)
    return {}


def _remove_trace(run: Path) -> None:
    """Remove a trace's own files, ``run.json`` last; other files in the folder stay."""
    try:
        read_manifest(run)
    except TraceError as error:
        raise TraceError(
            f"{run} is not overwritten, because it is not a trace that this version can read: {error}"
        ) from error
    tables = [parquet_file(run, table) for table in TABLES]
    foreign = [path.name for path in tables if path.exists() and not is_own_parquet(path)]
    if foreign or (run / STREAMS).is_symlink():
        names = ", ".join(foreign or [f"{STREAMS} (a link)"])
        raise TraceError(f"{run} is not overwritten: {names} was not written by dyn-probe; move it away first")
    for path in own_files(run):
        path.unlink()


def _manifest(old: Mapping[str, Any], fields: Mapping[str, Any], session: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "dyn_probe_version": __version__,
        "status": "recording",
        "created": old.get("created", now()),
        "closed": None,
        "reason": None,
        "unmerged": None,
        "lost": old.get("lost"),
        "session": session,
        "resumes": list(old.get("resumes", ())),
        "files": old.get("files", {}),
        **fitting(old),
        **fields,
    }


def _resume_point(manifest: Mapping[str, Any], step: int | None) -> dict[str, Any]:
    return {"segment": len(manifest["resumes"]) + 1, "step": step, "at": now()}


def wait_for_folder(run: Path, rank: int, session: str | None, wait_seconds: float) -> dict[str, Any]:
    """Other ranks: wait until rank 0 records into ``run``, in the same session if one is named.

    A trace in which this rank has an open mark already is an older one, left by a crash.

    Raises:
        TraceError: rank 0 did not open the folder in time.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            manifest = read_manifest(run)
            marked = open_mark(run, rank, len(manifest.get("resumes", ()))).exists()
            ours = session in (None, manifest.get("session")) and not marked
            if ours and manifest["status"] == "recording":
                return manifest
            seen = f"{run} is {manifest['status']} in session {manifest.get('session')}"
            seen += f", and rank {rank} has recorded there already" if marked else ""
        except TraceError as error:
            seen = str(error)
        if time.monotonic() >= deadline:
            wanted = "" if session is None else f" in session {session}"
            raise TraceError(
                f"rank 0 did not open {run} for recording{wanted} within {wait_seconds:g} s: {seen}; "
                f"start rank 0 with the same folder, or wait longer (wait_seconds)"
            )
        time.sleep(0.02)


def wait_for_others(run: Path, segment: int, wait_seconds: float) -> str | None:
    """Rank 0: wait until the other ranks have closed; returns None, or which had not after the time."""
    deadline = time.monotonic() + wait_seconds
    while marks := list_open_marks(run, segment):
        if time.monotonic() >= deadline:
            ranks = ", ".join(mark.stem for mark in marks)
            return f"{ranks} had not closed {wait_seconds:g} s after rank 0"
        time.sleep(0.02)
    return None
