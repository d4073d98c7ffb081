"""The figures: one per file, one row each in FIGURES. A figure takes a trace, returns a Figure and changes
nothing.

To add one, write `def name(trace) -> Figure` in its own file, with a docstring in three paragraphs (Shows,
How to read, Needs: printed under the figure), and add a row here. Where columns are null the figure says
what is missing. Its texts contain no number that an option of the run can change: such numbers belong in verdicts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report.availability import missing
from dyn_probe.report.figures.case_shares import cases
from dyn_probe.report.figures.changes_by_pair import movement
from dyn_probe.report.figures.clipping import clipping
from dyn_probe.report.figures.conditions import entanglement
from dyn_probe.report.figures.effective_magnitudes import effective_magnitudes
from dyn_probe.report.figures.gate_kinds import gate_kinds
from dyn_probe.report.figures.grad_norms import grad_norms
from dyn_probe.report.figures.layer_cosines import layers
from dyn_probe.report.figures.likeness import likeness
from dyn_probe.report.figures.logps import log_probs
from dyn_probe.report.figures.margin import margin
from dyn_probe.report.figures.margin_for_kl import compare_kl, margin_for_kl
from dyn_probe.report.figures.mass import mass
from dyn_probe.report.figures.mass_deltas import compare_deltas
from dyn_probe.report.figures.mass_distributions import mass_distributions
from dyn_probe.report.figures.mass_entropy import mass_entropy
from dyn_probe.report.figures.mass_split import mass_split
from dyn_probe.report.figures.mass_toy import squeezing_toy
from dyn_probe.report.figures.predicted import predicted
from dyn_probe.report.figures.pulls import pulls
from dyn_probe.report.figures.push_stack import pushes
from dyn_probe.report.figures.response_parts import response_parts
from dyn_probe.report.figures.several_runs import (
    compare_entanglement,
    compare_log_probs,
    compare_margin,
    compare_pairs,
)
from dyn_probe.report.figures.shaping_factors import PANELS, shaping
from dyn_probe.report.figures.story import story
from dyn_probe.report.figures.token_evolution import token_evolution
from dyn_probe.report.figures.token_heat import token_heat
from dyn_probe.report.figures.token_parts import token_parts

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class FigureRow:
    """One figure: function of a trace, title, columns it needs; `optional`: left out where all are null."""

    draw: Callable[..., Figure]
    title: str
    needs: tuple[str, ...]
    optional: bool = False

    @property
    def text(self) -> dict[str, str]:
        """The docstring's paragraphs by their first word: Shows, How to read, Needs."""
        paragraphs = inspect.cleandoc(self.draw.__doc__ or "").split("\n\n")
        pairs = (" ".join(paragraph.split()).partition(": ") for paragraph in paragraphs)
        return {label: body for label, _, body in pairs}


_SHAPING = tuple(f"pairs.{column}" for _, _, columns in PANELS for column, _, _ in columns)

_PARTS = tuple(f"pairs.logp_{side}_{part}" for side in ("chosen", "rejected") for part in ("before", "at", "after"))

FIGURES: dict[str, FigureRow] = {
    "story": FigureRow(story, "What happened, and what pushed it", ("pairs.logp_chosen", "pairs.logp_rejected")),
    "log_probs": FigureRow(
        log_probs, "Log-probabilities", ("pairs.logp_chosen", "pairs.logp_rejected", "pairs.len_chosen")
    ),
    "movement": FigureRow(movement, "Movement of each pair", ("pairs.logp_chosen", "pairs.logp_rejected")),
    "margin": FigureRow(margin, "Margin, accuracy, loss", ("pairs.logp_chosen", "pairs.logp_rejected")),
    "pushes": FigureRow(pushes, "What moved chosen and rejected", ("pushes.total",), optional=True),
    "cases": FigureRow(cases, "Cases", ("pairs.case_plain",)),
    "entanglement": FigureRow(
        entanglement, "Gradient entanglement", ("pairs.grad_inner", "pairs.grad_cosine", "pairs.pull_chosen")
    ),
    "grad_norms": FigureRow(grad_norms, "Gradient norms", ("pairs.grad_norm_chosen", "pairs.grad_norm_rejected")),
    "pulls": FigureRow(pulls, "Pulls of the objective", ("pairs.pull_chosen", "pairs.pull_rejected")),
    "effective_magnitudes": FigureRow(
        effective_magnitudes,
        "Effective magnitudes",
        ("pairs.pull_chosen", "pairs.pull_rejected", "pairs.grad_norm_chosen", "pairs.grad_norm_rejected"),
    ),
    "shaping": FigureRow(shaping, "Gradient shaping", _SHAPING, optional=True),
    "layers": FigureRow(layers, "Entanglement by layer", ("layers.grad_inner",)),
    "likeness": FigureRow(
        likeness,
        "How alike the responses are",
        ("pairs.edit_distance", "pairs.grad_cosine", "pairs.realised_delta_chosen", "pairs.realised_delta_rejected"),
    ),
    "margin_for_kl": FigureRow(
        margin_for_kl,
        "KL to the reference",
        ("steps.eval_kl_ref", "steps.eval_kl_ref_sampled", "mass.kl_ref", "mass.kl_ref_sampled"),
        optional=True,
    ),
    "predicted": FigureRow(
        predicted,
        "Predicted and realised change",
        ("pairs.predicted_delta_chosen", "pairs.realised_delta_chosen"),
    ),
    "clipping": FigureRow(clipping, "Gradient norm and clipping", ("steps.grad_norm", "steps.grad_norm_clipped")),
    "mass": FigureRow(mass, "Probability mass", ("mass.logp_token",), optional=True),
    "mass_split": FigureRow(mass_split, "Split of the mass", ("mass.missing_mass", "mass.rival_mass"), optional=True),
    "mass_entropy": FigureRow(
        mass_entropy, "Entropy and rank", ("mass.entropy", "mass.rank", "mass.top1"), optional=True
    ),
    "gate_kinds": FigureRow(gate_kinds, "The gate over kinds of response", ("mass.logp_token",), optional=True),
    "mass_distributions": FigureRow(
        mass_distributions, "Next-token distributions before and after", ("distributions.probabilities",), optional=True
    ),
    "squeezing_toy": FigureRow(squeezing_toy, "Squeezing in a toy model", ("mass.logp_token",), optional=True),
    "response_parts": FigureRow(response_parts, "Which part of a response moved", _PARTS),
    "token_heat": FigureRow(token_heat, "Token heat map", ("tokens.cosine",), optional=True),
    "token_evolution": FigureRow(token_evolution, "Token heat maps over training", ("tokens.cosine",), optional=True),
    "token_parts": FigureRow(token_parts, "Where entanglement comes from", ("tokens.inner",), optional=True),
}

COMPARISONS: dict[str, FigureRow] = {
    "compare_log_probs": FigureRow(compare_log_probs, "Log-probabilities", ("pairs.logp_chosen",)),
    "compare_margin": FigureRow(compare_margin, "Margin and accuracy", ("pairs.logp_chosen",)),
    "compare_entanglement": FigureRow(
        compare_entanglement, "Entanglement, pulls, case 2", ("pairs.grad_cosine", "pairs.case_plain")
    ),
    "compare_deltas": FigureRow(compare_deltas, "Change per method", ("mass.logp", "mass.argmax_logp")),
    "compare_kl": FigureRow(compare_kl, "Margin for KL", ("steps.eval_kl_ref", "steps.eval_log_ratio_margin")),
    "compare_pairs": FigureRow(compare_pairs, "The same pairs", ("pairs.logp_chosen",)),
}
"""Figures of several runs: `draw` takes a mapping of run name → trace."""


def figures_for(trace: Trace) -> dict[str, FigureRow]:
    """The rows of FIGURES that this trace's report shows: all but the optional ones without any data."""
    return {
        name: row
        for name, row in FIGURES.items()
        if not row.optional or len(missing(trace, row.needs)) < len(row.needs)
    }
