"""The report as data, as a page and as a folder: complete, escaped, self-contained, never over somebody's files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from report_checks import Page, foreign_resources, inline_scripts, page_of, plain
from report_frames import Options, simulate
from report_runs import manifest, new_trace, write_run, write_tables

from dyn_probe.report.build import build_report, letters
from dyn_probe.report.figures import figures_for
from dyn_probe.report.first_screen.questions import QUESTIONS
from dyn_probe.report.page_data import report_data
from dyn_probe.report.pair_cards import marked
from dyn_probe.report.verdicts import verdicts
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.schema import PAIRS

EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)>'
SHORT = Options(steps=20, mass=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose texts, ids and manifest are hostile."""
    tables = simulate(SHORT)
    odd = tables["pairs"].pair_id.iloc[0]
    for name in ("pairs", "layers", "examples"):
        tables[name] = tables[name].assign(pair_id=tables[name].pair_id.replace({odd: EVIL}))
    tables["examples"] = tables["examples"].assign(prompt=EVIL, chosen=f"good {EVIL}", rejected=f"bad {EVIL}")
    tables["layers"] = tables["layers"].assign(layer=tables["layers"].layer.replace({"head": EVIL}))
    about = {**manifest(SHORT), "model": {"name": EVIL}, "command": EVIL, "skipped_rows": [{"reason": EVIL}]}
    run = write_tables(tmp_path_factory.mktemp("evil") / "run", tables, about)
    return build_report([run])


def test_hostile_text_is_shown_and_never_run(built: Path) -> None:
    html = built.read_text(encoding="utf-8")
    assert foreign_resources(html) == []
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "<script" not in shown and "<img src=http" not in html
    assert 'alert("x")' not in "".join(script for kind, script in inline_scripts(html) if kind == "code")
    assert not any(re.search("[<>&]", script) for kind, script in inline_scripts(html) if kind == "data")
    assert Page(html).text.count('<script>alert("x")</script>') >= 10
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "html",
    [
        "<script src='a.js'></script>",
        "<script>1</script>",
        "<img src='https://x.example/a'>",
        "<style>a{b:url(c.png)}</style>",
        "<p onclick='x'>",
    ],
)
def test_the_check_for_foreign_resources_can_fail(html: str) -> None:
    assert foreign_resources(html)


def test_pictures_are_inside_the_page_and_beside_it(built: Path) -> None:
    page = Page(built.read_text(encoding="utf-8"))
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    names = list(figures_for(load_trace(built.parents[1])))
    shown = [base64.b64decode(image.split(",")[1]) for image in images]
    assert len(shown) == len(names) > 8 and shown[0] == (built.parent / "figures/story.svg").read_bytes()
    for name in names:
        assert (built.parent / f"figures/{name}.svg").read_bytes() in shown
        assert (built.parent / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_all_sections_and_no_dead_link(built: Path) -> None:
    page = Page(built.read_text(encoding="utf-8"))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link} <= set(ids)
    assert {*(row.name for row in QUESTIONS), "fixes", "facts", "overview", "pairs", "definitions", "knobs"} <= set(ids)


def test_every_verdict_stands_on_the_page_with_numbers_and_formula(tmp_path: Path) -> None:
    trace = new_trace(tmp_path / "run", SHORT)
    text = " ".join(Page(page_of(trace)).text.split())
    found = verdicts(trace)
    assert len(found) > 15
    for verdict in found:
        assert plain(verdict.sentence) in text and plain(verdict.formula) in text
    for row in figures_for(trace).values():
        assert plain(row.text["How to read"])[1:] in text


def test_report_data_is_plain_and_complete(tmp_path: Path) -> None:
    trace = new_trace(tmp_path / "run", SHORT)
    data = report_data(trace)
    json.dumps(data)
    assert [t["sentence"] for topic in data["topics"] for t in topic["verdicts"]] == [
        v.sentence for v in verdicts(trace)
    ]
    known = {fact["label"]: fact["text"] for fact in data["facts"]}
    assert (known["Objective"], known["β"], known["Learning rate"]) == ("dpo", "0.1", "0.01")
    assert known["Steps"] == "0 to 19, 20 recorded"
    defined = {row["name"]: row for row in data["definitions"] if row["table"] != "layers"}
    meanings = {column.name: column for column in PAIRS.columns}
    assert defined["grad_inner"]["meaning"] == meanings["grad_inner"].meaning
    assert defined["grad_inner"]["unit"] == meanings["grad_inner"].unit
    assert "gate" not in defined and "condition_chosen" in defined
    assert len(data["ranked"]["cards"]) == 15 and data["ranked"]["by"] == "fall"


@pytest.mark.parametrize(("status", "said"), [("recording", "was not closed"), ("stopped", "out of memory")])
def test_a_run_that_did_not_close_has_a_banner(status: str, said: str, tmp_path: Path) -> None:
    shown = Page(page_of(load_trace(write_run(tmp_path / "run", SHORT, status))))
    assert any(attributes.get("role") == "alert" for _, attributes in shown.tags) and said in shown.text
    closed = Page(page_of(new_trace(tmp_path / "other", SHORT)))
    assert not any(attributes.get("role") == "alert" for _, attributes in closed.tags)


def test_tiny_traces_get_a_report(tmp_path: Path) -> None:
    one_row = new_trace(tmp_path / "one", Options(steps=1, batch=1, pairs=1))
    nothing = load_trace(write_tables(tmp_path / "none", {}, {}, "recording"))
    for trace in (one_row, nothing):
        html = page_of(trace)
        assert foreign_resources(html) == [] and "Why?" in html
    assert "Recorded rows" in page_of(nothing)


def test_differing_words_are_marked_and_nothing_is_lost() -> None:
    pair = ("It has a  positive sentiment.", "It has a  negative\nsentiment indeed.")
    for text, pieces in zip(pair, marked(*pair), strict=True):
        assert "".join(piece["text"] for piece in pieces) == text
    left, right = marked("It is good here", "It is bad here")
    assert [piece["text"] for piece in left if piece["differs"]] == ["good "]
    assert [piece["text"] for piece in right if piece["differs"]] == ["bad "]


def test_letters_are_set_after_escaping() -> None:
    assert (
        letters("‖g_w‖ < <b>d_l</b> snake_word") == "‖g<sub>w</sub>‖ &lt; &lt;b&gt;d<sub>l</sub>&lt;/b&gt; snake_word"
    )
