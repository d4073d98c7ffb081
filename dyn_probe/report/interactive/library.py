"""What makes the page answer: its data, the vendored chart library, and the page's own script."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from dyn_probe.report.interactive.pair_view import pair_view
from dyn_probe.report.interactive.step_charts import step_charts
from dyn_probe.report.push_parts import PARTS

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

UPLOT = "uplot-1.6.32"
"""Folder of the library in `vendor/`."""


def page_figures(trace: Trace) -> dict[str, Any] | None:
    """Data of the charts and of the pairs; None where the run has neither."""
    charts, pairs = step_charts(trace), pair_view(trace)
    places = sorted({chart["place"] for chart in charts})
    return {"charts": charts, "places": places, "pairs": pairs, "parts": PARTS} if charts or pairs else None


def scripts() -> list[str]:
    """The scripts of the page in their order: the library, then the page's own."""
    return [vendored("uPlot.iife.min.js").strip(), (_report() / "templates" / "touch.js").read_text(encoding="utf-8")]


def styles() -> str:
    """The library's style sheet."""
    return vendored("uPlot.min.css").strip()


def vendored(name: str) -> str:
    """A file of the vendored library."""
    return (_report() / "vendor" / UPLOT / name).read_text(encoding="utf-8")


def _report() -> Any:
    return resources.files("dyn_probe.report")
