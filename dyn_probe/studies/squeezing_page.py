"""The squeezing study judged: the published Δ table beside the measured one, agreement per column, claims, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dyn_probe.mass.squeezing import run_figures
from dyn_probe.report.frames import Floats
from dyn_probe.report.output import check_folder
from dyn_probe.studies.arms.arm_figures import mass_figures
from dyn_probe.studies.arms.arm_manifest import Figures
from dyn_probe.studies.arms.claim_rows import Claim, judge
from dyn_probe.studies.claims import ERRORS, Estimate, Finding, claim_lines
from dyn_probe.studies.page import write_page
from dyn_probe.studies.published import COLUMNS, PUBLISHED
from dyn_probe.studies.squeezing_figures import FIGURES, PRINTED, published
from dyn_probe.trace.reader import Trace

ABOVE_DPO = ("Gate-DPO seq", "Gate-DPO q10", "Cal-DPO", "Gate-Cal-DPO seq", "Gate-Cal-DPO q10")
"""Methods whose Δ chosen is above that of DPO, and above 0, in the paper."""
FORMS = (
    Claim(
        "IPO keeps chosen above IPO with a target per token", "Δ chosen − per token's > 0", "IPO", "delta_chosen",
        against="IPO, per token",
    ),
    Claim(
        "DPO-Shift lowers chosen beside a fixed λ = 0.5", "Δ chosen − with λ = 0.5 < 0", "DPO-Shift", "delta_chosen",
        above=False, against="DPO-Shift, fixed",
    ),
)  # fmt: skip
"""What the form of two methods changes; the paper has one form of each and does not say which."""


def measured(runs: Mapping[str, Sequence[Trace]]) -> pd.DataFrame:
    """One row per method and seed: run-level figures of its probe responses (nats/sequence; index: nats/token)."""
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, **run_figures(trace.mass).row()}
            for method, traces in runs.items()
            for seed, trace in enumerate(traces)
        ]
    )


def beside(frame: pd.DataFrame) -> pd.DataFrame:
    """Method × column: published, mean over seeds, and standard deviation over seeds (NaN for one seed)."""
    groups = frame.groupby("method")
    rows = []
    for method in [name for name in PUBLISHED if name in groups.groups]:
        seeds = groups.get_group(method)
        row: dict[str, Any] = {"method": method}
        for column in COLUMNS:
            row[f"{column}_published"] = getattr(PUBLISHED[method], column, float("nan"))
            row[f"{column}_measured"] = float(seeds[column].mean())
            row[f"{column}_sd"] = float(seeds[column].std(ddof=1)) if len(seeds) > 1 else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side has fewer than two different values."""
    ranks = [pd.Series(values).rank().to_numpy(dtype=float) for values in (first, second)]
    if any(len(set(r.tolist())) < 2 for r in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Per seed and for the mean over seeds, per published column: methods of equal sign, methods in all, Spearman ρ."""
    wide = {"mean": frame.groupby("method")[list(PRINTED)].mean()}
    wide |= {f"seed {seed}": rows.set_index("method")[list(PRINTED)] for seed, rows in frame.groupby("seed")}
    rows = []
    for of, found in wide.items():
        wanted = published().loc[[name for name in PUBLISHED if name in found.index]]
        for column in PRINTED:
            ours, theirs = (table.loc[wanted.index, column].to_numpy(dtype=float) for table in (found, wanted))
            same = int((np.sign(ours) == np.sign(theirs)).sum())
            rows.append(
                {"of": of, "column": column, "same_sign": same, "methods": len(wanted), "rho": spearman(ours, theirs)}
            )
    return pd.DataFrame(rows)


def one_sign() -> list[str]:
    """Columns in which every published value has the same sign, so that agreement of signs says little."""
    return [name for name in PRINTED if len(set(np.sign(published()[name]))) == 1]


def claim_rows() -> tuple[Claim, ...]:
    """The study's claims: what DPO does, what each method does beside it, and each gate beside its own objective."""
    rows = [
        *(
            Claim(f"chosen falls under {method}", "Δ chosen < 0", method, "delta_chosen", above=False)
            for method in ("DPO", "IPO", "DPO-Shift")
        ),
        Claim("the argmax tokens rise under DPO", "Δ argmax > 0", "DPO", "delta_argmax"),
        Claim("DPO squeezes", "squeezing index > 0", "DPO", "index"),
    ]
    for method in ABOVE_DPO:
        name = f"{method} keeps chosen above DPO's"
        rows.append(Claim(name, "Δ chosen − DPO's > 0", method, "delta_chosen", against="DPO"))
    rows += [Claim(f"{method} prevents squeezing", "Δ chosen > 0", method, "delta_chosen") for method in ABOVE_DPO]
    for method, plain in complements().items():
        for column in ("delta_chosen", "delta_others"):
            name, expected = f"{method} complements {plain}: {COLUMNS[column]}", f"{COLUMNS[column]} − {plain}'s > 0"
            rows.append(Claim(name, expected, method, column, against=plain))
    return (*rows, *FORMS)


def figures(runs: Mapping[str, Sequence[Trace]]) -> dict[str, dict[int, dict[str, Estimate]]]:
    """Method → seed → the figures of its probe responses, with standard errors over prompts."""
    return {method: {seed: mass_figures(trace) for seed, trace in enumerate(traces)} for method, traces in runs.items()}


def claims(found: Figures) -> list[Finding]:
    """The study's claims, judged by the rule of all studies; "not run" where a method is missing."""
    return judge(claim_rows(), found)


def complements() -> dict[str, str]:
    """Gated method → the method of the same objective without a gate."""
    bare = {row.objective: name for name, row in PUBLISHED.items() if not row.shaping}
    return {name: bare[row.objective] for name, row in PUBLISHED.items() if row.shaping}


def write_study(
    runs: Mapping[str, Sequence[Trace]],
    out: Path,
    settings: Mapping[str, Any],
    force: bool = False,
    left_out: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> tuple[Path, pd.DataFrame]:
    """Judge and draw; returns the page and the measured rows. CSV tables and figures are written beside the page.

    Args:
        settings: shown as they are.
        left_out: a line for each entry of the probe file that could not be used.
        missing: a line for each arm that was not run.

    Raises:
        BadInput: ``out`` holds something other than a report, or a run holds no probe responses.
    """
    check_folder(out, force)
    runs = {method: traces for method, traces in runs.items() if traces}
    frame = measured(runs)
    judged, table, agreed = claims(figures(runs)), beside(frame), agreement(frame)
    data = {
        "columns": COLUMNS,
        "table": table.to_dict("records"),
        "agreement": agreed.to_dict("records"),
        "one_sign": [COLUMNS[name] for name in one_sign()],
        "left_out": list(left_out),
        "missing": list(missing),
        "errors": f"{ERRORS:g}",
        "settings": {name: str(value) for name, value in settings.items()},
        "seeds": int(frame["seed"].nunique()),
    }
    tables = {"measured.csv": frame, "table.csv": table, "agreement.csv": agreed}
    return write_page(out, "squeezing.html.j2", FIGURES, frame, judged, data, tables, nats=nats), frame


def nats(value: float) -> str:
    """A change with its sign and two decimals; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:+.2f}".replace("-", "−")


def study_lines(frame: pd.DataFrame, found: Figures) -> list[str]:
    """Table, agreement and claims as lines for a terminal."""
    table, lines = beside(frame), []
    lines.append(f"{'published | measured':22}" + "".join(f"{title:>20}" for title in COLUMNS.values()))
    for row in table.to_dict("records"):
        cells = (f"{nats(row[f'{c}_published'])} | {nats(row[f'{c}_measured'])}" for c in COLUMNS)
        lines.append(f"{row['method']:22}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append("")
    for of, rows in agreement(frame).groupby("of", sort=False):
        cells = (f"{r['same_sign']}/{r['methods']}, {nats(r['rho'])}" for r in rows.to_dict("records"))
        lines.append(f"{'same sign, ρ: ' + str(of):22}" + "".join(f"{cell:>20}" for cell in cells))
    little = ", ".join(COLUMNS[name] for name in one_sign())
    lines.append(f"({little}: every published value has the same sign, so agreement in sign says little)")
    return [*lines, "", *claim_lines(claims(found))]
