"""Where a recorded trainer's trace goes: the folder that was asked for, or one beside it, for all processes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.user_lines import say
from dyn_probe.errors import TraceError
from dyn_probe.trace.writer import TraceWriter


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
        except TraceError as error:
            told = [error]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], TraceError):
        raise told[0]
    folder, session = told[0]
    return writer or TraceWriter(folder, manifest, rank=rank, session=session, strict=options.strict)


def _open(options: AttachOptions, manifest: Mapping[str, Any], session: str, first: int) -> TraceWriter:
    wanted = Path(options.out)
    folder = wanted if options.force else _free(wanted)
    if folder != wanted:
        say(f"{wanted} is taken; recording into {folder}")
    return TraceWriter(folder, manifest, session=session, force=options.force, strict=options.strict)


def _free(wanted: Path) -> Path:
    """The folder, or the first of its name with a number behind it that is new or empty."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
