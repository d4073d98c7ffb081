"""Reports whose figures are made but not rendered: SVG and PNG are most of the work of a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from dyn_probe.report import build
from dyn_probe.studies import page

SVG, PNG = b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"\x89PNG"


def picture(figure: Figure) -> tuple[bytes, bytes]:
    """The smallest SVG and PNG, for any figure with something on it."""
    assert figure.axes
    return SVG, PNG


@contextmanager
def unrendered_figures() -> Iterator[None]:
    """Inside, reports of runs and of studies hold ``SVG`` and ``PNG`` in place of what their figures look like."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, page):
            patch.setattr(module, "render", picture)
        yield
