"""What a user can change: one row per piece of advice. Verdicts refer to them by key.

Every piece that can be tried was tried: trained on the built-in model with the built-in data, against plain DPO with
the same seeds (AdamW, one pass over the pairs). What was found stands behind the rows, in general words; advice that
did not help is gone. The trials on pulls are repeated by ``dyn-probe grid --seeds 2 --steps 40 --lr 2e-4`` with
``--methods`` dpo, dpo:beta=0.3, dpo:beta=1, dpo:nll=0.1, dpop, cal_dpo, dpo+adadpo, dpo_shift, dpo+gate-seq,
dpo+gate-q10 and dpo+pairwise-normalised, whose table says what became of chosen. Two findings shape what
verdicts suggest:

- Changing the pulls of *every* pair also removes the falls that other pairs cause, so such advice holds whether or not
  a fall is predicted from the pair alone.
- AdamW divides by the gradient's running scale: clipping, and a loss that is only partly saturated, hardly change its
  steps.
"""

from __future__ import annotations

from collections.abc import Callable

from dyn_probe.objectives import CHANGES, OBJECTIVES, SHAPINGS
from dyn_probe.report.run_facts import shaping_options
from dyn_probe.trace.run_fields import Manifest

_WITH_LIKELIHOOD = ", ".join(row.name for row in OBJECTIVES.values() if row.likelihood)

KNOBS: dict[str, str] = {
    # Pairwise-normalised updates raised chosen in nearly every update; margin and accuracy were those of DPO.
    "normalise": "normalise pairwise (pairwise-normalised): d_w/d_l = ‖g_l‖/‖g_w‖ satisfies both conditions for every "
    "pair",
    # All three raised chosen at nearly the margin of DPO (Cal-DPO at a smaller one). AdaDPO does not help chosen where
    # it has fallen behind: it pulls harder where chosen is ahead of rejected.
    "chosen": "strengthen the pull on chosen: DPOP and Cal-DPO where it has fallen below the reference, AdaDPO where "
    "it is ahead of rejected",
    # DPO-Shift raised chosen, gate-seq kept it from falling, gate-q10 made it fall less.
    "rejected": "weaken the push on rejected: DPO-Shift for all pairs, Gate-DPO where rejected is already improbable "
    "(gate-seq rather than gate-q10)",
    # A likelihood term on top of DPO and the objectives that have one raised chosen.
    "sft": "add a likelihood (NLL) term on chosen (--set nll=λ; these objectives have one: "
    f"{_WITH_LIKELIHOOD}): it raises d_w and leaves d_l unchanged",
    # Halving the rate cut the fall of chosen by more than half, and the margin by a third.
    "lr": "lower the learning rate: chosen falls less, and the margin grows less",
    # Tenfold beta about halved the fall; threefold beta changed nothing, since the pulls had not vanished.
    "beta": "raise beta by a large factor: the loss then saturates at a smaller margin; a small increase hardly helps "
    "with AdamW, whose steps do not shrink with the pulls",
    "length": "correct for length: a length penalty (R-DPO) or per-token rewards (SimPO, averaged IPO)",
    "data": "look at these pairs: near-duplicates, swapped labels, responses that differ in a few tokens",
    # Half the steps: a third of the fall, over half of the margin.
    "early": "stop earlier, or go back to an earlier checkpoint",
    "clip": "relax clipping or lower the learning rate: at present the norm is set by clipping",
    "objective": "try another objective: a loss acts on a pair only through d_w and d_l",
    "record": "record these too in the next run",
}
"""Key → advice, what helped most first."""


def _meets_conditions(about: Manifest) -> bool:
    """Whether one of the run's shapings makes every pair meet both conditions."""
    return any(
        SHAPINGS[name].meets_conditions({**SHAPINGS[name].defaults, **options})
        for name, options in shaping_options(about).items()
        if name in SHAPINGS
    )


def _has_likelihood(about: Manifest) -> bool:
    """Whether the run's loss has a likelihood term on chosen, the objective's or an added one."""
    row, weight = OBJECTIVES.get(str(about.objective.name)), about.objective.hyper.get("nll")
    return (row is not None and row.likelihood) or (isinstance(weight, int | float) and weight > 0)


def _changes(what: str) -> Callable[[Manifest], bool]:
    """Whether the run's objective or one of its shapings changes the pulls in this way."""

    def follows(about: Manifest) -> bool:
        row = OBJECTIVES.get(str(about.objective.name))
        hyper = {**row.defaults, **about.objective.hyper} if row is not None else {}
        shapings = [SHAPINGS[name] for name in shaping_options(about) if name in SHAPINGS]
        return (row is not None and what in row.changes_of(hyper)) or any(what in one.changes for one in shapings)

    return follows


IN_USE: dict[str, Callable[[Manifest], bool]] = {
    "normalise": _meets_conditions,
    "sft": _has_likelihood,
    **{what: _changes(what) for what in CHANGES},
}
"""Key → whether a run with this run.json follows the advice already; what its methods do is read from their rows."""
