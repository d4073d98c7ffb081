"""The door of the page: whatever texts a trace holds, nothing of them runs, and nothing leads out of the file."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from random import Random

from dyn_probe.report.build import build_report
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter
from trust import noise
from trust.door_trace import rows_of
from trust.doors import attempt, new_tally
from trust.tally import Tally

PARTS = (
    "</script>", "<script>alert(1)</script>", "<!--", "-->", "]]>", "<img src=x onerror=alert(1)>", '"', "'", "`",
    "</textarea>", "</title>", "</style>", "&lt;script&gt;", "javascript:alert(1)", "{{7*7}}", "{% raw %}", "\u2028",
    "\u202e", "\x00", "\ud800", "<svg/onload=alert(1)>", "<base href=//x.example>", "\\u003cscript\\u003e",
)  # fmt: skip
MARK = "alert(1)"


class Elements(HTMLParser):
    """What a page holds that could run or load: ``found`` lists what of it a recorded text made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Handlers, links out of the page, elements that no template has."""
        self._inside = tag
        values = {name: value or "" for name, value in attributes}
        self.found += [f"<{tag} {name}>" for name in values if name.startswith("on")]
        if tag in ("base", "iframe", "object", "embed", "form", "link"):
            self.found.append(f"<{tag}>")
        for name in ("src", "href", "action", "srcset"):
            target = values.get(name, "").strip().lower()
            if target.startswith(("javascript:", "//", "vbscript:")) or (name == "src" and target.startswith("http")):
                self.found.append(f"<{tag} {name}={target[:40]}>")

    def handle_data(self, data: str) -> None:
        """A script that is a recorded text."""
        if self._inside == "script" and data.strip().startswith(MARK):
            self.found.append(f"<script>{data[:40]}")

    def handle_endtag(self, tag: str) -> None:
        """Leave the element."""
        self._inside = ""


def fuzz_page(folder: Path, count: int, seed: int = 0) -> Tally:
    """Reports of traces whose every text steers."""
    tally, draw = new_tally("page: recorded texts that steer"), Random(seed)
    tally.zero["elements made by a text"] = 0
    for number in range(count):
        run = folder / f"run-{number}"
        text = "".join(draw.choices([*PARTS, *noise.TEXTS[:8]], k=6))
        told = {"command": text, "model": {"name": text}, "data": {"name": text}, "objective": {"name": "dpo"}}
        text = text.encode("utf-8", "replace").decode()  # tables hold no half characters, run.json does
        with TraceWriter(run, told) as writer:
            for name, table in ((name, TABLES[name]) for name in ("pairs", "steps", "layers", "examples", "pushes")):
                texts = [column.name for column in table.columns if column.type == "string" and "id" not in column.name]
                lists = [column.name for column in table.columns if column.type == "list<string>"]
                rows = [
                    row | {key: text for key in texts if key != "side"} | {key: [text] * 4 for key in lists}
                    for row in rows_of(name, range(4))
                ]
                writer.add(name, rows)
        page = attempt(tally, f"case {number} of seed {seed}", lambda run=run: build_report([run]))
        if page is not None:
            elements = Elements()
            elements.feed(page.read_text(encoding="utf-8"))
            for found in elements.found:
                tally.fail("elements made by a text", f"case {number} of seed {seed}: {found}")
    return tally
