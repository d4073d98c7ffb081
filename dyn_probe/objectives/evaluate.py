"""Loss and pulls of any objective under any shaping: one piece of code for every row of both tables.

The pulls d_w = −∂ℓ/∂a and d_l = ∂ℓ/∂b are all that the update sees of the objective:
−∇ℓ = d_w g_w − d_l g_l (docs/notation.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from dyn_probe.errors import BadInput
from dyn_probe.objectives.formulas import likelihood
from dyn_probe.objectives.losses import objective, resolve_hyper
from dyn_probe.objectives.options import Value
from dyn_probe.objectives.pair_terms import MEANINGS, Terms
from dyn_probe.objectives.shaping import parse_shapings
from dyn_probe.objectives.table import ChosenShaping, Columns, Objective

Hyper = Mapping[str, Value] | None
Shapings = Iterable[str | ChosenShaping]


def pair_loss(
    name: str | Objective, terms: Terms, hyper: Hyper = None, shapings: Shapings = ()
) -> tuple[Tensor, Columns]:
    """Per-pair losses ``ℓ [B]`` (nats), and the shapings' columns, each ``[B]`` and detached.

    Differentiable in ``terms.a`` and ``terms.b``; with token-mask, in per-token log-probabilities and masks.

    Args:
        name: a row of OBJECTIVES.
        hyper: hyper-parameters over the objective's defaults.
        shapings: e.g. ``["gate-seq:form=gradient", "adadpo"]``. ``pairwise-normalised`` does not change the
            loss: apply :func:`~dyn_probe.objectives.normalise.normalised_pulls` to its pulls.
    """
    row, values, chosen = _resolved(name, terms, hyper, shapings)
    shaped, columns = _shape(row, terms, chosen)
    losses = _loss(row, shaped, values)
    for one in chosen:
        if one.shaping.penalty is not None:
            d_w, d_l = _pulls(row, shaped, values)
            losses = losses + one.shaping.penalty(shaped, columns, one.options, (d_w.abs() + d_l.abs()) / 2)
    return losses, {column: value.detach() for column, value in columns.items()}


def pulls(name: str | Objective, terms: Terms, hyper: Hyper = None, shapings: Shapings = ()) -> tuple[Tensor, Tensor]:
    """``d_w, d_l`` [B]: the pulls, detached; with token-mask, on the masked sums.

    Factors of shapings carry no gradient, so these are the exact coefficients of −∇ℓ.
    """
    row, values, chosen = _resolved(name, terms, hyper, shapings)
    shaped, _ = _shape(row, _detached(terms), chosen)
    return _pulls(row, shaped, values)


def _pulls(row: Objective, shaped: Terms, values: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``d_w, d_l`` [B] at the terms as shaped."""
    shaped = _detached(shaped)
    with torch.enable_grad():
        a, b = (x.detach().requires_grad_() for x in (shaped.a, shaped.b))
        total = _loss(row, replace(shaped, a=a, b=b), values).sum()
        grad_a, grad_b = torch.autograd.grad(total, (a, b), materialize_grads=True)
    return -grad_a, grad_b


def pair_scores(name: str | Objective, terms: Terms, hyper: Hyper = None) -> Columns:
    """``[B]`` columns ``score_chosen``, ``score_rejected`` (nats, detached): what the objective compares.

    Shapings change what gradients do to a pair, not the scores.
    """
    row = objective(name)
    score = row.score_of(resolve_hyper(row, hyper))
    sides = {"chosen": (terms.a, terms.n_w, terms.r_w), "rejected": (terms.b, terms.n_l, terms.r_l)}
    return {f"score_{side}": score.of(*numbers) for side, numbers in sides.items()}


def check_terms(name: str | Objective, terms: Terms, hyper: Hyper = None, shapings: Shapings = ()) -> None:
    """Refuse terms that do not match the objective, before training with it.

    Raises:
        BadInput: a term is missing (all are listed), or an objective without a reference is given one.
    """
    row, *_ = _resolved(name, terms, hyper, shapings)
    if terms.r_w is not None and not row.needs_reference:
        raise BadInput(
            f"objective {row.name} uses no reference policy, but reference log-probabilities were given; leave out r_w "
            "and r_l"
        )


def _resolved(
    name: str | Objective, terms: Terms, hyper: Hyper, shapings: Shapings
) -> tuple[Objective, dict[str, Value], tuple[ChosenShaping, ...]]:
    """Row, hyper-parameters and shapings, once every term they read is there."""
    row = objective(name)
    values = resolve_hyper(row, hyper)
    chosen = parse_shapings(shapings, row, values)
    needed = dict.fromkeys([*row.needs(values), *(n for one in chosen for n in one.needs(row))])
    missing = [f"{n} ({MEANINGS[n]})" for n in needed if getattr(terms, n) is None]
    if missing:
        method = " + ".join([row.name, *(one.name for one in chosen)])
        raise BadInput(f"{method} needs terms that are missing: {'; '.join(missing)}")
    return row, values, chosen


def _loss(row: Objective, terms: Terms, values: Mapping[str, Any]) -> Tensor:
    """``ℓ [B]`` with the likelihood term, which no shaping touches; without one, exactly the objective's own."""
    losses = row.loss(terms, values)
    weight = values.get("nll", 0.0)
    return losses + weight * likelihood(terms, values) if weight else losses


def _shape(row: Objective, terms: Terms, chosen: tuple[ChosenShaping, ...]) -> tuple[Terms, Columns]:
    """Shaped terms and columns. Factors read the responses' own terms, so what replaces these comes last."""
    columns: Columns = {}
    for one in sorted(chosen, key=lambda one: bool(one.shaping.rows)):
        if one.shaping.apply is None:
            continue
        terms, more = one.shaping.apply(row, terms, one.options)
        columns |= more
    return terms, columns


def _detached(terms: Terms) -> Terms:
    """The same numbers without their graphs."""
    values = {f.name: getattr(terms, f.name) for f in fields(terms)}
    tensors: dict[str, Any] = {n: v.detach() for n, v in values.items() if isinstance(v, Tensor)}
    return replace(terms, **tensors)
