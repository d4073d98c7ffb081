"""Build a report: traces → plain data → one HTML file, beside its figures and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from dyn_probe.errors import BadInput
from dyn_probe.report.compare_data import comparison_data
from dyn_probe.report.figures import COMPARISONS, FIGURES
from dyn_probe.report.interactive.library import scripts, styles
from dyn_probe.report.output import check_folder, data_uri, render, write_files
from dyn_probe.report.outputs.judged import check_judged
from dyn_probe.report.page_data import report_data
from dyn_probe.report.side_by_side.opened import opened
from dyn_probe.report.tables import comparison_tables, run_tables
from dyn_probe.report.token_view import script_hash
from dyn_probe.report.unfit import naming_runs
from dyn_probe.token_analysis import visible
from dyn_probe.trace.references import refuse_beside, trace_folder

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

PAGE = "report.html"
LETTER = re.compile(r"(?<!\w)([abdghmnrxy])_([wl])(?!\w)")


def build_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    force: bool = False,
    held_out: Mapping[str, Any] | None = None,
    judged: Path | None = None,
) -> Path:
    """Write the report of one run, or the comparison of several.

    Args:
        runs: folders of traces; several are compared with the first.
        out: folder of the report; by default RUN/report, or for several runs `compare-A-B` beside the first.
        force: write into `out` even if it is a folder of something else. An older report is always replaced.
        held_out: what a grid found on the held-out pairs (``train.grid.outcome_data``), for a comparison.
        judged: what a judge said of the outputs of the runs (``outputs.judged``), for a comparison.

    Returns:
        Path of report.html: one file that needs nothing else. PNG, SVG and CSV files are written beside it.

    Raises:
        TraceError: a run cannot be read.
        BadInput: no runs, the same run twice, `out` may not be written, or `judged` does not fit the runs.
    """
    check_judged(len(runs), judged)
    if not runs:
        raise BadInput("wanted the folder of at least one run, got none; write: dyn-probe report RUN")
    paths = [Path(run) for run in runs]
    folder = Path(out) if out is not None else default_folder(paths)
    check_folder(folder, force)
    traces = opened(paths)
    with naming_runs(paths):
        data, drawn, tables = _one(*traces.values()) if len(traces) == 1 else _several(traces, held_out, judged)
        files, images = figure_files(drawn)
        files |= tables
        files[PAGE] = page(data, images).encode("utf-8", "replace")
    write_files(folder, files, {name: entry for name, entry in data.items() if name != "interactive"})
    return folder / PAGE


def default_folder(runs: Sequence[Path]) -> Path:
    """RUN/report; for several runs a folder beside the first, named after all of them (three at most).

    Raises:
        BadInput: the first is a reference trace, beside which nothing is written.
    """
    refuse_beside(runs[0], "report")
    if len(runs) == 1:
        return runs[0] / "report"
    names = [trace_folder(run).resolve().name for run in runs]
    more = [f"and-{len(names) - 3}-more"] if len(names) > 3 else []
    return runs[0].resolve().parent / "-".join(["compare", *names[:3], *more])


def _one(trace: Trace) -> tuple[dict[str, Any], Iterable[tuple[str, Figure]], dict[str, bytes]]:
    data = report_data(trace)
    drawn = ((entry["name"], FIGURES[entry["name"]].draw(trace)) for entry in data["figures"])
    return data, drawn, run_tables(trace, data)


def _several(
    traces: Mapping[str, Trace], held_out: Mapping[str, Any] | None, judged: Path | None
) -> tuple[dict[str, Any], Iterable[tuple[str, Figure]], dict[str, bytes]]:
    data = comparison_data(traces, held_out, judged)
    drawn = ((name, row.draw(traces)) for name, row in COMPARISONS.items())
    return data, drawn, comparison_tables(traces, data)


def figure_files(drawn: Iterable[tuple[str, Figure]]) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """(files by name, images by figure name: address for an <img> and width in inches)."""
    files: dict[str, bytes] = {}
    images = {}
    for name, figure in drawn:
        svg, png = render(figure)
        files |= {f"figures/{name}.svg": svg, f"figures/{name}.png": png}
        width, height = figure.get_size_inches()
        images[name] = {"address": data_uri(svg), "width": float(width), "height": float(height)}
    return files, images


def page(data: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]) -> str:
    """The HTML page. Autoescape is on: all text from data is shown as text, whatever it holds."""
    loader = PackageLoader("dyn_probe.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["letters"] = letters
    environment.filters["token"] = visible
    interactive = bool(data.get("interactive"))
    token_script, page_scripts = (
        resource_text("tokens.js") if data.get("tokens") else "",
        scripts() if interactive else [],
    )
    running = [script for script in (token_script, *page_scripts) if script]
    return environment.get_template("report.html.j2").render(
        data=data,
        images=images,
        token_script=Markup(token_script),
        page_scripts=[Markup(script) for script in page_scripts],
        library_style=Markup(styles() if interactive else ""),
        script_sources=" ".join(map(script_hash, running)) or "'none'",
    )


def resource_text(name: str) -> str:
    """A file of the templates' folder."""
    return (resources.files("dyn_probe.report") / "templates" / name).read_text(encoding="utf-8")


def letters(text: str) -> Markup:
    """Text with g_w, d_l, … set as letters with an index; everything else is escaped."""
    return Markup(LETTER.sub(r"\1<sub>\2</sub>", str(escape(text))))
