"""Where a recorded trainer's trace goes: the folder that was asked for, or one beside it, for all processes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.command import SEEN
from dyn_probe.attach.user_lines import say
from dyn_probe.errors import TraceError
from dyn_probe.trace.manifest import checked, read_manifest
from dyn_probe.trace.writer import TraceWriter

SAME: Mapping[str, tuple[str, ...]] = {
    "model": ("type", "parameters", "trained_parameters"),
    "data": ("pairs", "max_length", "digest"),
    "objective": ("name", "hyper"),
    "trainer": ("name",),
}
"""Object of ``run.json`` → fields that a training shares with the one that it goes on with."""


def open_trace(options: AttachOptions, manifest: Mapping[str, Any], rank: int, first: int) -> TraceWriter:
    """The writer of this process; the first one chooses the folder and tells the others.

    Args:
        rank: this process's number.
        first: the step at which training begins: after 0 it goes on from a checkpoint, and so does a trace of the same
            model and data.

    Raises:
        TraceError: the first process could not open one.
    """
    told: list[Any] = [None]
    writer: TraceWriter | None = None
    if rank == 0:
        session = uuid.uuid4().hex
        try:
            writer = _open(options, manifest, session, first)
            told = [(str(writer.path), session)]
        except Exception as error:  # told to the others too, which wait for it
            told = [
                error if isinstance(error, TraceError) else TraceError(f"cannot record into {options.out}: {error}")
            ]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], TraceError):
        raise told[0]
    folder, session = told[0]
    if writer is None:
        return TraceWriter(folder, manifest, rank=rank, session=session, strict=options.strict)
    if seen := os.environ.get(SEEN):
        with suppress(OSError), Path(seen).open("a", encoding="utf-8") as file:
            file.write(f"{folder}\n")
    return writer


def _open(options: AttachOptions, manifest: Mapping[str, Any], session: str, first: int) -> TraceWriter:
    wanted = Path(options.out)
    why = "is taken"
    if first:
        continued, why = _continued(wanted, manifest)
        if continued is not None:
            try:
                writer = TraceWriter(
                    continued, manifest, session=session, strict=options.strict, resume=True, resume_step=first
                )
                say(f"the training continues at step {first}; its rows are appended to {continued}")
                return writer
            except TraceError as error:
                why = f"cannot be continued ({error})"
    over = options.force and not first
    folder = wanted if over else next(folder for folder in _numbered(wanted) if _is_free(folder))
    if folder != wanted:
        say(f"{wanted} {why}; recording into {folder}")
    return TraceWriter(folder, manifest, session=session, force=over, strict=options.strict)


def _continued(wanted: Path, manifest: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The newest trace of this training in the folder and those beside it; None, and why the folder has none."""
    found, why = None, "is taken"
    for folder in _numbered(wanted):
        if _is_free(folder):
            return found, why
        try:
            other = _differs(read_manifest(folder), checked(manifest))
        except TraceError:
            other = "is taken"
        if not other:
            found = folder
        elif folder == wanted:
            why = other
    raise AssertionError


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What the trace of another training has that this one has not, in words; "" where they agree."""
    for part, names in SAME.items():
        for name in names:
            ours, theirs = ((one.get(part) or {}).get(name) for one in (new, old))
            if ours != theirs:
                return (
                    f"holds a trace of {'other' if part == 'data' else 'another'} {part} ({name}: {theirs}, now {ours})"
                )
    return ""


def _numbered(wanted: Path) -> Iterator[Path]:
    """The folder, then the same name with 2, 3, … behind it."""
    number = 1
    while True:
        yield wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        number += 1


def _is_free(folder: Path) -> bool:
    """Whether it is new or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
