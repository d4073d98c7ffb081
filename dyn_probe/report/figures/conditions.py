"""Inner product, cosine and the two conditions over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import Floats, finite, numbers, step_bins
from dyn_probe.report.style import NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def entanglement(trace: Trace) -> Figure:
    """Shows: the inner product ⟨g_w,g_l⟩, its cosine, and the two conditions as ratios: chosen
    d_l⟨g_w,g_l⟩/(d_w‖g_w‖²), rejected d_w⟨g_w,g_l⟩/(d_l‖g_l‖²). Line: median; dark band: 25th to 75th, light
    band: 5th to 95th percentile of the pairs.

    How to read: the larger the inner product, the more chosen is pulled down when rejected is pushed down. In the
    right panel, a chosen ratio above 1 means that the push on rejected outweighs the pull on chosen, so chosen falls;
    a rejected ratio above 1 means that rejected rises. Both below 1 is case 1, the ideal one; below 0 the two pulls
    reinforce each other. The left axis is logarithmic beyond the median size where the tails are long; the right axis
    is cut off at ±3.

    Needs: the gradients of the pairs; for the right panel, the pulls.
    """
    lack = why_absent(trace, "pairs.grad_inner")
    if lack:
        return empty_figure("Gradient entanglement", lack)
    figure, (left, middle, right) = new_figure(3, height=3.2)
    pairs, bins = trace.pairs, step_bins(trace.pairs)
    name_panel(left, "Inner product", r"$\langle g_w, g_l\rangle$, (nats per parameter unit)²")
    rule(left, 0)
    draw_bands(left, bins, [Curve("", numbers(pairs, "grad_inner"), NEUTRAL)], wide=True)
    name_panel(middle, "Cosine", r"$\langle g_w, g_l\rangle \, / \, \Vert g_w\Vert\Vert g_l\Vert$")
    rule(middle, 0)
    draw_bands(middle, bins, [Curve("", numbers(pairs, "grad_cosine"), NEUTRAL)], wide=True)
    name_panel(right, "Conditions", "share of its own pull that is undone")
    ratios: dict[str, Floats] = {
        "chosen": pair_columns.condition_chosen(pairs),
        "rejected": pair_columns.condition_rejected(pairs),
    }
    if not any(len(finite(values)) for values in ratios.values()):
        say(right, why_absent(trace, "pairs.pull_chosen") or "the pulls are 0 in every row")
        return figure
    rule(right, 1, "limit")
    curves = [Curve(side, values, SIDE_COLOURS[side]) for side, values in ratios.items()]
    draw_bands(right, bins, curves, within=(-3, 3))
    return figure
