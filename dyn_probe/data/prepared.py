"""From a name to encoded pairs, with all that is to be said about them: one door for ``record`` and ``data``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dyn_probe.data.encoding import EncodedPair, encode_pairs
from dyn_probe.data.reading import PairsRead, read_pairs
from dyn_probe.data.records import Skipped, by_reason, listed
from dyn_probe.data.shapes import listing
from dyn_probe.data.token_facts import Fact, Limit, facts_of
from dyn_probe.data.wording import counted
from dyn_probe.errors import BadInput

LOUD = 0.1
"""Share of left-out rows above which it is said loudly."""


@dataclass(frozen=True)
class Reading:
    """How the data are read.

    Args:
        columns: ``PART=COLUMN,…`` for a shape that is in no table.
        max_rows: read at most this many rows; None: all.
        strict: refuse the data where a row would be left out.
    """

    columns: str = ""
    max_rows: int | None = None
    strict: bool = False


@dataclass(frozen=True)
class PreparedPairs:
    """Encoded pairs, every row that is left out, and the facts about both."""

    read: PairsRead
    pairs: list[EncodedPair]
    skipped: list[Skipped]
    facts: list[Fact]
    limit: Limit

    @property
    def loud(self) -> bool:
        """Whether more rows are left out than one would overlook."""
        return left_out_rows(self.skipped, self.read.rows)[1]

    def manifest(self) -> dict[str, Any]:
        """What ``run.json`` says about the data, as plain values."""
        return {
            "rows": self.read.rows,
            "shape": self.read.shape,
            "columns": dict(self.read.columns),
            "columns_not_read": list(self.read.unread),
            "left_out": {reason: len(rows) for reason, rows in by_reason(self.skipped).items()},
            "left_out_by_design": sum(row.expected for row in self.skipped),
            "max_length": self.limit.tokens,
            "lengths": {part: list(values) for part, values in lengths(self.pairs).items()},
            "facts": {fact.name: {k: v for k, v in asdict(fact).items() if k != "name"} for fact in self.facts},
        }


def prepare_pairs(name: str, tokenizer: Any, limit: Limit, reading: Reading | None = None) -> PreparedPairs:
    """The pairs that ``name`` stands for as tokens, and what is to be said about them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        limit: most tokens of prompt and response together.

    Raises:
        BadInput: the data cannot be read, no row of it can be used, or with ``strict`` one cannot.
    """
    how = reading or Reading()
    read = read_pairs(name, count=how.max_rows, columns=how.columns)
    pairs, more = encode_pairs(read.pairs, tokenizer, limit.tokens, limit.truncation)
    skipped = [*read.skipped, *more]
    if not pairs:
        raise BadInput(f"no pair of {name} can be used: {listed(skipped)}")
    unexpected = [row for row in skipped if not row.expected]
    if how.strict and unexpected:
        raise BadInput(
            f"{counted(len(unexpected), 'row')} of {name} cannot be used, and --strict-data leaves none out: "
            f"{listed(unexpected, 5)}"
        )
    return PreparedPairs(read, pairs, skipped, [*_prose(read), *facts_of(pairs, limit, tokenizer)], limit)


def _prose(read: PairsRead) -> list[Fact]:
    """The columns of prose that are not read: a warning where the prompt is but what both sides begin with, since it
    may stand there."""
    if not read.prose:
        return []
    implicit = not {"prompt", "user"} & set(read.columns)
    several = len(read.prose) > 1
    why = ", and the prompt is what chosen and rejected begin with" if implicit else ""
    sentence = (
        f"the column{'s' if several else ''} {listing(read.prose)} hold{'' if several else 's'} text that is not "
        f"read{why}; if the model should see it, write --columns {_before(read)}"
        f"{read.prose[0]}, else --columns ignore={'+'.join(read.prose)}"
    )
    return [Fact("prose", len(read.prose), len(read.unread), sentence, "warning" if implicit else "note")]


def skipped_rows(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """Every row that is left out, as ``run.json`` lists it."""
    return [
        {"source": row.source, "reason": row.reason, **({"detail": row.detail} if row.detail else {})}
        for row in skipped
    ]


def left_out_rows(skipped: Sequence[Skipped], rows: int) -> tuple[int, bool]:
    """Number of rows that are left out against expectation, and whether they are a loud share of all."""
    number = sum(not row.expected for row in skipped)
    return number, number > LOUD * rows


def lengths(pairs: Sequence[EncodedPair]) -> dict[str, tuple[int, int, int]]:
    """Part → (median, 95 %, largest) number of tokens, before any cut."""
    sizes = {
        "prompt": [pair.checks.prompt for pair in pairs],
        "chosen": [pair.checks.whole[0] - pair.checks.prompt for pair in pairs],
        "rejected": [pair.checks.whole[1] - pair.checks.prompt for pair in pairs],
        "prompt + longer response": [max(pair.checks.whole) for pair in pairs],
    }
    return {part: _spread(values) for part, values in sizes.items()}


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    middle, high = np.quantile(values, (0.5, 0.95), method="inverted_cdf")
    return int(middle), int(high), max(values)


def _before(read: PairsRead) -> str:
    """What ``--columns`` takes to read one more column behind what is read as the prompt."""
    part = "user" if "user" in read.columns else "prompt"
    return f"{part}={read.columns[part]}+" if part in read.columns else f"{part}="
