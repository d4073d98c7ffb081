"""Preference pairs by name: generated, from a file, or from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dyn_probe.data.files import READERS, read_rows
from dyn_probe.data.records import PreferencePair, Skipped, listed
from dyn_probe.data.sentiment import STYLES, sentiment_pairs
from dyn_probe.data.shapes import pair_from_row
from dyn_probe.errors import BadInput, unknown

GENERATED = tuple(f"sentiment:{style}" for style in STYLES)
"""Names of the generated data."""


def load_pairs(name: str, *, count: int | None = None) -> tuple[list[PreferencePair], list[Skipped]]:
    """The pairs that ``name`` stands for, and the rows that cannot be trained on.

    Args:
        name: ``sentiment:STYLE`` (generated), ``sentiment:STYLE@FILE.jsonl`` (on your own statements), a JSON-lines
            or Parquet file, a folder that ``datasets`` can load, or a hub id ``OWNER/NAME`` (``…:SPLIT`` for
            another split than train).
        count: read at most this many rows.

    Raises:
        BadInput: the name is unknown, the data cannot be read, or no row of it can be used.
    """
    if name.startswith("sentiment:"):
        return sentiment_pairs(name.removeprefix("sentiment:"), count), []
    pairs, skipped = _sorted_out(islice(_rows(name), count))
    if not pairs:
        raise BadInput(f"no pair in {name} can be used: {listed(skipped) or 'it has no rows'}")
    return pairs, skipped


def _rows(name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(source, row) of a file, folder or hub id."""
    path = Path(name).expanduser()
    if path.is_file() or name.endswith(tuple(READERS)):
        return read_rows(path)
    if path.is_dir() or _hub_like(name):
        return _dataset_rows(name)
    if path.is_absolute() or name.startswith((".", "~")):
        raise BadInput(f"no such file or folder: {name}")
    raise BadInput(f"{unknown('data', name, GENERATED)}; or name a file ({', '.join(READERS)}), or a hub id OWNER/NAME")


def _hub_like(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not name.startswith((".", "~"))


def _dataset_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a folder or hub id, read by ``datasets``."""
    from datasets import load_dataset

    place, _, split = name.partition(":") if not os.path.isdir(name) else (name, "", "")
    split = split or "train"
    try:
        rows = load_dataset(place, split=split)
    except Exception as error:  # datasets raises a dozen unrelated types here
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"cannot load data {place!r}, split {split!r}: {first} ({type(error).__name__}); "
            f"wanted a file, a folder or a hub id with that split"
        ) from error
    return ((f"{place}:{split} row {number}", dict(row)) for number, row in enumerate(rows))


def _sorted_out(
    rows: Iterable[tuple[str, dict[str, Any]]],
) -> tuple[list[PreferencePair], list[Skipped]]:
    """Usable pairs, and the rest with reasons, both in file order."""
    pairs: list[PreferencePair] = []
    skipped: list[Skipped] = []
    for source, row in rows:
        found = pair_from_row(row, source)
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            pairs.append(found)
    return pairs, skipped
