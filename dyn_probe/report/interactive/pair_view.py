"""The pairs of the page's table and scatter as plain data: numbers, texts, tokens by their share, pushes over time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dyn_probe.errors import BadInput
from dyn_probe.report.frames import Floats, numbers
from dyn_probe.report.interactive.step_charts import digits
from dyn_probe.report.pair_cards import UNITS, marked
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS, of_side
from dyn_probe.report.ranked import chosen_ranking, ranked_pairs, ranking_words, shown_case
from dyn_probe.token_analysis import NOISE, TokenHeat, recorded_heats, visible

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

Data = dict[str, Any]

RANKED, SPREAD = 400, 1200
"""Pairs on the page: the first of the ranking, and a sample spread evenly over the others, for the scatter."""
MOST_LETTERS, LETTERS = 400_000, 200
"""Letters of all whole texts together; beyond them, and for pairs of the sample, a text is cut to LETTERS."""
MOST_ROWS, MOST_POINTS = 4_000, 60
"""Rows of all pushes over time together, and of one pair."""

CHANGES = ("run_change", "recorded_change", "since_reference", "since_first")
"""Changes that the scatter can show, best first; the first that half of the pairs have is taken."""


def pair_view(trace: Trace) -> Data | None:
    """Everything that table, scatter and a pair's own panel show; None where no pair can be ranked."""
    try:
        by = chosen_ranking(trace)
    except BadInput:
        return None
    everything = ranked_pairs(trace, by, None)
    heats = last_heats(trace)
    frame = everything.iloc[kept_places(everything["pair_id"], heats)]
    columns = table_columns(frame)
    return {
        "words": ranking_words(trace),
        "total": len(everything),
        "columns": [{"key": key, "label": label, "unit": _unit(key)} for key, label in columns.items()],
        "numbers": [digits(numbers(frame, key)) for key in columns],
        "ids": list(frame["pair_id"]),
        "texts": texts(frame),
        "shares": {name: token_shares(heat) for name, heat in heats.items()},
        "series": series(trace, frame["pair_id"]),
    }


def kept_places(ids: pd.Series, followed: Iterable[str]) -> list[int]:
    """Places of the ranking that the page holds: its first RANKED, pairs followed token by token, and every k-th."""
    every = max(1, -(-(len(ids) - RANKED) // SPREAD))
    named = np.flatnonzero(ids.isin(list(followed)))
    return sorted({*range(min(RANKED, len(ids))), *map(int, named), *range(RANKED, len(ids), every)})


def table_columns(frame: pd.DataFrame) -> dict[str, str]:
    """Column of ``ranked_pairs`` → head of the table, for those that the run has; the two changes come first."""
    change = best_change(frame)
    heads = {f"{change}_{side}": f"Δ {side}" for side in SIDES}
    heads |= {"grad_cosine": "cosine", "margin": "margin", shown_case(frame): "case", "rows": "rows"}
    return {key: head for key, head in heads.items() if np.isfinite(numbers(frame, key)).any()}


def best_change(frame: pd.DataFrame) -> str:
    """The first of CHANGES that half of the pairs have on both sides, else the one that most have."""
    known = {name: _known(frame, name) for name in CHANGES}
    return next((name for name, part in known.items() if part >= 0.5), max(known, key=lambda name: known[name]))


def _known(frame: pd.DataFrame, change: str) -> float:
    return float(np.isfinite([numbers(frame, f"{change}_{side}") for side in SIDES]).all(0).mean())


def _unit(key: str) -> str:
    unit = UNITS.get(key, "")
    return "" if unit == "1" else unit


def texts(frame: pd.DataFrame) -> list[list[Any]]:
    """[prompt, pieces of chosen, pieces of rejected] of each pair: text, or [text] where the other side differs; whole
    while MOST_LETTERS last, then cut."""
    left, found = MOST_LETTERS, []
    for place, row in enumerate(frame[["prompt", "chosen", "rejected"]].itertuples(index=False)):
        prompt, chosen, rejected = (text if isinstance(text, str) else "" for text in row)
        left -= len(prompt) + len(chosen) + len(rejected)
        if place < RANKED and left > 0:
            found.append([prompt, *map(_pieces, marked(chosen, rejected))])
        else:
            found.append([_cut(prompt), [_cut(chosen)], [_cut(rejected)]])
    return found


def _pieces(parts: list[dict[str, Any]]) -> list[Any]:
    return [[part["text"]] if part["differs"] else part["text"] for part in parts]


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def last_heats(trace: Trace) -> dict[str, TokenHeat]:
    """The last token map of every pair that was followed."""
    return {} if trace.tokens.empty else {heat.pair_id: heat for heat in recorded_heats(trace.tokens)}


def token_shares(heat: TokenHeat) -> Data:
    """Each token with its part of ⟨g_w,g_l⟩: Σ_j G[i,j]/ΣG of chosen tokens, Σ_i G[i,j]/ΣG of rejected ones. No shares
    where the sum is rounding error."""
    sure = abs(heat.total) > NOISE * float(np.abs(heat.inner).sum())
    sides = {"chosen": (heat.tokens_chosen, heat.inner.sum(1)), "rejected": (heat.tokens_rejected, heat.inner.sum(0))}
    return {
        "step": heat.step,
        **{side: [[visible(token, 40) for token in tokens], digits(_parts(sums, heat.total, sure))]
           for side, (tokens, sums) in sides.items()},
    }  # fmt: skip


def _parts(sums: Floats, total: float, sure: bool) -> Floats:
    return sums / total if sure else np.full(len(sums), np.nan)


def series(trace: Trace, ids: Iterable[str]) -> dict[str, Data]:
    """Pair → its log-probabilities (nats) and pushes (nats a step) at its recorded steps, in the order of `ids`, until
    MOST_ROWS of them are used up."""
    found, left = {}, MOST_ROWS
    wanted = list(ids)
    rows = Columns(trace.pairs, ("step", *(f"logp_{side}" for side in SIDES)), wanted)
    pushed = {side: Columns(of_side(trace, side), ("step", *PARTS, "total"), wanted) for side in SIDES}
    for name in wanted:
        own = rows.of(name)
        if (left := left - len(own["step"])) < 0:
            break
        found[name] = {
            "steps": digits(own["step"]),
            "logps": {side: digits(own[f"logp_{side}"]) for side in SIDES},
            "pushes": {side: _pushes(table.of(name)) for side, table in pushed.items()},
        }
    return found


class Columns:
    """Columns of a table as arrays, to be asked for one of these pairs after the other."""

    def __init__(self, frame: pd.DataFrame, names: Iterable[str], pairs: Iterable[str]) -> None:
        own = frame[frame["pair_id"].isin(list(pairs))]
        self.values = {name: numbers(own, name) for name in names}
        self.places = {str(name): np.asarray(rows) for name, rows in own.groupby("pair_id").indices.items()}

    def of(self, pair: str) -> dict[str, Floats]:
        """A pair's rows, MOST_POINTS at most."""
        places = self.places.get(pair, NOWHERE)
        if len(places) > MOST_POINTS:
            places = places[np.linspace(0, len(places) - 1, MOST_POINTS).astype(np.int64)]
        return {name: values[places] for name, values in self.values.items()}


NOWHERE = np.empty(0, np.int64)


def _pushes(own: dict[str, Floats]) -> Data:
    moving = {name: digits(values) for name, values in own.items() if name != "step" and np.nan_to_num(values).any()}
    return {"steps": digits(own["step"]), **moving}
