"""Rows of the table ``steps``: what a step's own facts are, and means over its pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dyn_probe.engine.answer import Products
from dyn_probe.metric.step_facts import StepFacts
from dyn_probe.probe.row_store import Row

OTHER_TERMS = 1e-4
"""Share of the squared gradient from which on the loss has other terms, so that ``‖G‖² = κ²cᵀKc`` is no law."""

ABOUT_STEP = ("law7_error", "lost_share", "law7_share", "unmoved_share", "other_terms")
"""Fields of ``StepFacts`` that the table has as they are."""


def step_facts(facts: StepFacts, products: Products | None) -> Row:
    """Columns of the ``steps`` table about a step that was taken apart.

    Args:
        products: those of the step's only batch, where it has one.
    """
    row: Row = {name: getattr(facts, name) for name in ABOUT_STEP}
    row["pushes_seconds"] = facts.seconds
    row["pushes_mib"] = None if facts.held is None else facts.held / 2**20
    if facts.other_terms is None or facts.other_terms > OTHER_TERMS:
        return row
    if products is not None and products.gram is not None and facts.factor is not None and facts.gradient_squared:
        c = products.coefficients
        predicted = facts.factor**2 * float(c @ products.gram @ c)
        row["kappa_error"] = abs(predicted - facts.gradient_squared) / facts.gradient_squared
    return row


def step_means(rows: Sequence[Row]) -> Row:
    """The ``steps`` columns that are means over a step's pair rows."""
    if not rows:
        return {}
    a, b = (np.array([r[f"logp_{side}"] for r in rows]) for side in ("chosen", "rejected"))
    margin = margins(rows)
    losses = [r["loss"] for r in rows if r.get("loss") is not None]
    return {
        "pairs": len(rows),
        "logp_chosen": float(a.mean()),
        "logp_rejected": float(b.mean()),
        "margin": float(margin.mean()),
        "accuracy": float((margin > 0).mean()),
        **({"loss": float(np.mean(losses))} if losses else {}),
    }


def margins(rows: Sequence[Row]) -> np.ndarray:
    """Margin of every row of the ``pairs`` table: between the scores where they are recorded, else between the
    log-ratios, or the log-probabilities where there is no reference."""
    sides = ("chosen", "rejected")
    if all(r.get(f"score_{side}") is not None for r in rows for side in sides):
        won, lost = (np.array([r[f"score_{side}"] for r in rows]) for side in sides)
    else:
        won, lost = (np.array([r[f"logp_{s}"] - (r.get(f"ref_logp_{s}") or 0.0) for r in rows]) for s in sides)
    return won - lost
