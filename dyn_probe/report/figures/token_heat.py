"""Token heat map: the cosines of a tracked pair's tokens at its last recorded step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.style import empty_figure
from dyn_probe.report.token_draw import heat_figure
from dyn_probe.token_analysis import recorded_heats

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def token_heat(trace: Trace) -> Figure:
    """Shows: for the first tracked pair, at its last recorded step, the cosine of every chosen token's gradient
    (down) with every rejected token's (across). Behind each token stands its mask, from 0 to 1, where the run learned
    token masks.

    How to read: red entries move both responses in the same direction, blue ones in opposite directions. Thin lines
    mark where the responses first differ. On the diagonal, a blue label followed by a red suffix means that the suffix
    causes the entanglement: the inner product of the responses is the sum of all entries, weighted by the tokens'
    gradient norms.

    Needs: token heat maps (--tokens-every).
    """
    lack = why_absent(trace, "tokens.cosine")
    if lack:
        return empty_figure("Token heat map", lack)
    heats = recorded_heats(trace.tokens)
    last = [heat for heat in heats if heat.pair_id == heats[0].pair_id][-1]
    return heat_figure(last)
