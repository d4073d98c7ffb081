"""What the pages of all studies share: their figures as files and images, and the template's environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from dyn_probe.report.export.cells import csv_bytes
from dyn_probe.report.output import data_uri, render, write_files

Runs = TypeVar("Runs")


def draw_all(
    figures: Mapping[str, tuple[Callable[[Runs], Figure], str]], runs: Runs
) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """Every figure as (files, images): PNG and SVG by file name; title, text and address for the page."""
    files: dict[str, bytes] = {}
    images = []
    for name, (draw, title) in figures.items():
        svg, png = render(draw(runs))
        files |= {f"{name}.png": png, f"{name}.svg": svg}
        images.append({"title": title, "text": " ".join((draw.__doc__ or "").split()), "address": data_uri(svg)})
    return files, images


def write_page(
    out: Path,
    template: str,
    figures: Mapping[str, tuple[Callable[[Runs], Figure], str]],
    runs: Runs,
    judged: Sequence[Any],
    data: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame] | None = None,
    **filters: Callable[..., str],
) -> Path:
    """Draw and write: report.html, its figures, claims.csv and further tables as CSV beside it; returns the page.

    Args:
        out: a folder that ``check_folder`` has passed.
        judged: the claims (data classes); they also stand in ``data`` for the template.
        tables: file name → rows.
    """
    found = [asdict(one) for one in judged]
    files, images = draw_all(figures, runs)
    files |= {name: csv_bytes(rows) for name, rows in (tables or {}).items()} | {"claims.csv": csv_bytes(found)}
    whole = {"claims": found, **data}
    files["report.html"] = page(template, whole, images, **filters)
    write_files(out, files, whole)
    return out / "report.html"


def page(template: str, data: Mapping[str, Any], images: list[dict[str, str]], **filters: Callable[..., str]) -> bytes:
    """The HTML page, in UTF-8; all text from data is escaped."""
    environment = Environment(
        loader=PackageLoader("dyn_probe.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= filters
    return environment.get_template(template).render(data=data, images=images).encode("utf-8")
