"""What the pages of all studies share: their figures as files and images, and the template's environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from dyn_probe.report.output import data_uri, render

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


def page(template: str, data: Mapping[str, Any], images: list[dict[str, str]], **filters: Callable[..., str]) -> bytes:
    """The HTML page, in UTF-8; all text from data is escaped."""
    environment = Environment(
        loader=PackageLoader("dyn_probe.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= filters
    return environment.get_template(template).render(data=data, images=images).encode("utf-8")
