"""Detached factors on a pair's contributions: the gate g on rejected (Gate-DPO), ρ on chosen (AdaDPO).

Letters as in docs/notation.md; ``sg[·]`` is a stop-gradient. Each rule is ``(objective, terms, options) → (terms,
columns)``, written with methods of tensors, so that the table of shapings can be read without torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dyn_probe.objectives.pair_terms import Terms
    from dyn_probe.objectives.table import Columns, Objective, Options


def _gate(statistic: Tensor, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """g = σ(α(s − τ)), detached, on the rejected contribution.

    Form ``gradient``: ℓ and d_w unchanged, d_l times g. Form ``value``: ℓ and d_w are those of the ungated
    objective at g·h_l, and d_l is g times its d_l there. So d_l/d_w is g times the ungated ratio in both
    forms where that ratio does not depend on a and b (dpo, rdpo, simpo, ipo, dpo_shift).
    """
    s = statistic.detach()
    g = (options["alpha"] * (s - options["tau"])).sigmoid()
    return replace(terms, gate=g, gate_form=options["form"]), {"gate": g, "gate_statistic": s}


def gate_seq(objective: Objective, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """Gate on s = e^b̄, the geometric-mean token probability of the rejected response."""
    return _gate(terms.mean_l.exp(), terms, options)


def gate_q10(objective: Objective, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """Gate on s = the q-quantile (linear interpolation) over the rejected response's token probabilities."""
    logps = terms.need("token_logps").chunk(2)[1].detach()
    said = terms.need("response_mask").chunk(2)[1].bool()
    probabilities = (logps.float() if logps.element_size() < 4 else logps).exp()  # no quantile of half precision
    return _gate(probabilities.masked_fill(~said, math.nan).nanquantile(options["q"], dim=1), terms, options)


def balanced(objective: Objective, terms: Terms, options: Options) -> tuple[Tensor, Tensor]:
    """``u_w, u_l`` [B]: logarithms of the quantities p = e^u AdaDPO balances, d_w/p_w = d_l/p_l.

    What the objective's row says (a reconstruction: what its pair term compares); else log-ratios h or
    log-probabilities, per token where ``stable``.
    """
    if objective.balance is not None:
        return objective.balance(terms)
    ratio = options["space"] == "ratio" or (options["space"] == "auto" and objective.needs_reference)
    u_w, u_l = (terms.h_w, terms.h_l) if ratio else (terms.a, terms.b)
    return (u_w / terms.n_w, u_l / terms.n_l) if options["stable"] else (u_w, u_l)


def adadpo(objective: Objective, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """ρ = min(exp(sg[u_w − u_l]), C) on the chosen contribution."""
    u_w, u_l = balanced(objective, terms, options)
    rho = (u_w - u_l).detach().exp().clamp(max=options["ceiling"])
    return replace(terms, rho=rho), {"rho": rho}


def adadpo_misfit(objective: Objective, options: Options) -> str:
    """Why these options do not fit the objective; empty where they do."""
    name = objective.name
    if options["space"] == "ratio" and not objective.needs_reference:
        return f"adadpo:space=ratio needs an objective with a reference; {name} has none: write space=policy"
    if objective.balance is not None and (options["space"], options["stable"]) != ("auto", True):
        return f"adadpo on {name} balances the log-odds of per-token means; leave space and stable at their defaults"
    return ""
