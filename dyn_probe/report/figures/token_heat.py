"""Token heat map: the cosines of a followed pair's tokens at its last recorded step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report.needs import why_absent
from dyn_probe.report.style import empty_figure
from dyn_probe.report.token_draw import heat_figure
from dyn_probe.token_analysis import recorded_heats

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def token_heat(trace: Trace) -> Figure:
    """Shows: for the first followed pair, at its last recorded step, the cosine of every chosen token's gradient
    (down) with every rejected token's (across).

    How to read: red entries push both responses the same way, blue ones tell them apart. Thin lines stand where the
    responses first differ. On the diagonal, a blue label with a red suffix is entanglement made by the suffix: the
    inner product of the responses is the sum of all entries, weighted by the tokens' gradient norms.

    Needs: token heat maps of followed pairs.
    """
    lack = why_absent(trace, "tokens.cosine")
    if lack:
        return empty_figure("Token heat map", lack)
    heats = recorded_heats(trace.tokens)
    last = [heat for heat in heats if heat.pair_id == heats[0].pair_id][-1]
    return heat_figure(last)
