"""Helpers of the report's tests: the one verdict and its numbers; a page's tags, text and outside resources."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from dyn_probe.report.build import page
from dyn_probe.report.figures import FIGURES
from dyn_probe.report.page_data import report_data
from dyn_probe.report.token_view import script_hash
from dyn_probe.report.verdicts import Verdict
from dyn_probe.trace.reader import Trace


def value(verdict: Verdict, key: str) -> float:
    """The verdict's number of that key; an unknown one is an error that lists them."""
    found = {number.key: number.value for number in verdict.numbers}
    assert key in found, f"{key} is none of {', '.join(found)}"
    return found[key]


def only(found: list[Verdict]) -> Verdict:
    assert len(found) == 1
    return found[0]


class Page(HTMLParser):
    """Tags with attributes, ids, and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


def foreign_resources(html: str) -> list[str]:
    """Everything a browser would fetch or run: addresses other than data: and #, scripts that the page's own policy
    does not vouch for by their hash, CSS imports and urls."""
    page = Page(html)
    loaded = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action", "poster"} or name.startswith("on")
    ]
    framed = [tag for tag, _ in page.tags if tag in {"iframe", "object", "embed", "link"}]
    scripts = [
        script for kind, script in inline_scripts(html) if kind != "data" and script_hash(script) not in policy(html)
    ]
    styles = re.findall(r"@import[^;]*|url\([^)]*\)", html)
    return [*(v for v in loaded if not v.startswith(("data:image/svg+xml;base64,", "#"))), *framed, *scripts, *styles]


def inline_scripts(html: str) -> list[tuple[str, str]]:
    """(`data` or `code`, content) of every script element, as a browser cuts them."""
    found = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL | re.IGNORECASE)
    return [("data" if 'type="application/json"' in attributes else "code", content) for attributes, content in found]


def policy(html: str) -> list[str]:
    """What the page's policy lists as the source of scripts."""
    found = re.search(r'Content-Security-Policy" content="[^"]*script-src ([^;"]*)', html)
    return found[1].split() if found else []


def page_of(trace: Trace) -> str:
    """The page of a run without its pictures."""
    nothing = {"address": "data:image/svg+xml;base64,", "width": 1.0, "height": 1.0}
    return page(report_data(trace), dict.fromkeys(FIGURES, nothing))


def plain(text: str) -> str:
    """Text as it reads once letters with an index are set."""
    return re.sub(r"(?<!\w)([abdghmnrxy])_([wl])(?!\w)", r"\1\2", " ".join(text.split()))
