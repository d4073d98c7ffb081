"""Numbers that follow from the `pairs` table: one function of the frame each; DERIVED defines them.

Letters as in docs/notation.md. Every function returns float64 [rows], NaN where it cannot be computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dyn_probe.objectives import SHAPINGS
from dyn_probe.report.frames import Floats, numbers

SIDES = ("chosen", "rejected")
CEILING = next(float(row.defaults["ceiling"]) for row in SHAPINGS.values() if "ceiling" in row.defaults)
"""C of AdaDPO, where a run has none of its own."""


@dataclass(frozen=True)
class Derived:
    """One derived number: how it is computed, its unit, and its meaning with formula."""

    compute: Callable[[pd.DataFrame], Floats]
    unit: str
    meaning: str


def _divide(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=np.isfinite(bottom) & (bottom != 0))


def margin(pairs: pd.DataFrame) -> Floats:
    """score_chosen − score_rejected: by what the objective itself compares; nats.

    Traces without scores (older ones, a loop that gave none): (a − r_w) − (b − r_l), or a − b without a reference.
    """
    score = numbers(pairs, "score_chosen") - numbers(pairs, "score_rejected")
    if np.isfinite(score).any():
        return score
    against = [numbers(pairs, f"logp_{side}") - numbers(pairs, f"ref_logp_{side}") for side in SIDES]
    with_reference = against[0] - against[1]
    return with_reference if np.isfinite(with_reference).any() else _difference(pairs)


def log_ratio_margin(pairs: pd.DataFrame) -> Floats:
    """(a − r_w) − (b − r_l), by which runs of any objective can be compared; nats/sequence.

    Without a reference: the change of a − b since the pair's first record, NaN on that first row itself.
    """
    difference = _difference(pairs)
    reference = numbers(pairs, "ref_logp_chosen") - numbers(pairs, "ref_logp_rejected")
    if np.isfinite(reference).any():
        return difference - reference
    first = first_rows(pairs)
    return np.where(first == np.arange(len(first)), np.nan, difference - difference[first])


def _difference(pairs: pd.DataFrame) -> Floats:
    """a − b."""
    return numbers(pairs, "logp_chosen") - numbers(pairs, "logp_rejected")


def per_token(pairs: pd.DataFrame, side: str) -> Floats:
    """Log-probability per response token, a/n_w or b/n_l; nats/token."""
    return _divide(numbers(pairs, f"logp_{side}"), numbers(pairs, f"len_{side}"))


def first_rows(pairs: pd.DataFrame) -> np.ndarray:
    """For each row, the position of its pair's earliest recorded row [rows]; a row without id is its own."""
    codes, _ = pd.factorize(pairs["pair_id"])
    order = np.argsort(numbers(pairs, "step"), kind="stable")[::-1]
    first = np.empty(codes.max(initial=-1) + 2, np.int64)  # one more: code −1 stands for a null id
    first[codes[order]] = order
    return np.where(codes < 0, np.arange(len(codes)), first[codes])


def since_first(pairs: pd.DataFrame, side: str) -> Floats:
    """Change per token since the pair's first recorded step, NaN on that first row itself; nats/token."""
    first = first_rows(pairs)
    logp = numbers(pairs, f"logp_{side}")
    change = _divide(logp - logp[first], numbers(pairs, f"len_{side}"))
    change[first == np.arange(len(first))] = np.nan
    return change


def recorded_change(pairs: pd.DataFrame, side: str) -> Floats:
    """Measured change per token from before the pair's first recorded update to after this row's; nats/token.

    Without a realised change the row's own update is not in it, and a pair's first row is NaN.
    """
    first = first_rows(pairs)
    logp, realised = numbers(pairs, f"logp_{side}"), numbers(pairs, f"realised_delta_{side}")
    measured = np.isfinite(realised)
    change = _divide(np.where(measured, logp + realised, logp) - logp[first], numbers(pairs, f"len_{side}"))
    change[~measured & (first == np.arange(len(first)))] = np.nan
    return change


def since_reference(pairs: pd.DataFrame, side: str) -> Floats:
    """Log-ratio to the reference per token, (a − r_w)/n_w or (b − r_l)/n_l; nats/token."""
    ratio = numbers(pairs, f"logp_{side}") - numbers(pairs, f"ref_logp_{side}")
    return _divide(ratio, numbers(pairs, f"len_{side}"))


def pull_ratio(pairs: pd.DataFrame) -> Floats:
    """d_w/d_l."""
    return _divide(numbers(pairs, "pull_chosen"), numbers(pairs, "pull_rejected"))


def norm_ratio(pairs: pd.DataFrame) -> Floats:
    """‖g_w‖/‖g_l‖."""
    return _divide(numbers(pairs, "grad_norm_chosen"), numbers(pairs, "grad_norm_rejected"))


def needed_ratio(pairs: pd.DataFrame) -> Floats:
    """⟨g_w,g_l⟩/‖g_w‖²: the smallest d_w/d_l at which chosen does not fall."""
    return _divide(numbers(pairs, "grad_inner"), numbers(pairs, "grad_norm_chosen") ** 2)


def allowed_ratio(pairs: pd.DataFrame) -> Floats:
    """‖g_l‖²/⟨g_w,g_l⟩: the largest d_w/d_l at which rejected does not rise; +inf where ⟨g_w,g_l⟩ ≤ 0."""
    inner = numbers(pairs, "grad_inner")
    bound = _divide(numbers(pairs, "grad_norm_rejected") ** 2, inner)
    return np.where(inner <= 0, np.inf, bound)


def condition_chosen(pairs: pd.DataFrame) -> Floats:
    """d_l⟨g_w,g_l⟩ / (d_w‖g_w‖²): above 1 chosen falls."""
    norm = numbers(pairs, "grad_norm_chosen")
    top = numbers(pairs, "pull_rejected") * numbers(pairs, "grad_inner")
    return _divide(top, numbers(pairs, "pull_chosen") * norm**2)


def condition_rejected(pairs: pd.DataFrame) -> Floats:
    """d_w⟨g_w,g_l⟩ / (d_l‖g_l‖²): above 1 rejected rises."""
    norm = numbers(pairs, "grad_norm_rejected")
    top = numbers(pairs, "pull_chosen") * numbers(pairs, "grad_inner")
    return _divide(top, numbers(pairs, "pull_rejected") * norm**2)


def excess(pairs: pd.DataFrame) -> Floats:
    """⟨g_w,g_l⟩ − (d_w/d_l)‖g_w‖²: above 0 chosen falls."""
    return numbers(pairs, "grad_inner") - pull_ratio(pairs) * numbers(pairs, "grad_norm_chosen") ** 2


def pair_grad_norm(pairs: pd.DataFrame) -> Floats:
    """‖d_w g_w − d_l g_l‖ = ‖∇ℓ‖ of the pair alone."""
    chosen = numbers(pairs, "pull_chosen") * numbers(pairs, "grad_norm_chosen")
    rejected = numbers(pairs, "pull_rejected") * numbers(pairs, "grad_norm_rejected")
    cross = numbers(pairs, "pull_chosen") * numbers(pairs, "pull_rejected") * numbers(pairs, "grad_inner")
    return np.sqrt(np.maximum(chosen**2 + rejected**2 - 2 * cross, 0))


def magnitude(pairs: pd.DataFrame, side: str) -> Floats:
    """d_w‖g_w‖ or d_l‖g_l‖: how large the side's part of the loss's gradient is."""
    return numbers(pairs, f"pull_{side}") * numbers(pairs, f"grad_norm_{side}")


def magnitude_ratio(pairs: pd.DataFrame) -> Floats:
    """d_w‖g_w‖ : d_l‖g_l‖."""
    return _divide(magnitude(pairs, "chosen"), magnitude(pairs, "rejected"))


def _ahead(pairs: pd.DataFrame, token: bool) -> Floats:
    """log p_w − log p_l with p what AdaDPO balances by default: e^h, or e^a and e^b where there is no reference; per
    token e^(h/n)."""
    function = since_reference if np.isfinite(since_reference(pairs, "chosen")).any() else per_token
    sides = [function(pairs, side) * (1.0 if token else numbers(pairs, f"len_{side}")) for side in SIDES]
    return sides[0] - sides[1]


def balance_raw(pairs: pd.DataFrame) -> Floats:
    """log of d_w/p_w : d_l/p_l with p of whole responses: log(d_w/d_l) − (h_w − h_l); NaN where a pull is not positive;
    nats."""
    ratio = pull_ratio(pairs)
    return np.log(np.where(ratio > 0, ratio, np.nan)) - _ahead(pairs, token=False)


def balance_token(pairs: pd.DataFrame) -> Floats:
    """d_w/p_w : d_l/p_l with p per token: (d_w/d_l)·e^−(h_w/n_w − h_l/n_l)."""
    return pull_ratio(pairs) * np.exp(-_ahead(pairs, token=True))


def balance_ceiling(pairs: pd.DataFrame, ceiling: float = CEILING) -> Floats:
    """The same with p_w/p_l counted up to a ceiling C: (d_w/d_l)/min(e^(h_w/n_w − h_l/n_l), C), 1 under AdaDPO."""
    return pull_ratio(pairs) / np.minimum(np.exp(_ahead(pairs, token=True)), ceiling)


def _side(function: Callable[[pd.DataFrame, str], Floats], side: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: function(pairs, side)


DERIVED: dict[str, Derived] = {
    "margin": Derived(
        margin,
        "nats",
        "score_chosen − score_rejected, by what the objective compares; where no score was recorded "
        "(a − r_w) − (b − r_l), without a reference a − b",
    ),
    "log_ratio_margin": Derived(
        log_ratio_margin,
        "nats/sequence",
        "(a − r_w) − (b − r_l); without a reference the change of a − b since the pair's first recorded step",
    ),
    **{
        f"logp_per_token_{side}": Derived(_side(per_token, side), "nats/token", f"{form} of the {side} response")
        for side, form in zip(SIDES, ("a/n_w", "b/n_l"), strict=True)
    },
    **{
        f"since_first_{side}": Derived(
            _side(since_first, side), "nats/token", f"change of {form} since the pair's first recorded step"
        )
        for side, form in zip(SIDES, ("a/n_w", "b/n_l"), strict=True)
    },
    **{
        f"recorded_change_{side}": Derived(
            _side(recorded_change, side),
            "nats/token",
            f"change of {form} from before the pair's first recorded update to after its last",
        )
        for side, form in zip(SIDES, ("a/n_w", "b/n_l"), strict=True)
    },
    **{
        f"since_reference_{side}": Derived(_side(since_reference, side), "nats/token", form)
        for side, form in zip(SIDES, ("(a − r_w)/n_w", "(b − r_l)/n_l"), strict=True)
    },
    "pull_ratio": Derived(pull_ratio, "1", "d_w/d_l"),
    "norm_ratio": Derived(norm_ratio, "1", "‖g_w‖/‖g_l‖"),
    "needed_ratio": Derived(needed_ratio, "1", "⟨g_w,g_l⟩/‖g_w‖²: below this d_w/d_l chosen falls"),
    "allowed_ratio": Derived(allowed_ratio, "1", "‖g_l‖²/⟨g_w,g_l⟩: above this d_w/d_l rejected rises"),
    "condition_chosen": Derived(condition_chosen, "1", "d_l⟨g_w,g_l⟩ / (d_w‖g_w‖²): above 1 chosen falls"),
    "condition_rejected": Derived(condition_rejected, "1", "d_w⟨g_w,g_l⟩ / (d_l‖g_l‖²): above 1 rejected rises"),
    "excess": Derived(excess, "(nats/parameter unit)²", "⟨g_w,g_l⟩ − (d_w/d_l)‖g_w‖²: above 0 chosen falls"),
    "magnitude_ratio": Derived(magnitude_ratio, "1", "d_w‖g_w‖ : d_l‖g_l‖"),
    "balance_raw": Derived(
        balance_raw, "nats", "log of d_w/p_w : d_l/p_l, p = e^h of whole responses (e^a, e^b without a reference)"
    ),
    "balance_token": Derived(balance_token, "1", "d_w/p_w : d_l/p_l, p = e^(h/n) per token (without a reference e^ā)"),
    "balance_ceiling": Derived(balance_ceiling, "1", f"the same with p_w/p_l up to C = {CEILING:g}: 1 under AdaDPO"),
    "pair_grad_norm": Derived(pair_grad_norm, "nats/parameter unit", "‖d_w g_w − d_l g_l‖ = ‖∇ℓ‖ of the pair alone"),
}
