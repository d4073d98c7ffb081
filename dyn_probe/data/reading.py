"""Rows of a source as preference pairs: shape by file, faults by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from dyn_probe.data.columns import check_prose, unread_columns, unread_prose, watched
from dyn_probe.data.generated.sentiment import sentiment_pairs
from dyn_probe.data.records import BadRow, PreferencePair, Skipped, SourceRow, listed
from dyn_probe.data.row_pairs import check_usable, pair_from_row
from dyn_probe.data.shapes import Shape, recognise
from dyn_probe.data.sources import read_source
from dyn_probe.data.splitting import prompt_taken_off
from dyn_probe.errors import BadInput


@dataclass(frozen=True)
class PairsRead:
    """What a name gave: pairs, rows left out, and how its rows were read.

    Args:
        rows: number of rows that were read.
        shape: name of the shape.
        columns: part → column.
        unread: columns that were not read.
        prose: those of them that hold text which is nowhere in the pairs.
    """

    name: str
    rows: int
    pairs: list[PreferencePair]
    skipped: list[Skipped]
    shape: str
    columns: Mapping[str, str] = field(default_factory=dict)
    unread: Sequence[str] = ()
    prose: Sequence[str] = ()


def load_pairs(name: str, *, count: int | None = None, columns: str = "") -> tuple[list[PreferencePair], list[Skipped]]:
    """The pairs that ``name`` stands for, and the rows that are left out. See ``read_pairs``."""
    found = read_pairs(name, count=count, columns=columns)
    return found.pairs, found.skipped


def read_pairs(name: str, *, count: int | None = None, columns: str = "") -> PairsRead:
    """The pairs that ``name`` stands for, the rows that are left out, and how the columns were read.

    Args:
        name: ``sentiment:STYLE`` (generated), ``sentiment:STYLE@FILE`` (on your own statements), a file of READERS, a
            folder, or a hub id ``OWNER/NAME``; folder and id with ``:SPLIT`` for another split than train.
        count: read at most this many rows.
        columns: ``PART=COLUMN,…`` for a shape that is in no table.

    Raises:
        BadInput: the name is unknown, the data cannot be read, no shape fits, or no row of it can be used.
    """
    if name.startswith("sentiment:"):
        if columns:
            raise BadInput(f"--columns is for files of pairs; {name} reads text, and sentiment or label_text")
        pairs, skipped = sentiment_pairs(name.removeprefix("sentiment:"), count)
        return PairsRead(name, len(pairs) + len(skipped), pairs, skipped, "statements with a sentiment")
    found = list(islice(read_source(name), count))
    rows = [row for row in found if isinstance(row, SourceRow)]
    broken = [row for row in found if isinstance(row, Skipped)]
    if not rows:
        raise BadInput(f"no pair in {name} can be used: {listed(broken) or 'it has no rows'}")
    shape = recognise(rows, columns)
    unread = unread_columns(rows, shape)
    pairs, skipped = pairs_of(found, shape, watched(unread, columns))
    if not pairs:
        raise BadInput(f"no pair in {name} can be used: {listed(skipped)}")
    if not shape.prompt and not shape.user:
        check_prose(pairs, rows, unread, columns)
    prose = unread_prose(pairs, rows, unread, columns)
    return PairsRead(name, len(found), pairs, skipped, shape.name, shape.columns, unread, prose)


def pairs_of(
    rows: Iterable[SourceRow | Skipped], shape: Shape, watch: Sequence[str] = ()
) -> tuple[list[PreferencePair], list[Skipped]]:
    """The pairs of the rows and the rest with reasons, both in file order.

    Args:
        watch: columns beside the shape's that may hold a part of the conversation.

    Raises:
        BadInput: most rows have a fault of the file and not of one row.
    """
    found: list[PreferencePair | Skipped] = []
    faults: list[Skipped] = []
    for row in rows:
        try:
            found.append(row if isinstance(row, Skipped) else pair_from_row(row, shape, watch))
        except BadRow as bad:
            found.append(bad.at(row.source))
            faults += [bad.at(row.source)] if bad.of_file else []
    if 2 * len(faults) > len(found):
        raise BadInput(listed(faults, 1))
    found = prompts_once(found)
    return [one for one in found if not isinstance(one, Skipped)], [one for one in found if isinstance(one, Skipped)]


def prompts_once(found: Sequence[PreferencePair | Skipped]) -> list[PreferencePair | Skipped]:
    """The same with the prompt once, where most pairs of texts repeat it at the beginning of both sides. A few pairs
    that do may do so on purpose, and stay as they are."""
    texts = [one for one in found if isinstance(one, PreferencePair) and isinstance(one.prompt, str)]
    taken = {id(one): apart for one in texts if (apart := _taken_off(one)) is not None}
    if 2 * len(taken) <= len(texts):
        return list(found)
    return [_once(one, taken[id(one)]) if id(one) in taken else one for one in found]  # type: ignore[arg-type]


def _taken_off(pair: PreferencePair) -> tuple[str, str, str] | None:
    assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
    return prompt_taken_off(pair.prompt, pair.chosen, pair.rejected)


def _once(pair: PreferencePair, parts: tuple[str, str, str]) -> PreferencePair | Skipped:
    once = replace(pair, prompt=parts[0], chosen=parts[1], rejected=parts[2])
    try:
        check_usable(once)
    except BadRow as bad:
        return bad.at(pair.source)
    return once
