"""The report as data, as a page and as a folder: complete, escaped, self-contained, never over somebody's files."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_frames import Options, simulate
from report_runs import manifest, new_trace, write_run, write_tables

from dyn_probe.errors import BadInput, TraceError
from dyn_probe.report.build import build_report, default_folder, letters, page
from dyn_probe.report.data import report_data
from dyn_probe.report.figures import FIGURES, figures_for
from dyn_probe.report.output import check_folder, write_files
from dyn_probe.report.pair_cards import marked
from dyn_probe.report.tables import run_tables
from dyn_probe.report.verdicts import verdicts
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import PAIRS

EVIL = '<script>alert("x")</script><img src="http://evil.example/a.png" onerror=alert(1)>'
SHORT = Options(steps=20, mass=True)


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
    """Everything a browser would fetch or run: addresses other than data: and #, scripts, CSS imports and urls."""
    page = Page(html)
    loaded = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action", "poster"} or name.startswith("on")
    ]
    scripts = [tag for tag, _ in page.tags if tag in {"script", "iframe", "object", "embed", "link"}]
    styles = re.findall(r"@import[^;]*|url\([^)]*\)", html)
    return [*(v for v in loaded if not v.startswith(("data:image/svg+xml;base64,", "#"))), *scripts, *styles]


def page_of(trace: Trace) -> str:
    """The page of a run without its pictures."""
    nothing = {"address": "data:image/svg+xml;base64,", "width": 1.0, "height": 1.0}
    return page(report_data(trace), dict.fromkeys(FIGURES, nothing))


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
    assert "<script" not in html and "<img src=http" not in html
    assert Page(html).text.count('<script>alert("x")</script>') >= 10
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "html",
    [
        "<script src='a.js'></script>",
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
    assert len(images) == len(names) > 8
    for name, image in zip(names, images, strict=True):
        svg = base64.b64decode(image.split(",")[1])
        assert svg == (built.parent / f"figures/{name}.svg").read_bytes()
        assert (built.parent / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_all_sections_and_no_dead_link(built: Path) -> None:
    page = Page(built.read_text(encoding="utf-8"))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {link[1:] for link in links if link} <= set(ids)
    assert {"verdicts", "facts", "overview", "figures", "pairs", "definitions", "knobs"} <= set(ids)


def test_every_verdict_stands_on_the_page_with_numbers_and_formula(tmp_path: Path) -> None:
    trace = new_trace(tmp_path / "run", SHORT)
    text = " ".join(Page(page_of(trace)).text.split())
    found = verdicts(trace)
    assert len(found) > 15
    for verdict in found:
        assert plain(verdict.sentence) in text and plain(verdict.formula) in text
    for row in figures_for(trace).values():
        assert plain(row.text["How to read"])[1:] in text


def plain(text: str) -> str:
    """Text as it reads once letters with an index are set."""
    return re.sub(r"(?<!\w)([abdghmnrxy])_([wl])(?!\w)", r"\1\2", " ".join(text.split()))


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
    assert len(data["ranked"]["cards"]) == 15 and data["ranked"]["by"] == "excess"


@pytest.mark.parametrize(("status", "said"), [("recording", "did not close"), ("stopped", "out of memory")])
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
        assert foreign_resources(html) == [] and "What happened" in html
    assert "Recorded rows" in page_of(nothing)


def test_tables_hold_the_numbers_of_the_page(tmp_path: Path) -> None:
    trace = new_trace(tmp_path / "run", Options(steps=20))
    files = run_tables(trace, report_data(trace))
    tables = {Path(name).stem: list(csv.DictReader(io.StringIO(text.decode("utf-8")))) for name, text in files.items()}
    assert set(tables) == {"verdicts", "start_and_end", "curves", "layers", "ranked_pairs", "definitions"}
    numbers = [number for verdict in verdicts(trace) for number in verdict.numbers]
    written = [float(row["value"]) for row in tables["verdicts"] if row["number"]]
    assert written == pytest.approx([number.value for number in numbers], nan_ok=True)
    assert len(tables["ranked_pairs"]) == trace.pairs.pair_id.nunique()
    cosine = [float(row["value"]) for row in tables["curves"] if row["measure"] == "cosine"]
    first = trace.pairs[trace.pairs.step <= int(tables["curves"][0]["last_step"])]
    assert cosine[0] == pytest.approx(first.grad_cosine.median())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Options(steps=2, batch=2))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(BadInput, match="not empty"):
        build_report([run], mine)
    build_report([run], mine, force=True)
    assert (mine / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert (mine / "report.html").is_file()
    with pytest.raises(BadInput, match="file"):
        build_report([run], mine / "thesis.tex")


def test_an_older_report_is_replaced_without_leftovers(tmp_path: Path) -> None:
    write_files(tmp_path, {"figures/old.png": b"old", "report.html": b"old"}, {})
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    check_folder(tmp_path, force=False)
    write_files(tmp_path, {"report.html": b"new"}, {"number": float("nan")})
    assert not (tmp_path / "figures/old.png").exists()
    assert (tmp_path / "report.html").read_bytes() == b"new"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["data"] == {"number": None}


def test_a_forged_list_of_files_deletes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious", encoding="utf-8")
    out = tmp_path / "out"
    write_files(out, {"report.html": b""}, {})
    mark = json.loads((out / "report.json").read_text(encoding="utf-8"))
    mark["files"] += ["../victim.txt", str(victim)]
    (out / "report.json").write_text(json.dumps(mark), encoding="utf-8")
    write_files(out, {"report.html": b"new"}, {})
    assert victim.is_file() and (out / "report.html").read_bytes() == b"new"


def test_errors_say_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one run"):
        build_report([])
    with pytest.raises(TraceError, match="does not exist"):
        build_report([tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists()


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


def test_the_default_folder_is_inside_the_run_or_beside_the_first() -> None:
    assert default_folder([Path("runs/a")]) == Path("runs/a/report")
    many = [Path(f"runs/{name}") for name in "abcde"]
    assert default_folder(many).name == "compare-a-b-c-and-2-more"
