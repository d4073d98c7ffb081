"""Ranked pairs as the report shows them: numbers as text, and responses with the words that differ marked."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import pandas as pd

from dyn_probe.errors import BadInput
from dyn_probe.report.basis import BASES
from dyn_probe.report.frames import half_error, half_errors, numbers
from dyn_probe.report.pair_columns import DERIVED, SIDES
from dyn_probe.report.push_parts import PARTS, bar, means, of_side, reach
from dyn_probe.report.ranked import RUN_NUMBERS, available, chosen_ranking, ranked_pairs, ranking_words, shown_case
from dyn_probe.report.style import PUSH_COLOURS
from dyn_probe.report.verdicts import signed
from dyn_probe.report.verdicts.verdict import within
from dyn_probe.trace.schema import PAIRS

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TOP = 15
LONGEST = 600
"""Responses with more words are shown without marks."""

TEXTS = ("prompt", "chosen", "rejected")
UNITS = {column.name: column.unit for column in PAIRS.columns} | {name: row.unit for name, row in DERIVED.items()}
UNITS |= {name: unit for name, (unit, _) in RUN_NUMBERS.items()}
HEAD = {
    "run_change_chosen": "Δ chosen/token, whole run",
    "run_change_rejected": "Δ rejected/token, whole run",
    "recorded_change_chosen": "Δ chosen/token",
    "recorded_change_rejected": "Δ rejected/token",
    "since_reference_chosen": "chosen vs. reference",
    "predicted_delta_chosen": "predicted Δ chosen",
    "grad_cosine": "cosine",
    **{basis.column: f"case, {basis.name}" for basis in BASES.values()},
}
"""Numbers on a pair's collapsed card; the expanded one has all of them."""


def pair_cards(trace: Trace, top: int = TOP) -> dict[str, Any]:
    """The first pairs of the default ranking, with numbers and texts; no cards where nothing can be ranked."""
    try:
        name = chosen_ranking(trace)
    except BadInput as error:
        return {"by": "", "words": str(error), "heads": [], "cards": [], "rankings": []}
    frame = ranked_pairs(trace, name, top)
    others = {basis.column for basis in BASES.values()} - {shown_case(frame)}
    heads = [column for column in HEAD if column not in others and frame[column].notna().any()]
    cards = [_card(frame.iloc[[place]], heads, half_errors(trace)) for place in range(len(frame))]
    for card in cards:
        card["pushes"] = push_bars(trace, card["pair_id"])
    return {
        "by": name,
        "words": ranking_words(trace),
        "heads": [HEAD[name] for name in heads],
        "cards": cards,
        "rankings": available(trace),
    }


def _card(row: pd.DataFrame, heads: list[str], errors: dict[str, float]) -> dict[str, Any]:
    text = {name: _text(row[name].iloc[0]) for name in (*TEXTS, "source", "pair_id")}
    chosen, rejected = marked(text["chosen"], text["rejected"])
    values = {name: float(numbers(row, name)[0]) for name in row.columns if name not in text}
    known = {name: value for name, value in values.items() if value == value}
    said = {name: within(value, half_error(errors, name, known)) for name, value in known.items()}
    return {
        **text,
        "chosen_parts": chosen,
        "rejected_parts": rejected,
        "head": [{"name": name, "text": said.get(name, "–")} for name in heads],
        "numbers": [{"name": name, "text": text, "unit": _unit(name)} for name, text in said.items()],
    }


def push_bars(trace: Trace, pair_id: str) -> list[dict[str, Any]]:
    """What pushed each of a pair's responses, averaged over its recorded steps, as stacked bars on one scale; empty
    where it was not recorded."""
    sides = {side: of_side(trace, side) for side in SIDES}
    rows = {side: frame[frame["pair_id"] == pair_id] for side, frame in sides.items()}
    parts = {side: means(frame) for side, frame in rows.items()}
    scale = max(map(reach, parts.values()))
    return [
        {
            "side": side,
            "steps": len(rows[side]),
            "total": signed(sum(found.values())),
            "pieces": [
                {
                    "words": PARTS[piece.part],
                    "text": signed(piece.push),
                    "colour": PUSH_COLOURS[piece.part],
                    "start": round(100 + 100 * piece.start, 2),
                    "width": round(100 * piece.width, 2),
                }
                for piece in bar(found, scale)
                if piece.push
            ],
        }
        for side, found in parts.items()
        if found
    ]


def _unit(name: str) -> str:
    unit = UNITS.get(name, "")
    return "" if unit == "1" else unit


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def marked(chosen: str, rejected: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Both responses as pieces `{"text", "differs"}`; the pieces of each join to its whole text."""
    left, right = chosen.split(" "), rejected.split(" ")
    if max(len(left), len(right)) > LONGEST:
        return [{"text": chosen, "differs": False}], [{"text": rejected, "differs": False}]
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    return _pieces(left, [(b.a, b.a + b.size) for b in blocks]), _pieces(right, [(b.b, b.b + b.size) for b in blocks])


def _pieces(words: list[str], same: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Words cut at the borders of the shared runs; each word but the last keeps its space."""
    spaced = [f"{word} " for word in words[:-1]] + words[-1:]
    pieces, done = [], 0
    for start, stop in same:
        pieces += [{"text": "".join(spaced[done:start]), "differs": True}] if done < start else []
        pieces += [{"text": "".join(spaced[start:stop]), "differs": False}] if start < stop else []
        done = stop
    return pieces
