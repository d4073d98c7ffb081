"""A run with chosen and rejected exchanged, and a run with one side disturbed: for the laws of sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from report_frames import Options, simulate
from report_runs import manifest, write_tables
from token_samples import label_heat, table_rows

from dyn_probe.trace.reader import Trace, load_trace

SIDES = ("chosen", "rejected")
OTHER = dict(zip(SIDES, reversed(SIDES), strict=True))
CASES = {1: 4, 2: 2, 3: 3, 4: 1}
"""Case → the case that it becomes where the sides are exchanged."""
MANIFEST = manifest(Options()) | {"mass": {"gating_rate": 0.4, "mean_gate": 0.7}}

PARTS = ("before", "at", "after")
Tables = dict[str, pd.DataFrame]


def other_side(name: str) -> str:
    """A name with the two words exchanged."""
    return name.replace("chosen", "\0").replace("rejected", "chosen").replace("\0", "rejected")


def two_sided_tables(seed: int = 0) -> Tables:
    """Tables in which every column of a side has other numbers than its counterpart, some pulls are negative, and no
    two responses of a pair are equally long."""
    tables = simulate(Options(steps=60, turn=0.3, mass=True, seed=seed))
    draw, pairs = np.random.default_rng(seed), tables["pairs"]
    for side, slope in zip(SIDES, (0.003, 0.007), strict=True):
        pairs[f"logp_{side}"] -= slope * pairs.step * pairs[f"len_{side}"] * draw.uniform(0.5, 1.5, len(pairs))
        pairs.loc[pairs.step >= 18, f"realised_delta_{side}"] -= 0.1  # case 2 has a lasting majority
    pairs["len_chosen"], pairs["len_rejected"] = 2 * pairs.len_chosen, 2 * pairs.len_rejected + 1
    for side in SIDES:
        pairs[f"ref_logp_{side}"] += draw.normal(0, 0.1, len(pairs))  # no margin is exactly 0
        pairs.loc[draw.choice(pairs.index, 40, replace=False), f"pull_{side}"] *= -1
        pairs.loc[draw.choice(pairs.index, 200, replace=False), f"predicted_delta_{side}"] *= -1
        pairs[f"normaliser_{side}"] = draw.uniform(0.5, 2, len(pairs))
        for part, weight in zip(PARTS, (0.2, 0.3, 0.5), strict=True):
            pairs[f"logp_{side}_{part}"] = weight * pairs[f"logp_{side}"] + draw.normal(0, 0.1, len(pairs))
        pairs[f"score_{side}"] = pairs[f"logp_{side}"] / pairs[f"len_{side}"]  # what no log-ratio is
    likeness = dict(zip(pairs.pair_id.unique(), draw.uniform(0, 1, pairs.pair_id.nunique()), strict=True))
    pairs["edit_distance"], pairs["shared_prefix"] = pairs.pair_id.map(likeness), 2
    pairs["gate"], pairs["rho"] = draw.uniform(0, 1, len(pairs)), draw.uniform(0.5, 2, len(pairs))
    tables["tokens"] = pd.DataFrame([row for step in (0, 20, 40) for row in table_rows(label_heat(step))])
    tables["distributions"] = pd.DataFrame([_place(kind, k) for kind in SIDES for k in (0, 3)])
    mass = tables["mass"]
    noise = draw.normal(0, 0.2, len(mass))
    mass["logp"] += noise * mass.tokens
    mass["logp_token"] += noise
    for name in ("missing_mass", "rival_mass", "entropy", "rank", "top1"):
        mass[name] = draw.uniform(0.1, 0.4, len(mass))
    for side, slope in zip(SIDES, (-0.02, -0.05), strict=True):
        tables["steps"][f"eval_logp_{side}"] = -40 + slope * tables["steps"].step
    tables["steps"]["eval_kl_ref"], mass["kl_ref"] = 0.01 * tables["steps"].step, draw.uniform(0.1, 0.4, len(mass))
    return tables


def _place(kind: str, position: int) -> dict[str, object]:
    target = 0.1 * (1 + position) + 0.05 * (kind == "chosen")
    return {
        "step": 60, "first_step": 0, "prompt_id": "p", "kind": kind, "position": position,
        "tokens": ["a", "b", kind], "target": 2, "probabilities": [0.3, 0.1, target], "rest": 0.6 - target,
        "first_probabilities": [0.2, 0.1, 0.3 - target / 2], "first_rest": 0.4 + target / 2,
    }  # fmt: skip


def exchanged(tables: Tables) -> Tables:
    """The same run with the names of the two responses exchanged.

    Pulls keep what they do to a response, so d_w' = −d_l and d_l' = −d_w; the factor on rejected (gate) becomes that
    on chosen (ρ).
    """
    new = {name: frame.rename(columns=other_side) for name, frame in tables.items()}
    pairs, steps = new["pairs"], new["steps"]
    pairs[["pull_chosen", "pull_rejected"]] *= -1
    pairs["case_plain"] = pairs["case_plain"].map(CASES)
    new["pairs"] = pairs.rename(columns={"gate": "rho", "rho": "gate"})
    steps["margin"], steps["accuracy"] = -steps.margin, 1 - steps.accuracy
    new["pushes"]["side"] = new["pushes"].side.replace(OTHER)
    for name in ("mass", "distributions"):
        new[name]["kind"] = new[name].kind.replace(OTHER)
    rows = tables["tokens"].rename(columns={"tokens_rows": "tokens_columns", "tokens_columns": "tokens_rows"})
    for name in ("inner", "cosine"):
        rows[name] = [
            np.reshape(row[name], (len(row["tokens_columns"]), -1)).T.ravel().tolist() for _, row in rows.iterrows()
        ]
    new["tokens"] = rows
    return new


def disturbed(tables: Tables, side: str, seed: int = 7) -> Tables:
    """The same run with every number of one side disturbed, its lengths and what belongs to both sides left alone."""
    new = {name: frame.copy() for name, frame in tables.items()}
    draw, pairs, layers = np.random.default_rng(seed), new["pairs"], new["layers"]
    for name in pairs.columns:
        if not name.removesuffix(f"_{name.rpartition('_')[2]}" if name.endswith(PARTS) else "").endswith(f"_{side}"):
            continue
        if name == f"len_{side}":
            continue
        spread = pairs[name].std()
        pairs[name] += draw.normal(0.1, 0.4, len(pairs)) * spread
        if name.startswith("grad_norm"):
            pairs[name] = pairs[name].clip(lower=0.1 * spread)
        if name.startswith("pull"):
            pairs.loc[draw.choice(pairs.index, 60, replace=False), name] *= -1
    new["steps"][f"eval_logp_{side}"] += draw.normal(0, 1, len(new["steps"]))
    layers[f"grad_norm_{side}"] *= draw.uniform(0.7, 1.4, len(layers))
    pushed = new["pushes"]
    for name in ("own_chosen", "own_rejected", "others", "past", "decay", "rounding", "total"):
        pushed.loc[pushed.side == side, name] += draw.normal(0.02, 0.05, (pushed.side == side).sum())
    mass = new["mass"]
    rows = mass.kind == side
    for name in ("logp", "logp_token", "missing_mass", "entropy", "rank", "top1", "argmax_logp", "kl_ref"):
        mass.loc[rows, name] += draw.normal(0.02, 0.05, rows.sum()) * (10 if name == "logp" else 1)
    places = new["distributions"]
    places["probabilities"] = [
        [p * (1.1 if kind == side else 1.0) for p in values]
        for kind, values in zip(places.kind, places.probabilities, strict=True)
    ]
    factor = {"rejected": "gate", "chosen": "rho"}[side]
    pairs[factor] = draw.uniform(0, 1, len(pairs))
    return new


def trace_of(path: Path, tables: Tables) -> Trace:
    """The tables as a recorded run."""
    return load_trace(write_tables(path, tables, MANIFEST))


def traces_of(folder: Path, tables: Tables) -> dict[str, Trace]:
    """The run, the run with its sides exchanged, and the run with one side disturbed."""
    kinds = {"plain": tables, "exchanged": exchanged(tables), **{side: disturbed(tables, side) for side in SIDES}}
    return {name: trace_of(folder / name, frames) for name, frames in kinds.items()}
