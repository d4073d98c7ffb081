"""What the gate of Gate-DPO would be for every kind of probe response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.mass.probe_kinds import KINDS
from dyn_probe.objectives import SHAPINGS
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import Floats, numbers, step_bins
from dyn_probe.report.run_facts import shaping_options
from dyn_probe.report.style import RUN_COLOURS, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule, say
from dyn_probe.trace.run_fields import Manifest

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLE = "The gate over kinds of response"
PANELS = {
    "rejected and what is like it": ("rej",),
    "chosen and what is like it": ("cho",),
    "unrelated": ("irr", "rand"),
}
"""Panel → beginnings of its kinds' names."""


def gate_kinds(trace: Trace) -> Figure:
    """Shows: the gate g = σ(α(s − τ)) of Gate-DPO if each kind of probe response stood in the place of rejected, s its
    mean token probability (geometric); with the run's own α and τ, else with the defaults. Line: median; band:
    interquartile range.

    How to read: only rejected responses are gated in training, but the gate sees nothing of them but their
    probability. It does what it is for where it closes on rejected as that becomes improbable, and is blunt where it
    would close as much on rephrased rejected responses (reject_gptsemantic), which the loss still ought to push down,
    or on everything that is improbable from the start.

    Needs: probe responses (--mass-every), and a gate on the mean token probability or none.
    """
    lack = why_absent(trace, "mass.logp_token")
    options = gate_options(trace.about)
    if lack or options is None:
        other = "not recorded: the gate of this run reads a quantile, and probe responses have mean probabilities"
        return empty_figure(TITLE, lack or other)
    kinds, bins = trace.mass["kind"].astype(str).to_numpy(), step_bins(trace.mass)
    gate = gate_of(numbers(trace.mass, "logp_token"), options)
    figure, axes = new_figure(3, height=3.2, width=12.6)
    for ax, (title, starts) in zip(axes, PANELS.items(), strict=True):
        name_panel(ax, f"Gate on {title}", "g")
        there = [kind for kind in KINDS if kind in kinds and kind.startswith(starts)]
        colours = {kind: SIDE_COLOURS.get(kind, RUN_COLOURS[k % len(RUN_COLOURS)]) for k, kind in enumerate(there)}
        rule(ax, 0.5, "s = τ")
        if there:
            curves = [Curve(kind, np.where(kinds == kind, gate, np.nan), colour) for kind, colour in colours.items()]
            draw_bands(ax, bins, curves)
            ax.set_ylim(-0.02, 1.02)
        else:
            say(ax, "no such probe response")
    return figure


def gate_of(logp_token: Floats, options: dict[str, Any]) -> Floats:
    """g = σ(α(s − τ)), s = e^(mean token log-probability)."""
    x = float(options["alpha"]) * (np.exp(logp_token) - float(options["tau"]))
    return 1 / (1 + np.exp(-x))


def gate_options(about: Manifest) -> dict[str, Any] | None:
    """α and τ of the run's gate, else the defaults of the one on the mean probability; None if the run's reads a
    quantile."""
    gates = {name: row for name, row in SHAPINGS.items() if "gate" in row.columns}
    used = {name: options for name, options in shaping_options(about).items() if name in gates}
    mean = next(name for name, row in gates.items() if "q" not in row.defaults)
    if used and mean not in used:
        return None
    return {**gates[mean].defaults, **used.get(mean, {})}
