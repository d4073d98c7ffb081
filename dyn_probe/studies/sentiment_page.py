"""The sentiment study judged: claims with expected and measured numbers, the paper's figures, one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.curves import Curve, draw_line, label_ends
from dyn_probe.report.frames import Floats
from dyn_probe.report.output import check_folder
from dyn_probe.report.style import RUN_COLOURS, name_panel, new_figure, rule
from dyn_probe.report.token_draw import heat_figure
from dyn_probe.studies.arms.arm_figures import figures_of
from dyn_probe.studies.arms.claim_rows import Claim, judge
from dyn_probe.studies.arms.step_means import EARLY, LATE, by_step, change, cosine
from dyn_probe.studies.claims import ERRORS, Finding
from dyn_probe.studies.page import write_page
from dyn_probe.token_analysis import TokenHeat, recorded_heats
from dyn_probe.trace.reader import Trace

Runs = Mapping[str, Sequence[Trace]]
"""Style → its traces, one per seed."""

COLOURS = dict(zip(("single-token", "short-suffix", "long-suffix", "prefix-suffix"), RUN_COLOURS, strict=False))
CLAIMS = (
    Claim("chosen rises for single-token (Fig. 3)", "Δ chosen > 0", "single-token", "chosen"),
    Claim("chosen falls with a short suffix (Fig. 3)", "Δ chosen < 0", "short-suffix", "chosen", above=False),
    Claim("chosen falls with a long suffix (Fig. 3)", "Δ chosen < 0", "long-suffix", "chosen", above=False),
    Claim("chosen falls with prefix and suffix (Fig. 3)", "Δ chosen < 0", "prefix-suffix", "chosen", above=False),
    Claim(
        "chosen falls more with the long suffix than the short (Fig. 3)", "long − short < 0", "long-suffix", "chosen",
        above=False, against="short-suffix",
    ),
    Claim(
        "cosine is negative for single-token (Fig. 4a)", "cosine < 0 at the start", "single-token", "cosine_start",
        above=False,
    ),
    Claim("and stays so (Fig. 4a)", "cosine < 0 at the end", "single-token", "cosine_end", above=False),
    Claim(
        "cosine is larger with a suffix (Fig. 4a)", "short − single > 0 at the start", "short-suffix", "cosine_start",
        against="single-token",
    ),
    Claim(
        "and larger still with a longer one (Fig. 4a)", "long − short > 0 at the start", "long-suffix", "cosine_start",
        against="short-suffix",
    ),
    Claim(
        "cosine is positive with the long suffix (Fig. 4a)", "cosine > 0 at the start", "long-suffix", "cosine_start",
    ),
    Claim(
        "differing tokens have a negative cosine (Fig. 4b)", "token cosine < 0 before the first update",
        "prefix-suffix", "token_differ", above=False, extremes=True,
    ),
    Claim(
        "identical tokens after them have a positive one (Fig. 4b)", "token cosine > 0.5 before the first update",
        "prefix-suffix", "token_same", limit=0.5, extremes=True,
    ),
)  # fmt: skip
"""Every claim of the paper's §4.3."""


def claims(runs: Runs) -> list[Finding]:
    """The claims judged on traces; those of a style that was not run are "not run"."""
    figures = {style: {seed: figures_of(trace) for seed, trace in enumerate(runs[style])} for style in runs}
    return judge(CLAIMS, figures)


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


def write_study(
    runs: Runs, out: Path, settings: Mapping[str, Any], force: bool = False, missing: Sequence[str] = ()
) -> tuple[Path, list[Finding]]:
    """Judge and draw; returns the page (report.html, its figures and claims.csv beside it) and the claims.

    Args:
        runs: of the styles that were run.
        missing: a line for each arm that was not run.

    Raises:
        BadInput: ``out`` holds something other than a report.
    """
    check_folder(out, force)
    runs = {style: traces for style, traces in runs.items() if traces}
    judged = claims(runs)
    data = {
        "settings": {name: str(value) for name, value in settings.items()},
        "seeds": max(map(len, runs.values())),
        "missing": list(missing),
        "errors": f"{ERRORS:g}",
        "late": f"{LATE:.0%}",
        "early": f"{EARLY:.1%}",
    }
    drawn = {name: row for name, row in FIGURES.items() if name != "figure_4b" or "prefix-suffix" in runs}
    return write_page(out, "study.html.j2", drawn, runs, judged, data), judged
