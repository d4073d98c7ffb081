"""Pairs that several runs have in common, those that they treated most differently first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dyn_probe.report.pair_cards import TEXTS, marked
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.side_by_side.quantities import moves
from dyn_probe.report.verdicts.verdict import signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TOP = 10


def shared_pairs(traces: Mapping[str, Trace], top: int | None = TOP) -> pd.DataFrame:
    """Pairs that all runs have, by the spread of their change of chosen: largest less smallest of the runs.

    Returns:
        One row per pair: pair_id, `spread` (nats/token), `LABEL: chosen` and `LABEL: rejected` of every run (change,
        nats/token), and prompt, chosen, rejected (None where no run recorded the texts). No rows where the runs have
        no pair in common whose change is known in all of them.
    """
    found = moves(traces)
    if found is None or not found.paired:
        return pd.DataFrame()
    columns = {f"{label}: {side}": found.shared[label][side] for side in SIDES for label in traces}
    table = pd.DataFrame(columns)
    chosen = np.stack([table[f"{label}: chosen"].to_numpy() for label in traces])
    table.insert(0, "spread", chosen.max(0) - chosen.min(0))
    table = table.sort_values("spread", ascending=False, kind="stable").head(len(table) if top is None else top)
    return table.join(_texts(traces)).reset_index(names="pair_id")


def _texts(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Texts by pair_id, from the first run that has them."""
    known = pd.concat([trace.examples.reindex(columns=["pair_id", *TEXTS]) for trace in traces.values()])
    return known.drop_duplicates("pair_id").set_index("pair_id")


def shared_cards(traces: Mapping[str, Trace], top: int = TOP) -> dict[str, Any]:
    """The same as plain data for the page: heads and a card per pair, responses with the words that differ marked."""
    table = shared_pairs(traces, top)
    heads = [f"{label}: {side}" for side in SIDES for label in traces]
    return {"heads": heads, "cards": [_card(row, heads) for row in table.to_dict("records")]}


def _card(row: Mapping[Any, Any], heads: list[str]) -> dict[str, Any]:
    text = {name: row[name] if isinstance(row[name], str) else "" for name in TEXTS}
    chosen, rejected = marked(text["chosen"], text["rejected"])
    return {
        **text,
        "pair_id": row["pair_id"],
        "source": "",
        "chosen_parts": chosen,
        "rejected_parts": rejected,
        "head": [{"name": name, "text": signed(row[name], 2)} for name in heads],
        "numbers": [{"name": f"Δ {name}", "text": signed(row[name]), "unit": "nats/token"} for name in heads],
        "pushes": [],
    }
