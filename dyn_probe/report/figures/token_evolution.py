"""Token heat maps over training, as small multiples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.style import empty_figure
from dyn_probe.report.token_draw import heats_figure, spread_steps
from dyn_probe.token_analysis import recorded_heats

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def token_evolution(trace: Trace) -> Figure:
    """Shows: the token cosines of the first tracked pair at up to six recorded steps, the first and the last included.

    How to read: chosen tokens down, rejected tokens across, the same colours in all panels. Where the diagonal turns
    from blue to red, the update no longer separates the two tokens; grey is a token whose gradient has vanished.

    Needs: token heat maps (--tokens-every).
    """
    lack = why_absent(trace, "tokens.cosine")
    if lack:
        return empty_figure("Token heat maps over training", lack)
    heats = recorded_heats(trace.tokens)
    return heats_figure(spread_steps([heat for heat in heats if heat.pair_id == heats[0].pair_id]))
