"""Rows as a file would have them, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest

from dyn_probe.data.columns import unread_columns, watched
from dyn_probe.data.reading import pairs_of
from dyn_probe.data.records import PreferencePair, Skipped, SourceRow
from dyn_probe.data.shapes import Shape, recognise
from dyn_probe.errors import BadInput

USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
KIND = {"role": "system", "content": "Be kind."}


def read(*rows: dict[str, Any], columns: str = "") -> tuple[list[PreferencePair], list[Skipped], Shape]:
    """What becomes of rows that stand at here:1, here:2, …"""
    sources = [SourceRow(f"here:{number}", row) for number, row in enumerate(rows, start=1)]
    shape = recognise(sources, columns)
    pairs, skipped = pairs_of(sources, shape, watched(unread_columns(sources, shape), columns))
    return pairs, skipped, shape


def pair(row: dict[str, Any], columns: str = "") -> PreferencePair:
    (found,), skipped, _ = read(row, columns=columns)
    assert not skipped
    return found


def left_out(row: dict[str, Any]) -> str:
    """Why a row is left out that stands among good ones of its kind."""
    good = [{**row, "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]}] * 2
    good = good if isinstance(row["chosen"], list) else [{**row, "chosen": "abc", "rejected": "abd"}] * 2
    _, skipped, _ = read(*good, row)
    (found,) = (one for one in skipped if one.source == "here:3")
    return found.why


def refusal(*rows: dict[str, Any], columns: str = "") -> str:
    with pytest.raises(BadInput) as caught:
        read(*rows, columns=columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)
