"""Synthetic runs for the report's tests: tables that obey the first-order formulas, in any of the dynamics.

`simulate(options)` draws per-pair gradient norms and cosines, follows log-probabilities through the predicted
changes plus noise, and returns one DataFrame per table with the schema's columns (null where not recorded).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from report_tables import empty, fill, probe_mass, push_rows, split_layers, texts

# regime → (cosine, ‖g_w‖/‖g_l‖): inner > ‖g_w‖² makes chosen fall, inner > ‖g_l‖² makes rejected rise
REGIMES = {"case1": (0.1, 1.0), "case2": (0.9, 0.75), "case3": (0.9, 1.35)}


@dataclass(frozen=True)
class Options:
    """What a synthetic run looks like."""

    regime: str = "case2"
    steps: int = 120
    batch: int = 8
    pairs: int = 48
    reference: bool = True
    realised: bool = True
    update: bool = True
    pushes: bool = True
    gram: bool = True
    gate: bool = False
    mass: bool = False
    turn: float | None = None  # share of the steps after which the regime takes over from case1
    learning_rate: float = 0.01
    beta: float = 0.1
    seed: int = 0


DEFAULT = Options()


def simulate(options: Options) -> dict[str, pd.DataFrame]:
    """Tables of one run (`pairs`, `steps`, `layers`, `examples`; `tokens` and `mass` empty), the caller's to change."""
    return {name: frame.copy() for name, frame in _simulated(options).items()}


@cache
def _simulated(options: Options) -> dict[str, pd.DataFrame]:
    draw = np.random.default_rng(options.seed)
    count = options.pairs
    lengths = draw.integers(8, 60, (count, 2))
    logp = -1.8 * lengths * draw.lognormal(0, 0.15, (count, 2))
    start = logp.copy()
    size = 3.0 * np.sqrt(lengths.mean(1)) * draw.lognormal(0, 0.2, count)
    ids = [f"{value:016x}" for value in draw.integers(1 << 40, 1 << 60, count)]
    rows, steps, layers = [], [], []
    for step in range(options.steps):
        chosen = draw.permutation(count)[: options.batch]
        turned = options.turn is None or step >= options.turn * options.steps
        cosine, ratio = REGIMES[options.regime if turned else "case1"]
        row = one_step(options, draw, step, chosen, logp, start, size, cosine, ratio)
        row["pair_id"] = [ids[pair] for pair in chosen]
        row["len_chosen"], row["len_rejected"] = lengths[chosen, 0], lengths[chosen, 1]
        drift = np.array([np.mean(row["realised_delta_chosen"]), np.mean(row["realised_delta_rejected"])])
        logp += 0.2 * drift
        logp[chosen, 0] += row["realised_delta_chosen"] - 0.2 * drift[0]
        logp[chosen, 1] += row["realised_delta_rejected"] - 0.2 * drift[1]
        rows.append(fill("pairs", row))
        steps.append(one_step_row(options, step, rows[-1], draw))
        layers.append(split_layers(rows[-1], draw))
    pairs = pd.concat(rows, ignore_index=True)
    if not options.reference:
        pairs[["ref_logp_chosen", "ref_logp_rejected"]] = np.nan
    if not options.realised:
        pairs[["realised_delta_chosen", "realised_delta_rejected"]] = np.nan
    if not options.update:
        pairs[["update_delta_chosen", "update_delta_rejected"]] = np.nan
    if not options.gram:
        pairs[["batch_delta_chosen", "batch_delta_rejected"]] = np.nan
    return {
        "pairs": pairs,
        "pushes": push_rows(pairs, np.random.default_rng(options.seed + 1)) if options.pushes else empty("pushes"),
        "steps": fill("steps", {name: [row.get(name) for row in steps] for name in steps[0]}),
        "layers": pd.concat(layers, ignore_index=True),
        "tokens": empty("tokens"),
        "mass": probe_mass(options.steps, ids) if options.mass else empty("mass"),
        "examples": texts(ids),
    }


def one_step(options, draw, step, chosen, logp, start, size, cosine, ratio) -> dict[str, object]:
    """The pair rows of one step: DPO's pulls, norms around `size`, first-order predictions, noisy changes."""
    a, b = logp[chosen].T
    reference_a, reference_b = start[chosen].T
    margin = (a - reference_a) - (b - reference_b)
    pull = options.beta / (1 + np.exp(options.beta * margin))
    cosine = np.clip(cosine + draw.normal(0, 0.06, len(chosen)), -0.99, 0.99)
    ratio = ratio * draw.lognormal(0, 0.08, len(chosen))
    norm_w, norm_l = size[chosen] * np.sqrt(ratio), size[chosen] / np.sqrt(ratio)
    inner = cosine * norm_w * norm_l
    gate = 1 / (1 + np.exp(-50 * (np.exp(b / 30) - 0.1))) if options.gate else np.ones(len(chosen))
    pull_w, pull_l = pull, pull * gate
    rate = options.learning_rate
    delta_w = rate * (pull_w * norm_w**2 - pull_l * inner)
    delta_l = rate * (pull_w * inner - pull_l * norm_l**2)
    noise = draw.normal(0, 0.03, (2, len(chosen)))
    return {
        "step": np.full(len(chosen), step),
        "rank": np.zeros(len(chosen), int),
        "logp_chosen": a.copy(),
        "logp_rejected": b.copy(),
        "ref_logp_chosen": reference_a.copy(),
        "ref_logp_rejected": reference_b.copy(),
        "loss": np.log1p(np.exp(-options.beta * margin)),
        "pull_chosen": pull_w,
        "pull_rejected": pull_l,
        "grad_norm_chosen": norm_w,
        "grad_norm_rejected": norm_l,
        "grad_inner": inner,
        "grad_cosine": cosine,
        "case_plain": np.select(
            [(delta_w >= 0) & (delta_l <= 0), (delta_w < 0) & (delta_l <= 0), (delta_w >= 0) & (delta_l > 0)],
            [1, 2, 3],
            4,
        ),
        "predicted_delta_chosen": delta_w,
        "predicted_delta_rejected": delta_l,
        "batch_delta_chosen": 0.6 * delta_w + noise[0] / 2,
        "batch_delta_rejected": 0.6 * delta_l + noise[1] / 2,
        "update_delta_chosen": 0.6 * delta_w + 0.8 * noise[0],
        "update_delta_rejected": 0.6 * delta_l + 0.8 * noise[1],
        "realised_delta_chosen": 0.6 * delta_w + noise[0],
        "realised_delta_rejected": 0.6 * delta_l + noise[1],
        "gate": gate if options.gate else np.full(len(chosen), np.nan),
        "gate_statistic": np.exp(b / 30) if options.gate else np.full(len(chosen), np.nan),
        "separate_backward": np.zeros(len(chosen), bool),
    }


def one_step_row(options, step, pairs: pd.DataFrame, draw) -> dict[str, object]:
    """The step's row: means over the pairs, a gradient norm with a spike at two thirds of the run."""
    margin = (pairs.logp_chosen - pairs.ref_logp_chosen) - (pairs.logp_rejected - pairs.ref_logp_rejected)
    norm = float(pairs.pull_chosen.mean() * pairs.grad_norm_chosen.mean()) * draw.lognormal(0, 0.1)
    if step == int(options.steps * 2 / 3):
        norm *= 12
    return {
        "step": step,
        "rank": 0,
        "pairs": len(pairs),
        "loss": pairs.loss.mean(),
        "learning_rate": options.learning_rate,
        "grad_norm": norm,
        "grad_norm_clipped": min(norm, 1.0),
        "logp_chosen": pairs.logp_chosen.mean(),
        "logp_rejected": pairs.logp_rejected.mean(),
        "margin": margin.mean(),
        "accuracy": (margin > 0).mean(),
        "step_seconds": 0.8,
        "separate_rows": 0,
    }
