"""The one place where ``run.json`` is written, read and checked, by the schema in ``run_fields``."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dyn_probe.errors import TraceError, on_one_line
from dyn_probe.trace.damage import LONGEST_TEXT
from dyn_probe.trace.failures import naming
from dyn_probe.trace.run_fields import OWN, Manifest
from dyn_probe.trace.run_folder import RUN_FILE, refuse_link_out, scratch_file, spare_file
from dyn_probe.trace.schema import SCHEMA_VERSION
from dyn_probe.trace.typed import plain, read

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
SPARE = 2**16
"""Bytes that a recording keeps free for its last ``run.json``, which says what is missing."""
STATUSES = ("recording", "closed", "stopped")
DEEPEST = 50
"""Levels of lists and mappings that run.json may have within one another."""


def typed(content: Mapping[str, Any]) -> Manifest:
    """The typed form of fields as ``read_manifest`` returns them; what does not fit is left at its default."""
    found = read(Manifest, {"schema_version": 0, "dyn_probe_version": "", "status": "", **content}, "", [])
    return found or Manifest(0, "", "")


def now() -> str:
    """The time as it stands in run.json: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def checked(fields: Mapping[str, object]) -> dict[str, Any]:
    """A recorder's ``fields`` as JSON values.

    Raises:
        TraceError: fields that the writer fills itself, values that JSON cannot hold, values of another type than the
            schema has: all of them.
    """
    taken = [name for name in fields if name in OWN]
    if taken:
        raise TraceError(f"run.json fields that the writer fills itself: {', '.join(taken)}; choose other names")
    problems: list[str] = []
    content: dict[str, Any] = _with_shapings(plain(fields, "", problems))
    if problems:
        raise TraceError(
            "run.json takes text, numbers, truth values, null, lists and mappings; came " + ", ".join(problems)
        )
    problems = [f"levels within one another: at most {DEEPEST}"] if _depth(content) > DEEPEST else misfits(content)
    if problems:
        raise TraceError("run.json cannot take these fields: " + "; ".join(problems))
    return content


def misfits(content: Mapping[str, Any]) -> list[str]:
    """Complaints about a recorder's fields that are not as the schema has them."""
    problems: list[str] = []
    read(Manifest, {"schema_version": 1, "dyn_probe_version": "", "status": "", **content}, "", problems)
    return problems


def read_manifest(run: Path) -> dict[str, Any]:
    """``run.json`` of a trace that this version can read, as plain JSON in today's form (``typed`` gives it types).

    Raises:
        TraceError: there is no such folder, it is no trace, a newer dyn-probe wrote it, or fields are not what they
            should be.
    """
    wanted = "wanted the folder of a trace, as `dyn-probe record --out` writes it"
    try:
        if not run.is_dir():
            raise TraceError(f"{wanted}; {run} {'is a file' if run.exists() else 'does not exist'}")
        if (run / RUN_FILE).exists() and not (run / RUN_FILE).is_file():
            raise TraceError(f"{wanted}; {run / RUN_FILE} is not a file")
        refuse_link_out(run, run / RUN_FILE)
        if (size := (run / RUN_FILE).stat().st_size) > LONGEST_TEXT:
            raise TraceError(f"{wanted}; {run / RUN_FILE} has {size:,} bytes, at most {LONGEST_TEXT:,} are read")
        content = json.loads((run / RUN_FILE).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise TraceError(f"{wanted}; {run} has no {RUN_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{wanted}; {run / RUN_FILE} cannot be read as JSON: {on_one_line(error)}") from error
    if not _is_manifest(content):
        raise TraceError(
            f"{wanted}; {run / RUN_FILE} is not that of a trace: it lacks schema_version, dyn_probe_version or status"
        )
    if content["schema_version"] > SCHEMA_VERSION:
        raise TraceError(
            f"{run} has schema_version {content['schema_version']}, but this version reads up to {SCHEMA_VERSION}; "
            f"install the dyn-probe that wrote it ({on_one_line(content['dyn_probe_version'], 40)}), or a newer one"
        )
    return _accepted(content, run / RUN_FILE)


def _accepted(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content in today's form. An older version promised nothing about a recorder's fields, and those of them that
    do not fit are passed over."""
    content = strict = _with_shapings(content)
    if content["schema_version"] < 2:
        strict = {name: content[name] for name in OWN if name in content}
    problems = [] if _depth(content) <= DEEPEST else [f"lists and mappings are nested deeper than {DEEPEST} levels"]
    if not problems:
        read(Manifest, strict, "", problems)
        problems += [] if content["status"] in STATUSES else [f"status: wanted one of {', '.join(STATUSES)}"]
    if problems:
        raise TraceError(f"{path} cannot be used: {'; '.join(problems[:5])}")
    return content


def _is_manifest(content: object) -> bool:
    if not isinstance(content, dict) or type(content.get("schema_version")) is not int:
        return False
    return isinstance(content.get("status"), str) and isinstance(content.get("dyn_probe_version"), str)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _depth(content: object) -> int:
    """Levels of lists and mappings within one another; no further than is of interest."""
    level, depth = [content], 0
    while level and depth <= DEEPEST:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth


def _with_shapings(content: dict[str, Any]) -> dict[str, Any]:
    """The same with structured shapings, where one is a text as version 1 wrote it: "gate-seq: {'tau': 0.1}"."""
    objective = content.get("objective")
    if not isinstance(objective, dict) or not isinstance(objective.get("shaping"), list):
        return content
    shaping = [_shaping(one) if isinstance(one, str) else one for one in objective["shaping"]]
    return {**content, "objective": {**objective, "shaping": shaping}}


def _shaping(text: str) -> dict[str, Any]:
    name, _, written = text.partition(": ")
    try:
        options = ast.literal_eval(written) if len(written) < 10_000 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        options = None
    problems: list[str] = []
    options = plain(options, "", problems) if isinstance(options, dict) else {}
    return {"name": name, "options": {} if problems else options}


def fitting(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recorder's fields of an older trace, to be gone on with under today's schema: what does not fit it stands
    under ``earlier``."""
    kept = {name: value for name, value in content.items() if name not in OWN}
    others = {name: value for name, value in kept.items() if misfits({name: value})}
    return {name: value for name, value in kept.items() if name not in others} | ({"earlier": others} if others else {})


def write_manifest(run: Path, content: Mapping[str, object]) -> None:
    """Put ``run.json`` in place in one move: a reader sees the old one or the new one.

    Raises:
        WriteFailed: the system refuses to write it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with naming(run / RUN_FILE):
        try:
            _replace(run / RUN_FILE, text)
        except OSError as error:
            if error.errno not in NO_ROOM or not spare_file(run).is_file():
                raise
            spare_file(run).unlink()
            _replace(run / RUN_FILE, text)
    if content.get("status") == "recording":
        keep_room(run)


def _replace(path: Path, text: str) -> None:
    scratch = scratch_file(path)
    scratch.unlink(missing_ok=True)  # never through a link that lies there
    with scratch.open("x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    os.replace(scratch, path)


def keep_room(run: Path) -> None:
    """Occupy ``SPARE`` bytes of the disk until ``run.json`` needs them; of a small disk a sixteenth of what is free:
    rows come first."""
    with suppress(OSError):
        there = spare_file(run).stat().st_size if spare_file(run).is_file() else 0
        wanted = min(SPARE, (shutil.disk_usage(run).free + there) // 16)
        if there < wanted:
            spare_file(run).unlink(missing_ok=True)
            spare_file(run).write_bytes(b"\xff" * wanted)
