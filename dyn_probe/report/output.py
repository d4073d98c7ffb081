"""The report's folder: what may be overwritten, figures as SVG and PNG."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dyn_probe.errors import BadInput
from dyn_probe.report.export.cells import plain
from dyn_probe.report.style import measured_once, settle
from dyn_probe.trace.failures import naming

MARK = "report.json"
WRITER = "dyn-probe report"
DPI = 150
SVG: Any = {"svg.fonttype": "path", "svg.hashsalt": "dyn-probe"}


def check_folder(out: Path, force: bool) -> None:
    """Refuse to write into anything but a new folder, an empty one or an older report, unless `force`.

    Raises:
        BadInput: says what stands there and what to write instead.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"the report needs a folder, and {out} is a file; write --out FOLDER")
    if out.is_dir() and any(out.iterdir()) and not force and not own_files(out):
        raise BadInput(
            f"{out} is not empty and does not hold a report of dyn-probe; name another folder with --out, or write "
            "--force to add the report to it (only files with the report's own names are replaced)"
        )


def own_files(out: Path) -> list[Path]:
    """Files of the report in this folder by its own list; empty if it is not a report."""
    try:
        content = json.loads((out / MARK).read_text(encoding="utf-8"))
        names = content["files"] if content["written_by"] == WRITER else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    root = out.resolve()
    return [out / name for name in map(str, names) if (out / name).resolve().is_relative_to(root)]


def write_files(out: Path, files: Mapping[str, bytes], data: Mapping[str, Any]) -> None:
    """Replace the older report by these files; `report.json` lists them and holds the report's data.

    Raises:
        WriteFailed: the system refuses to write one of them.
    """
    for old in own_files(out):
        if old.is_file():
            old.unlink()
    for name, content in files.items():
        path = out / name
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    mark = {"written_by": WRITER, "files": [MARK, *files], "data": plain(data)}
    with naming(out / MARK):
        text = json.dumps(mark, ensure_ascii=False, indent=1, allow_nan=False)
        (out / MARK).write_bytes(text.encode("utf-8", "backslashreplace"))  # half a character as JSON writes it


def render(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as (SVG, PNG); texts in the SVG are outlines, so that it looks the same everywhere."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.set_dpi(DPI)  # laid out as the PNG is drawn: what is known of a text's size stays known
    for ax in figure.axes:
        if ax.get_title(loc="left"):
            settle(ax)
    if engine := figure.get_layout_engine():
        for ax in figure.axes:
            measured_once(ax)
        engine.execute(figure)
        for ax in figure.axes:
            vars(ax).pop("get_tightbbox", None)
        with rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
            figure.set_layout_engine(None)  # the layout stands; with an engine, savefig draws everything twice
    with rc_context(SVG):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=DPI)
    return svg.getvalue(), png.getvalue()


def data_uri(svg: bytes) -> str:
    """An SVG as the address of an <img>: nothing in it can run or load anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
