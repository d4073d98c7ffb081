"""Figures that answer, in a real browser under the page's own policy: hover, zoom, sort, filter, click; phone, dark,
paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from moved_runs import moved_run
from report_checks import page_of, policy
from report_frames import Options
from report_runs import new_trace

from dyn_probe.report.token_view import script_hash

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

PROBE = """
var found = {};
function all(selector, where) { return Array.from((where || document).querySelectorAll(selector)); }
function part(name) { return document.querySelector("#pair-view [data-part=" + name + "]"); }
function mouse(over, kind, x, y, where) {
  var at = over.getBoundingClientRect();
  var options = {clientX: at.left + x, clientY: at.top + y, movementX: 3, button: 0, bubbles: true};
  (where || over).dispatchEvent(new MouseEvent(kind, options));
}
function column(k) {
  return all("tr", part("rows")).map(function (row) { return row.children[k].textContent.replace("−", "-"); });
}
function hidden(one) { return one.hidden; }
function act() {
  var story = document.querySelector("#figure-story"), over = story.querySelector(".u-over"), wide = over.clientWidth;
  var head = all("th button", part("heads").parentNode), names = head.map(function (one) { return one.textContent; });
  found.width = [document.documentElement.scrollWidth, innerWidth];
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.charts = all(".uplot").length;
  found.blank = all(".uplot canvas").filter(function (one) { return !one.width; }).length;
  found.pictures = all("#figure-story > img, #figure-entanglement .sheet > img").map(function (one) {
    return getComputedStyle(one).display;
  });
  found.idle = all(".u-legend .u-value", story).map(function (one) { return getComputedStyle(one).visibility; });
  found.help = story.querySelector(".touch-help").textContent;
  mouse(over, "mouseenter", wide / 2, 40);
  mouse(over, "mousemove", wide / 2, 40);
  found.shown = all(".u-legend .u-value", story).map(function (one) { return getComputedStyle(one).visibility; });
  found.hover = story.querySelector(".u-legend").textContent;
  found.pushes = story.querySelector(".shared-legend").textContent;
  mouse(over, "mousedown", 0.3 * wide, 40);
  mouse(over, "mousemove", 0.6 * wide, 40);
  mouse(over, "mouseup", 0.6 * wide, 40, document);
  found.zoomed = all(".zoom-out", story).map(hidden);
  story.querySelector(".zoom-out").click();
  found.whole = all(".zoom-out", story).map(hidden);
  found.rows = column(0);
  found.names = names;
  head[names.indexOf("cosine")].click();
  found.rising = column(2 + names.indexOf("cosine"));
  head[names.indexOf("cosine")].click();
  found.falling = column(2 + names.indexOf("cosine"));
  found.sorted = head[names.indexOf("cosine")].parentNode.getAttribute("aria-sort");
  part("filter").value = WORDS;
  part("filter").dispatchEvent(new Event("input"));
  found.filtered = [column(1), part("note").textContent];
  part("filter").value = "";
  part("filter").dispatchEvent(new Event("input"));
  part("case").value = "2";
  part("case").dispatchEvent(new Event("change"));
  found.cases = column(2 + names.indexOf("case"));
  part("case").value = "";
  part("case").dispatchEvent(new Event("change"));
  var row = part("rows").children[7];
  row.click();
  found.clicked = [row.dataset.pair, part("panel").textContent, all(".uplot", part("panel")).length];
  var dots = part("dots").querySelector(".u-over");
  found.dots = [[5, 5], [dots.clientWidth - 5, dots.clientHeight - 5]].map(function (corner) {
    ["mouseenter", "mousemove", "mousedown", "click"].forEach(function (kind) {
      mouse(dots, kind, corner[0], corner[1]);
    });
    return [part("panel").querySelector(".tag").textContent, part("dots").querySelector(".u-legend").textContent];
  });
  document.documentElement.dataset.found = JSON.stringify(found);
}
all("details.question").forEach(function (one) { one.open = true; });
setTimeout(function () { try { act(); } catch (error) { console.error(String(error)); } }, 600);
"""


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open the page headless and offline, with the console on standard error."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
        *("--virtual-time-budget=6000", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


def with_probe(text: str, words: str) -> str:
    """The page with the probe at its end; its policy allows that one script beside its own."""
    probe = PROBE.replace("WORDS", json.dumps(words))
    sources = " ".join(policy(text))
    return text.replace(sources, f"{sources} {script_hash(probe)}", 1).replace(
        "</body>", f"<script>{probe}</script></body>"
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a synthetic run in which both sides fall."""
    folder = tmp_path_factory.mktemp("interactive")
    return page_of(new_trace(folder / "run", Options(steps=60, mass=True)))


def seen(page: str, folder: Path, *options: str) -> dict[str, Any]:
    """What the probe found on the page; the console must be silent."""
    path = folder / "page.html"
    path.write_text(with_probe(page, "POSITIVE (3)."), encoding="utf-8")
    done = chromium(path, "--dump-dom", *options)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_charts_and_table_answer(page: str, tmp_path: Path) -> None:
    found = seen(page, tmp_path, "--window-size=1280,800")
    assert found["charts"] >= 8 and found["blank"] == 0
    assert set(found["pictures"]) == {"none"}  # drawn from data instead
    assert set(found["idle"]) == {"hidden"} and "visible" in found["shown"]  # no values are named before one points
    assert "(pushes: on chosen · on rejected)" in found["help"]
    assert re.search(r"step:? ?\d+.*chosen:? ?−?\d.*\(.* to .*\)", found["hover"]), found["hover"]
    assert re.search(r"total −?\d\S* · −?\d", found["pushes"]), found["pushes"]
    assert set(found["zoomed"]) == {False} and set(found["whole"]) == {True}
    assert found["rows"] == [str(place) for place in range(1, len(found["rows"]) + 1)]
    rising, falling = ([float(text) for text in found[name]] for name in ("rising", "falling"))
    assert rising == sorted(rising) and falling == rising[::-1] and len(set(rising)) > 5
    assert found["sorted"] == "descending"
    prompts, note = found["filtered"]
    assert len(prompts) == 1 and prompts[0].startswith("Statement 3:") and note.startswith("1 of 48 pairs")
    assert found["cases"] and set(found["cases"]) == {"2"}
    pair, panel, charts = found["clicked"]
    assert pair in panel and "chosen" in panel and charts == 3
    (first, said), (second, other) = found["dots"]
    assert first != second and all(one.startswith("prompt of pair ") for one in (first, second))
    assert said != other and re.search(r"Δ rejected:? ?−?\d", said)


def test_a_narrow_dark_screen_has_all_of_it(page: str, tmp_path: Path) -> None:
    """A phone's window: as narrow as the browser lets one be; colours of the dark theme."""
    found = seen(page, tmp_path, "--window-size=390,844", "--blink-settings=preferredColorScheme=0")
    wide, window = found["width"]
    assert wide <= window <= 500 and found["blank"] == 0
    assert found["paper"] == "rgb(18, 22, 28)"


PHONE = """<iframe src="page.html" style="width: 390px; height: 844px; border: 0"></iframe>
<script>
window.addEventListener("load", function () {
  setTimeout(function () {
    var inside = document.querySelector("iframe").contentDocument.documentElement;
    document.documentElement.dataset.found = JSON.stringify([inside.clientWidth, inside.scrollWidth]);
  }, 600);
});
</script>
"""


def test_a_phone_of_390_pixels_needs_no_sideways_scroll(tmp_path: Path) -> None:
    """In a frame of that width, for a browser's own window cannot be made so narrow."""
    run = moved_run(tmp_path / "run", -0.38, -1.9)
    run.manifest["command"] = "dyn-probe record --out runs/a --data a-file-with-a-long-name.jsonl --mass-every 20"
    page = page_of(run)
    assert "--shaping" in page and "to type" in page  # a fix table, with commands
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(PHONE, encoding="utf-8")
    flags = ("--dump-dom", "--allow-file-access-from-files", "--window-size=1280,900", "--virtual-time-budget=4000")
    shown = re.search(r'data-found="\[(\d+),(\d+)\]"', chromium(outer, *flags).stdout)
    assert shown is not None and int(shown[2]) <= int(shown[1]) <= 390


SWITCH = """
var asked = [], real = window.matchMedia.bind(window);
window.matchMedia = function (query) {
  var found = real(query);
  if (query.indexOf("prefers-color-scheme") >= 0) found.addEventListener = function (kind, act) { asked.push(act); };
  return found;
};
function blue(canvas) {
  var data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, count = 0;
  for (var i = 0; i < data.length; i += 4) if (data[i + 1] < 40 && data[i + 2] > 200 && data[i + 3] > 99) count += 1;
  return count;
}
function act() {
  var canvases = Array.from(document.querySelectorAll("#figure-story .uplot canvas")), before = canvases.map(blue);
  document.documentElement.style.setProperty("--line-chosen", "rgb(1, 2, 253)");
  asked.forEach(function (one) { one({}); });
  setTimeout(function () {
    var seen = {asked: asked.length, before: before, after: canvases.map(blue)};
    document.documentElement.dataset.found = JSON.stringify(seen);
  }, 600);
}
window.addEventListener("load", function () { setTimeout(act, 600); });
"""


def test_charts_follow_the_theme_that_changes_while_the_page_is_open(page: str, tmp_path: Path) -> None:
    """The theme's colours change and the page is told: what is drawn afterwards has the new ones."""
    path = tmp_path / "page.html"
    sources = " ".join(policy(page))
    allowed = page.replace(sources, f"{sources} {script_hash(SWITCH)}", 1)
    path.write_text(allowed.replace("</head>", f"<script>{SWITCH}</script></head>"), encoding="utf-8")
    found = re.search(r'data-found="([^"]*)"', chromium(path, "--dump-dom", "--window-size=1280,800").stdout)
    assert found is not None
    counted = json.loads(html.unescape(found[1]))
    assert counted["asked"] and set(counted["before"]) == {0} and sum(counted["after"]) > 100, counted


def test_without_scripts_the_answer_and_its_pictures_stand_on_the_page(tmp_path: Path) -> None:
    """The policy turns every script off: headline, fix table and pictures are plain HTML."""
    page = page_of(moved_run(tmp_path / "run", -0.38, -1.9))
    path, probe = tmp_path / "page.html", "document.documentElement.dataset.found = Array.from(document.images).filter("
    probe += "function (one) { return getComputedStyle(one).display !== 'none'; }).length"
    off = page.replace(" ".join(policy(page)), script_hash(probe), 1)
    path.write_text(off.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    dom = chromium(path, "--dump-dom", "--window-size=1280,800").stdout
    shown = re.search(r'data-found="(\d+)"', dom)
    assert shown is not None and int(shown[1]) == page.count("<img") > 5
    heading, words = re.search(r"<h1>(.*?)</h1>", dom, re.DOTALL), " ".join(re.sub(r"<[^>]+>", " ", dom).split())
    assert heading is not None and "nats/token" in heading[1] and "--objective dpop" in words
    assert not re.search(r'<div class="[^"]*uplot', dom)


def test_paper_has_the_pictures_on_few_sheets(page: str, tmp_path: Path) -> None:
    path, sheet = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(page, encoding="utf-8")
    chromium(path, f"--print-to-pdf={sheet}")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", sheet.read_bytes())) <= 6


def test_a_script_that_the_policy_does_not_name_is_blocked_and_seen(page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", "<script>document.title = 1</script></body>"), encoding="utf-8")
    assert ":CONSOLE" in chromium(path, "--dump-dom").stderr
