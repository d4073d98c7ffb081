"""What differs between runs, in sentences: on the same pairs where there are any, else at run level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.basis import BASES
from dyn_probe.report.comparing import common_case_basis, deltas, joined, pair_ids
from dyn_probe.report.frames import finite, median, share, tenths
from dyn_probe.report.run_facts import plain_text
from dyn_probe.report.side_by_side.kl_price import at_one_kl
from dyn_probe.report.verdicts.healthier import healthier
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SPOKEN = (
    ("logp_per_token_chosen", "chosen", "nats/token"),
    ("logp_per_token_rejected", "rejected", "nats/token"),
    ("log_ratio_margin", "the log-ratio margin", "nats/sequence"),
)
SAME = ("model", "data")
"""Fields of run.json whose names should agree."""
FEW = 5
"""With fewer pairs seen at the end of both runs, all shared pairs are compared."""


def comparison(traces: Mapping[str, Trace]) -> list[Verdict]:
    """All sentences about several runs; every run is compared with the first."""
    return [
        *healthier(traces),
        *_overlap(traces),
        *_settings(traces),
        *_same_pairs(traces),
        *_margin_for_kl(traces),
        *_case_two(traces),
    ]


def _overlap(traces: Mapping[str, Trace]) -> list[Verdict]:
    ids = {label: pair_ids(trace) for label, trace in traces.items()}
    first, *others = traces
    found = []
    for label in others:
        shared = len(ids[first] & ids[label])
        both = f"{first} ({count(len(ids[first]), 'pair')}) and {label} ({count(len(ids[label]), 'pair')})"
        words = f"{both} have {count(shared, 'pair')} in common"
        none = f"{both} have no pair in common, so only run-level numbers can be compared, over different pairs"
        found += say(
            "ok" if shared else "warning",
            f"{words if shared else none}.",
            "pair_id recorded in both runs; it is a hash of the token ids",
            Number("pairs_shared", "pairs in both", shared, "pairs"),
            Number("pairs_of_first", f"pairs of {first}", len(ids[first]), "pairs"),
            Number("pairs_of_other", f"pairs of {label}", len(ids[label]), "pairs"),
        )
    return found


def _settings(traces: Mapping[str, Trace]) -> list[Verdict]:
    found = []
    for place in SAME:
        values = {label: plain_text(getattr(trace.about, place).name) for label, trace in traces.items()}
        if len(set(values.values())) > 1:
            words = ", ".join(f"{label}: {value}" for label, value in values.items())
            found += say("warning", f"The runs differ in {place}.name ({words}).", f"{place}.name in run.json")
    return found


def _same_pairs(traces: Mapping[str, Trace]) -> list[Verdict]:
    table = joined(traces)
    first, *others = traces
    found = []
    for label in others:
        rows, when = _rows_to_compare(table, traces, first, label)
        for column, what, unit in SPOKEN:
            gap = finite((rows[label][column] - rows[first][column]).to_numpy(dtype=float))
            if len(gap):
                found += _gap(column, label, first, f"{what} {when}", unit, gap)
    return found


def _rows_to_compare(table: pd.DataFrame, traces: Mapping[str, Trace], *pair: str) -> tuple[pd.DataFrame, str]:
    """Pairs that both runs saw in the last tenth of their steps; all shared pairs if there are under FEW of those."""
    late = np.ones(len(table), bool)
    for label in pair:
        parts = tenths(traces[label].pairs)
        if parts is not None:
            late &= table[label]["step"].to_numpy(dtype=float) >= parts.last_steps[0]
    return (table[late], "ends") if late.sum() >= FEW else (table, "is, when the pair was last recorded,")


def _gap(column: str, label: str, first: str, what: str, unit: str, gap: np.ndarray) -> list[Verdict]:
    middle, higher = median(gap), share(gap > 0)
    direction = "higher" if middle >= 0 else "lower"
    part = higher if middle >= 0 else share(gap < 0)
    sentence = (
        f"On the same pairs, {what} {sig(abs(middle))} {unit} {direction} in {label} than in {first} (median; "
        f"{direction} in {percent(part)} of {count(len(gap), 'pair')})."
    )
    return say(
        "note",
        sentence,
        "difference at the pair's last recorded step in each run (over pairs seen in the last tenth of both, if there "
        "are enough); per token for chosen and rejected",
        Number(f"difference_{column}", f"difference to {first}, median", middle, unit),
        Number(f"higher_{column}", "pairs in which it is higher", higher, "share"),
        Number("n", "n", len(gap), "pairs"),
    )


def _margin_for_kl(traces: Mapping[str, Trace]) -> list[Verdict]:
    """Which run buys its held-out margin cheapest, at the largest KL that all of them reach."""
    found = at_one_kl(traces)
    if found is None:
        return []
    words = ", ".join(f"{label} {signed(value)}" for label, value in found.margins.items())
    sentence = (
        f"Where the KL to the reference reaches {sig(found.kl)} nats/token, the largest that all runs reach, the "
        f"held-out margin is {words} nats/sequence: {found.cheapest} buys it cheapest (one run each, so no error is "
        "known)."
    )
    return say(
        "note",
        sentence,
        "mean log-ratio margin of the held-out pairs on the line between the two evaluations between which the KL to "
        "the reference first reaches the smallest of the runs' largest",
        Number("common_kl", "KL to the reference", found.kl, "nats/token"),
        *(
            Number(f"run_{place}_margin_at_kl", f"held-out margin there, {label}", value, "nats/sequence")
            for place, (label, value) in enumerate(found.margins.items(), start=1)
        ),
    )


def _case_two(traces: Mapping[str, Trace]) -> list[Verdict]:
    lines = {line.key: line for line in deltas(traces)}
    line = lines.get("case_2")
    if line is None or pd.isna(list(line.values.values())).any():
        return []
    words = ", ".join(f"{label} {percent(value)}" for label, value in line.values.items())
    cosine = lines.get("cosine")
    more = (
        "" if cosine is None else "; median cosine " + ", ".join(f"{k} {signed(v)}" for k, v in cosine.values.items())
    )
    basis = BASES[common_case_basis(traces)]
    warning = f" {basis.warning}" if basis.warning else ""
    return say(
        "warning" if warning else "note",
        f"Share of pair rows in case 2 (both down) {basis.words} at the end: {words}{more}.{warning}",
        f"last tenth of the steps of each run; {basis.formula}",
        *(
            Number(f"case_2_of_run_{place}", f"case 2, {label}", value, "share")
            for place, (label, value) in enumerate(line.values.items(), start=1)
        ),
    )
