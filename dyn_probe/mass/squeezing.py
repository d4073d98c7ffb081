"""Run-level figures from the mass table: what moved between its first and its last step. No torch.

Letters: ``Δ`` is last recorded step minus first, per probe response. Squeezing (Ren & Sutherland 2024,
arXiv 2407.10490, §4): a negative gradient on an improbable response pushes the lost mass to the argmax
token while everything else falls. The published per-method table is in nats per sequence; the squeezing
index is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from dyn_probe.errors import BadInput
from dyn_probe.mass.probe_kinds import GROUPS, KINDS, kinds_of

TAU: dict[str, float] = {"seq": 0.10, "q10": 0.005}
"""Gate-DPO's thresholds τ on the gate's statistic s, by variant (Mouiche 2026, arXiv 2605.02626)."""

_KEYS = ["prompt_id", "kind"]
_COLUMNS = ("logp", "argmax_logp", "logp_token", "argmax_token")
_ABSENT = dict.fromkeys(_COLUMNS, float("nan"))


@dataclass(frozen=True)
class Squeezing:
    """What a run did to its probe responses; NaN (None for the verdict) where the table has no such response.

    ``delta_*`` are nats per sequence, ``token_delta_*`` and ``index`` nats per token.
    """

    first_step: int
    last_step: int
    prompts: int
    delta_chosen: float
    delta_rejected: float
    margin: float
    """Δchosen − Δrejected."""
    delta_others: float
    """Mean change of the unrelated and shuffled kinds."""
    delta_argmax: float
    """Mean change of Σ_t log max_v π_t(v), over chosen, rejected and others alike."""
    token_delta_chosen: float
    token_delta_rejected: float
    token_delta_others: float
    token_delta_argmax: float
    index: float
    """Per token: Δargmax minus the mean of Δchosen, Δrejected and Δothers; > 0 is squeezing."""
    prevented: bool | None
    """Squeezing prevented ⇔ Δchosen > 0."""

    def row(self) -> dict[str, float | int | bool | None]:
        """The figures as one flat row."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Gating:
    """Gate-DPO in a run: rows that had a gate, their share with s < τ, their mean gate g."""

    rows: int
    rate: float | None
    mean_gate: float | None


def run_figures(mass: pd.DataFrame) -> Squeezing:
    """Run-level figures of one mass table. Only responses measured at its first *and* last step count.

    Each of the groups chosen, rejected and others counts the same in the argmax figures and in the index,
    however many kinds and prompts it has; a group that is absent from the table is left out of them.

    Raises:
        BadInput: the table has fewer than two steps, or no response at both ends.
    """
    changes = _changes(mass)
    means = {group: _means(changes, group) for group in GROUPS if (changes["group"] == group).any()}
    chosen, rejected, others = ({**_ABSENT, **means.get(group, {})} for group in GROUPS)
    over = {name: float(np.mean([m[name] for m in means.values()])) if means else np.nan for name in _COLUMNS}
    return Squeezing(
        first_step=int(mass["step"].min()),
        last_step=int(mass["step"].max()),
        prompts=changes["prompt_id"].nunique(),
        delta_chosen=chosen["logp"],
        delta_rejected=rejected["logp"],
        margin=chosen["logp"] - rejected["logp"],
        delta_others=others["logp"],
        delta_argmax=over["argmax_logp"],
        token_delta_chosen=chosen["logp_token"],
        token_delta_rejected=rejected["logp_token"],
        token_delta_others=others["logp_token"],
        token_delta_argmax=over["argmax_token"],
        index=over["argmax_token"] - over["logp_token"],
        prevented=None if np.isnan(chosen["logp"]) else chosen["logp"] > 0,
    )


def trajectories(mass: pd.DataFrame, columns: Sequence[str] = ("logp", "argmax_logp")) -> pd.DataFrame:
    """Mean of ``columns`` per (step, kind), over the prompts that are measured at every step of that kind.

    Lines therefore move only because the model changes, never because the set of prompts does.
    """
    steps = mass.groupby("kind")["step"].transform("nunique")
    whole = mass[mass.groupby(_KEYS)["step"].transform("nunique") == steps]
    means = whole.groupby(["kind", "step"])[list(columns)].mean().reset_index()
    order = {kind: place for place, kind in enumerate(KINDS)}
    return means.sort_values(
        ["kind", "step"], key=lambda c: c.map(order).fillna(len(order)) if c.name == "kind" else c
    ).reset_index(drop=True)


def gating(pairs: pd.DataFrame, tau: float) -> Gating:
    """Share of gated pairs whose statistic s is below ``tau`` (see :data:`TAU`), and their mean gate g."""
    gated = pairs[pairs["gate"].notna()] if "gate" in pairs else pairs.iloc[:0]
    if gated.empty:
        return Gating(0, None, None)
    statistic = gated["gate_statistic"].dropna()
    rate = float((statistic < tau).mean()) if len(statistic) else None
    return Gating(len(gated), rate, float(gated["gate"].mean()))


def compare_runs(runs: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """One row of :func:`run_figures` per (method, mass table), and the method: data of a strip chart."""
    return pd.DataFrame([{"method": method, **run_figures(mass).row()} for method, mass in runs])


def changes_by_prompt(mass: pd.DataFrame) -> pd.DataFrame:
    """Last minus first, a row per prompt and group of GROUPS: the mean over the group's kinds of logp, argmax_logp
    (nats/sequence), logp_token, argmax_token (nats/token).

    Raises:
        BadInput: as ``run_figures``.
    """
    return _changes(mass).groupby(["prompt_id", "group"], sort=False)[list(_COLUMNS)].mean().reset_index()


def _changes(mass: pd.DataFrame) -> pd.DataFrame:
    """Last minus first per probe response: prompt_id, kind, group, and the change of each of ``_COLUMNS``."""
    if mass["step"].nunique() < 2:
        raise BadInput(f"run-level figures need a mass table of at least two steps; got {mass['step'].nunique()}")
    first, last = (_measured(mass, step) for step in (mass["step"].min(), mass["step"].max()))
    both = first.index.intersection(last.index)
    if both.empty:
        raise BadInput("run-level figures need probe responses measured at the first and the last step; none is")
    changes = (last.loc[both] - first.loc[both]).reset_index()
    groups = {kind: group for group in GROUPS for kind in kinds_of(group)}
    return changes.assign(group=changes["kind"].map(groups))


def _measured(mass: pd.DataFrame, step: int) -> pd.DataFrame:
    """``_COLUMNS`` of one step, indexed by prompt and kind."""
    rows = mass[mass["step"] == step].drop_duplicates(_KEYS, keep="last").set_index(_KEYS)
    tokens = rows["tokens"].astype("float64")
    values = (rows["logp"], rows["argmax_logp"], rows["logp"] / tokens, rows["argmax_logp"] / tokens)
    return pd.DataFrame(dict(zip(_COLUMNS, values, strict=True))).astype("float64")


def _means(changes: pd.DataFrame, group: str) -> dict[str, float]:
    """Mean change of each of ``_COLUMNS`` over one group; NaN where one of its responses is NaN."""
    kept = changes.loc[changes["group"] == group, list(_COLUMNS)].to_numpy(dtype=np.float64)
    return dict(zip(_COLUMNS, kept.mean(0).tolist(), strict=True))
