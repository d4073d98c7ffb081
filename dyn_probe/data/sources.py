"""Rows by the name of their source: a file, a folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dyn_probe.data.files import RowStream, read_rows
from dyn_probe.data.names import Source, data_place, hub_away
from dyn_probe.data.records import SourceRow
from dyn_probe.errors import BadInput


def read_source(name: str) -> RowStream:
    """Every row of the file, folder or hub id ``name``, each with its place.

    Raises:
        BadInput: there is no such source, or it cannot be read.
    """
    place = data_place(name)
    if place.kind == "file":
        return read_rows(Path(place.name))
    split = place.split or "train"
    if place.kind == "hub":
        return _numbered(_loaded(place.name, split), f"{place.name}:{split}")
    return _numbered(_folder(Path(place.name), place), f"{place.name}{':' + place.split if place.split else ''}")


def _numbered(rows: Iterable[Any], where: str) -> RowStream:
    try:
        for number, row in enumerate(rows):
            yield SourceRow(f"{where} row {number}", dict(row))
    except BadInput:
        raise
    except Exception as error:  # datasets raises a dozen unrelated types here
        raise BadInput(f"cannot read {where}: {_first_line(error)}") from error


def _folder(folder: Path, place: Source) -> Iterable[Any]:
    """Rows of a folder: one of ``save_to_disk``, or files as ``datasets`` knows them."""
    if (folder / "dataset_dict.json").is_file():
        splits = list(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", []))
        return _saved(folder / _chosen_split(place, splits))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved(folder, place.split)
    with quiet():
        return _loaded(str(folder), _chosen_split(place, _splits(folder)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets``, which pass too fast for files of this machine."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _chosen_split(place: Source, splits: list[str]) -> str:
    """The split that is named, or train.

    Raises:
        BadInput: the folder has no such split; names those it has.
    """
    wanted = place.split or "train"
    if wanted.partition("[")[0] not in splits:
        has = ", ".join(splits) or "none"
        way = f"; write {place.name}:{splits[0]}" if splits else ""
        raise BadInput(f"the folder {place.name} has no split {wanted}; it has: {has}{way}")
    return wanted


def _saved(folder: Path, split: str = "") -> Iterable[Any]:
    """Rows of a folder that ``Dataset.save_to_disk`` wrote."""
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        raise BadInput(f"cannot read the saved data set {folder}: {_first_line(error)}") from error
    if split and str(found.split) != split:
        raise BadInput(f"{folder} is one saved split ({found.split or 'without a name'}); write {folder} alone")
    return found


def _splits(folder: Path) -> list[str]:
    """Splits of a folder of data files."""
    from datasets import load_dataset_builder

    try:
        return [str(name) for name in load_dataset_builder(str(folder)).config.data_files or {}]
    except Exception as error:
        raise BadInput(
            f"cannot read the folder {folder}: {_first_line(error)}; wanted files of rows in it (train.jsonl, "
            "test.parquet, …), or what Dataset.save_to_disk writes"
        ) from error


def _loaded(place: str, split: str) -> Iterable[Any]:
    """Rows of a folder or hub id, read by ``datasets``."""
    from datasets import load_dataset

    try:
        return load_dataset(place, split=split)
    except Exception as error:
        away = f" ({why})" if (why := hub_away()) and not Path(place).exists() else ""
        raise BadInput(
            f"cannot load data {place!r}, split {split!r}{away}: {_first_line(error)} ({type(error).__name__}); "
            f"wanted a file, a folder or a hub id with that split; another split is written {place}:SPLIT"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".;")
