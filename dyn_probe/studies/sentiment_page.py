"""The sentiment study judged: claims with expected and measured numbers, the paper's figures, one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.curves import Curve, draw_line, label_ends
from dyn_probe.report.frames import Floats, numbers
from dyn_probe.report.output import check_folder
from dyn_probe.report.style import RUN_COLOURS, name_panel, new_figure, rule
from dyn_probe.report.token_draw import heat_figure
from dyn_probe.studies.claims import ERRORS, Estimate, Finding, differences, finding
from dyn_probe.studies.page import write_page
from dyn_probe.token_analysis import TokenHeat, counterparts, first_difference, recorded_heats
from dyn_probe.trace.reader import Trace

Runs = Mapping[str, Sequence[Trace]]
"""Style → its traces, one per seed."""

COLOURS = dict(zip(("single-token", "short-suffix", "long-suffix", "prefix-suffix"), RUN_COLOURS, strict=False))
LATE, EARLY = 0.25, 0.125
"""Shares of the recorded steps, the last and the first, over which "at the end" and "at the start" are means."""


def by_step(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> tuple[Floats, Floats]:
    """(steps ``[S]``, mean over the pairs of a step and then its seeds ``[seeds, S]``)."""
    steps = np.unique(numbers(traces[0].pairs, "step"))
    means = [[float(np.mean(value(trace)[numbers(trace.pairs, "step") == step])) for step in steps] for trace in traces]
    return steps, np.array(means)


def change(side: str) -> Callable[[Trace], Floats]:
    """Change of log π since the reference, per row (nats/sequence)."""
    return lambda trace: numbers(trace.pairs, f"logp_{side}") - numbers(trace.pairs, f"ref_logp_{side}")


def cosine(trace: Trace) -> Floats:
    """Cosine of the chosen and rejected gradient, per row."""
    return numbers(trace.pairs, "grad_cosine")


def at_end(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> list[Estimate]:
    """Each seed's mean over the pairs of the last steps."""
    return [_mean_of_steps(trace, value, last=True) for trace in traces]


def at_start(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> list[Estimate]:
    """Each seed's mean over the pairs of the first steps, before training has moved much."""
    return [_mean_of_steps(trace, value, last=False) for trace in traces]


def _mean_of_steps(trace: Trace, value: Callable[[Trace], Floats], last: bool) -> Estimate:
    at = numbers(trace.pairs, "step")
    steps = np.unique(at)
    kept = steps[-max(1, round(LATE * len(steps))) :] if last else steps[: max(1, round(EARLY * len(steps)))]
    return Estimate.of(value(trace)[np.isin(at, kept)])


def token_cosines(traces: Sequence[Trace], same: bool) -> list[Estimate]:
    """Each seed's mean cosine, over the tracked pairs at the first record, of aligned tokens that differ, or that are
    the same and come after the first difference (those before it have the same gradient, hence a cosine of 1)."""
    return [_aligned_cosine(trace, same) for trace in traces]


def _aligned_cosine(trace: Trace, same: bool) -> Estimate:
    heats = [heat for heat in recorded_heats(trace.tokens) if heat.step == int(trace.tokens["step"].min())]
    found = [
        (heat.pair_id, heat.cosine[one.i, one.j])
        for heat in heats
        for one in counterparts(heat)
        if one.same == same
        and one.i >= first_difference(heat.tokens_chosen, heat.tokens_rejected)
        and np.isfinite(one.cosine)
    ]
    if not found:
        return Estimate(*[float("nan")] * 4)
    pairs, cosines = zip(*found, strict=True)
    return Estimate.of(np.array(cosines), pairs)


def claims(runs: Runs) -> list[Finding]:
    """Every claim of the paper's §4.3, judged seed by seed against its standard error."""
    rose = {style: at_end(traces, change("chosen")) for style, traces in runs.items()}
    first = {style: at_start(traces, cosine) for style, traces in runs.items()}
    single, short, long, prefix = (rose[style] for style in COLOURS)
    differ, same = (token_cosines(runs["prefix-suffix"], same) for same in (False, True))
    return [
        finding("chosen rises for single-token (Fig. 3)", "Δ chosen > 0", "Δ chosen", single, above=True),
        finding("chosen falls with a short suffix (Fig. 3)", "Δ chosen < 0", "Δ chosen", short, above=False),
        finding("chosen falls with a long suffix (Fig. 3)", "Δ chosen < 0", "Δ chosen", long, above=False),
        finding("chosen falls with prefix and suffix (Fig. 3)", "Δ chosen < 0", "Δ chosen", prefix, above=False),
        finding(
            "chosen falls more with the long suffix than the short (Fig. 3)", "long − short < 0", "difference",
            differences(long, short), above=False,
        ),
        finding(
            "cosine is negative for single-token (Fig. 4a)", "cosine < 0 at the start", "cosine",
            first["single-token"], above=False,
        ),
        finding(
            "and stays so (Fig. 4a)", "cosine < 0 at the end", "cosine", at_end(runs["single-token"], cosine),
            above=False,
        ),
        finding(
            "cosine is larger with a suffix (Fig. 4a)", "short − single > 0 at the start", "difference",
            differences(first["short-suffix"], first["single-token"]), above=True,
        ),
        finding(
            "and larger still with a longer one (Fig. 4a)", "long − short > 0 at the start", "difference",
            differences(first["long-suffix"], first["short-suffix"]), above=True,
        ),
        finding(
            "cosine is positive with the long suffix (Fig. 4a)", "cosine > 0 at the start", "cosine",
            first["long-suffix"], above=True,
        ),
        finding(
            "differing tokens have a negative cosine (Fig. 4b)", "token cosine < 0 before the first update", "cosine",
            differ, above=False, extremes=True,
        ),
        finding(
            "identical tokens after them have a positive one (Fig. 4b)", "token cosine > 0.5 before the first update",
            "cosine",
            same, above=True, limit=0.5, extremes=True,
        ),
    ]  # fmt: skip


def figure_3(runs: Runs) -> Figure:
    """Change of the chosen and the rejected log-probability over training, a line per style."""
    figure, axes = new_figure(2, height=3.3)
    for ax, side in zip(axes, ("chosen", "rejected"), strict=True):
        name_panel(ax, f"{side.capitalize()}: change since the reference", y="Δ log π (nats/sequence)")
        _lines(ax, runs, change(side))
        rule(ax, 0)
    return figure


def figure_4a(runs: Runs) -> Figure:
    """Cosine of the two gradients over training, a line per style."""
    figure, (ax,) = new_figure(1, height=3.3, width=6.4)
    name_panel(ax, "Cosine of chosen and rejected gradient", y=r"$\cos(g_w, g_l)$")
    _lines(ax, runs, cosine)
    rule(ax, 0)
    return figure


def figure_4b(runs: Runs) -> Figure:
    """Token cosines of one prefix-suffix pair before the first update."""
    return heat_figure(first_heat(runs), "prefix-suffix, before the first update")


def first_heat(runs: Runs) -> TokenHeat:
    """The first map of the first tracked pair in the prefix-suffix style."""
    return recorded_heats(runs["prefix-suffix"][0].tokens)[0]


FIGURES: dict[str, tuple[Callable[[Runs], Figure], str]] = {
    "figure_3": (figure_3, "Figure 3: log-probabilities over training"),
    "figure_4a": (figure_4a, "Figure 4a: cosine of the gradients"),
    "figure_4b": (figure_4b, "Figure 4b: cosines of single tokens"),
}


def _lines(ax: Axes, runs: Runs, value: Callable[[Trace], Floats]) -> None:
    """Mean over seeds as a line, their range as a band; smoothed over three steps."""
    ends = []
    for style, traces in runs.items():
        steps, means = by_step(traces, value)
        smooth = np.array([np.convolve(row, np.ones(3) / 3, mode="valid") for row in means])
        x = steps[1:-1] if len(steps) > 2 else steps
        smooth = smooth if len(steps) > 2 else means
        ax.fill_between(x, smooth.min(0), smooth.max(0), color=COLOURS[style], alpha=0.15, linewidth=0)
        ends.append(draw_line(ax, x, smooth.mean(0), Curve(style, smooth.mean(0), COLOURS[style])))
    label_ends(ax, [end for end in ends if end is not None])


def write_study(runs: Runs, out: Path, settings: Mapping[str, Any], force: bool = False) -> tuple[Path, list[Finding]]:
    """Judge and draw; returns the page (report.html, its figures and claims.csv beside it) and the claims.

    Raises:
        BadInput: ``out`` holds something other than a report.
    """
    check_folder(out, force)
    judged = claims(runs)
    data = {
        "settings": {name: str(value) for name, value in settings.items()},
        "seeds": len(next(iter(runs.values()))),
        "errors": f"{ERRORS:g}",
        "late": f"{LATE:.0%}",
        "early": f"{EARLY:.1%}",
    }
    return write_page(out, "study.html.j2", FIGURES, runs, judged, data), judged


def study_lines(judged: Sequence[Finding]) -> list[str]:
    """The claims as lines for a terminal: verdict, claim, what was expected, each seed with its standard error."""
    wide, widest = (
        max(len(text) for text in texts) for texts in zip(*((o.claim, o.verdict) for o in judged), strict=True)
    )
    return [f"{one.verdict:{widest}}  {one.claim:{wide}}  {one.expected}: {one.by_seed}" for one in judged]
