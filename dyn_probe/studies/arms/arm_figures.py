"""The final figures of one arm, each a number with its standard error over pairs, and its curves. No torch.

Changes are from before preference training to its end, in nats per sequence unless a name ends in ``_token``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dyn_probe.mass.squeezing import changes_by_prompt, gating
from dyn_probe.report.agreement import run_synchrony, spearman
from dyn_probe.report.changes import run_start, starts_before_training
from dyn_probe.report.frames import Floats, numbers, recorded
from dyn_probe.report.pair_columns import balance_ceiling, balance_token
from dyn_probe.report.push_parts import PARTS, balance, of_side
from dyn_probe.studies.arms.step_means import at_end, at_start, change, cosine, mean_by_step, token_cosines
from dyn_probe.studies.claims import Estimate
from dyn_probe.trace.reader import Trace

NOT_KNOWN = Estimate(*[float("nan")] * 4)


def mean_of(values: Any) -> Estimate | None:
    """Over the finite ones; None without any."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    return Estimate.of(kept) if len(kept) else None


def trained(trace: Trace, side: str, token: bool = False) -> Floats:
    """Change of every pair that was trained on, from the start to the end of the run [pairs]."""
    if not starts_before_training(trace) or not len(trace.final):
        return np.empty(0)
    start = run_start(trace)
    end = trace.final.drop_duplicates("pair_id", keep="last").set_index("pair_id").reindex(start.index)
    moved = numbers(end, f"logp_{side}") - numbers(start, f"logp_{side}")
    return moved / numbers(start, f"len_{side}") if token else moved


def held_out(trace: Trace, side: str) -> Estimate | None:
    """The same of the held-out pairs: those of the probe set where it was built from them, else their mean alone."""
    config = trace.about.config
    if not config.get("eval_fraction"):
        return None
    if len(trace.mass) and not config.get("probe_set"):
        return mean_of(by_prompt(trace, side, "logp"))
    last, name = trace.about.held_out, f"eval_logp_{side}"
    if last is None or not recorded(trace.steps, name) or (end := getattr(last, name)) is None:
        return None
    value = float(end - trace.steps.sort_values("step")[name].dropna().iloc[0])
    return Estimate(value, float("nan"), value, value)


def by_prompt(trace: Trace, group: str, column: str) -> Floats:
    """Change of a group of probe responses, a value per prompt [prompts]."""
    table = changes_by_prompt(trace.mass)
    return table.loc[table["group"] == group, column].to_numpy(dtype=np.float64)


def _mass(group: str, column: str = "logp") -> Callable[[Trace], Estimate | None]:
    return lambda trace: mean_of(by_prompt(trace, group, column)) if len(trace.mass) else None


def argmax(trace: Trace) -> Estimate | None:
    """Change of the most probable tokens over chosen, rejected and other probe responses, each group the same."""
    return _over_groups(trace, lambda row: row["argmax_logp"])


def index(trace: Trace) -> Estimate | None:
    """Squeezing index per prompt: per token, change of the most probable tokens minus that of the responses."""
    return _over_groups(trace, lambda row: row["argmax_token"] - row["logp_token"])


def _over_groups(trace: Trace, value: Callable[[pd.DataFrame], pd.Series[float]]) -> Estimate | None:
    if not len(trace.mass):
        return None
    table = changes_by_prompt(trace.mass)
    means = value(table).groupby(table["prompt_id"]).mean()
    return mean_of(means.to_numpy(dtype=np.float64))


def margin_gain(trace: Trace) -> Estimate | None:
    """Change of chosen minus that of rejected over the probe responses."""
    if not len(trace.mass):
        return None
    table = changes_by_prompt(trace.mass).pivot(index="prompt_id", columns="group", values="logp")
    if not {"chosen", "rejected"} <= set(table.columns):
        return None
    return mean_of((table["chosen"] - table["rejected"]).to_numpy(dtype=np.float64))


def _first(found: list[Estimate]) -> Estimate | None:
    return found[0] if found and np.isfinite(found[0].value) else None


def accuracy(trace: Trace) -> Estimate | None:
    """Share of held-out pairs whose log-ratio of chosen is the larger, at the end."""
    share = None if trace.about.held_out is None else trace.about.held_out.eval_log_ratio_accuracy
    count = trace.about.data.held_out or 0
    if share is None or not count:
        return None
    return Estimate(share, float(np.sqrt(share * (1 - share) / count)), share, share)


def together(trace: Trace) -> Estimate | None:
    """Synchrony: correlation of Δa with Δb over steps."""
    found = run_synchrony(trace)
    return None if found is None or np.isnan(found.run) else Estimate(found.run, found.error, found.run, found.run)


def ches_rank(trace: Trace) -> Estimate | None:
    """Rank correlation of CHES per token at a pair's first recorded row with the fall of its chosen per token."""
    if not recorded(trace.pairs, "ches_normalised"):
        return None
    rows = trace.pairs.dropna(subset=["ches_normalised"]).drop_duplicates("pair_id").set_index("pair_id")
    moved = trained(trace, "chosen", token=True)
    if not len(moved):
        return None
    fall = pd.Series(-moved, index=run_start(trace).index).reindex(rows.index)
    rho = spearman(numbers(rows, "ches_normalised"), np.asarray(fall, dtype=np.float64))
    return Estimate(rho, float(1 / np.sqrt(max(1, fall.count() - 1))), rho, rho) if np.isfinite(rho) else None


def _log_at_end(value: Callable[[pd.DataFrame], Floats]) -> Callable[[Trace], Estimate | None]:
    def found(trace: Trace) -> Estimate | None:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _first(at_end([trace], lambda one: np.log(value(one.pairs))))

    return found


def imbalance(trace: Trace) -> Estimate | None:
    """How far the pulls on probabilities are from AdaDPO's d_w/p_w = d_l/p_l, up to its ceiling, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _first(at_end([trace], lambda one: np.abs(np.log(balance_ceiling(one.pairs)))))


def gated_share(trace: Trace) -> Estimate | None:
    """Share of recorded rows whose gate statistic is below the threshold that the run used."""
    options = [one.options for one in trace.about.objective.shaping if "tau" in one.options]
    if not options or not len(trace.pairs):
        return None
    found = gating(trace.pairs, float(options[0]["tau"]))
    if found.rate is None:
        return None
    error = float(np.sqrt(found.rate * (1 - found.rate) / found.rows))
    return Estimate(found.rate, error, found.rate, found.rate)


def both_down(trace: Trace) -> Estimate | None:
    """Share of recorded rows of case 2: both log-probabilities would fall, each pair alone."""
    values = numbers(trace.pairs, "case_plain")
    return mean_of((values[np.isfinite(values)] == 2).astype(np.float64))


def _push(part: str) -> Callable[[Trace], Estimate | None]:
    return lambda trace: mean_of(numbers(of_side(trace, "chosen"), part)) if len(trace.pushes) else None


def balanced(trace: Trace) -> Estimate | None:
    """Balance of the pushes on chosen: above 0 where those of rejected outweigh those of chosen."""
    found = balance(trace) if len(trace.pushes) and recorded(trace.pushes, "all_rejected") else None
    return None if found is None else Estimate(found.value, found.error, found.value, found.value)


FIGURES: dict[str, tuple[Callable[[Trace], Estimate | None], str]] = {
    "chosen": (lambda t: mean_of(trained(t, "chosen")), "change of chosen, training pairs"),
    "rejected": (lambda t: mean_of(trained(t, "rejected")), "change of rejected, training pairs"),
    "chosen_token": (lambda t: mean_of(trained(t, "chosen", True)), "change of chosen per token, training pairs"),
    "rejected_token": (lambda t: mean_of(trained(t, "rejected", True)), "change of rejected per token, training pairs"),
    "held_chosen": (lambda t: held_out(t, "chosen"), "change of chosen, held-out pairs"),
    "held_rejected": (lambda t: held_out(t, "rejected"), "change of rejected, held-out pairs"),
    "accuracy": (accuracy, "accuracy of log-ratios, held-out pairs"),
    "cosine_start": (lambda t: _first(at_start([t], cosine)), "cosine of the two gradients at the start"),
    "cosine_end": (lambda t: _first(at_end([t], cosine)), "the same at the end"),
    "token_differ": (lambda t: _first(token_cosines([t], same=False)), "token cosine of tokens that differ"),
    "token_same": (lambda t: _first(token_cosines([t], same=True)), "token cosine of equal tokens after them"),
    "synchrony": (together, "synchrony of Δa and Δb"),
    "delta_chosen": (_mass("chosen"), "change of chosen, probe responses"),
    "delta_rejected": (_mass("rejected"), "change of rejected, probe responses"),
    "margin": (margin_gain, "change of the margin, probe responses"),
    "delta_others": (_mass("others"), "change of unrelated and shuffled responses"),
    "delta_argmax": (argmax, "change of the most probable tokens"),
    "index": (index, "squeezing index, per token"),
    "imbalance": (imbalance, "|log of d_w/p_w : d_l/p_l| per token, up to AdaDPO's ceiling, at the end"),
    "balance_token": (_log_at_end(balance_token), "log of d_w/p_w : d_l/p_l per token, at the end"),
    "balance_ceiling": (_log_at_end(balance_ceiling), "the same up to AdaDPO's ceiling"),
    "ches_rank": (ches_rank, "rank correlation of CHES with the fall of chosen"),
    "gated": (gated_share, "gating rate: share of rows with s < τ"),
    "both_down": (both_down, "share of case 2 (both fall), each pair alone"),
    "balance": (balanced, "balance of the pushes on chosen"),
    **{f"push_{part}": (_push(part), f"push on chosen by {words}, nats a step") for part, words in PARTS.items()},
}
"""Name → the figure of a trace, None where it was not recorded; what it is."""


MASS = ("delta_chosen", "delta_rejected", "margin", "delta_others", "delta_argmax", "index")


def mass_figures(trace: Trace) -> dict[str, Estimate]:
    """Those of the probe responses alone."""
    found = {name: FIGURES[name][0](trace) for name in MASS}
    return {name: one for name, one in found.items() if one is not None}


def figures_of(trace: Trace) -> dict[str, Estimate]:
    """Every figure that the trace has."""
    found = {name: figure(trace) for name, (figure, _) in FIGURES.items()}
    return {name: one for name, one in found.items() if one is not None}


def curves_of(trace: Trace) -> dict[str, list[float]]:
    """Means over the pairs of each recorded step: both log-probabilities since the reference (as they are where there
    is none; a sequence, and a token), and the cosine."""
    referred = bool(np.isfinite(numbers(trace.pairs, "ref_logp_chosen")).any())
    steps, _ = mean_by_step(trace, cosine)
    found = {"step": steps.tolist(), "cosine": mean_by_step(trace, cosine)[1].tolist()}
    for side in ("chosen", "rejected"):
        value = change(side) if referred else _plain(side)
        found[side] = mean_by_step(trace, value)[1].tolist()
        found[f"{side}_token"] = mean_by_step(trace, _token(side, value))[1].tolist()
    return found


def _plain(side: str) -> Callable[[Trace], Floats]:
    return lambda trace: numbers(trace.pairs, f"logp_{side}")


def _token(side: str, value: Callable[[Trace], Floats]) -> Callable[[Trace], Floats]:
    return lambda trace: value(trace) / numbers(trace.pairs, f"len_{side}")
