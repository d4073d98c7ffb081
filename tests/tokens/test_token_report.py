"""The report's token view: bounded, rounded, escaped for HTML, its one script named by the page's policy."""

from __future__ import annotations

import html as html_module
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_frames import Options
from report_runs import new_trace
from token_samples import SUFFIX, heat_of, label_heat, long_heat
from token_traces import trace_of

from dyn_probe.report.build import build_report
from dyn_probe.report.token_view import bounded, script_hash, token_view

EVIL = ("</script><script>alert(1)</script>", "<!--", "]]>", "&lt;", "'\"", "\u2028", "{{ 7*7 }}")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    trace = trace_of(
        tmp_path_factory.mktemp("r") / "run", [heat_of(("good", *EVIL), ("bad", *EVIL), s) for s in (0, 4)]
    )
    return build_report([trace.path]).read_text(encoding="utf-8")


def scripts(html: str) -> list[tuple[str, str]]:
    """(attributes, content) of every script element, as a browser cuts them."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL | re.IGNORECASE)


def test_hostile_tokens_stay_data(html: str):
    (data, text), (code, script), *_ = scripts(html)
    assert "application/json" in data and code == ""
    found = json.loads(text)
    assert found["pairs"][0]["chosen"] == ["good", *EVIL]
    assert not re.search(r"[<>&]", text) and "alert(1)</script>" not in html
    assert "7*7" in html and "49 }}" not in html and "alert(1)" not in script


def test_the_policy_names_the_script_and_nothing_else(html: str):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    (_, script) = scripts(html)[1]
    sources = re.search(r"script-src ([^;]*)", policy[1])
    assert sources is not None and script_hash(script) in sources[1].split()
    running = [script for kind, script in scripts(html) if "json" not in kind]
    assert sources[1].split() == [script_hash(script) for script in running]
    assert script_hash(script + " ") not in sources[1]
    assert not re.search(r"fetch\(|XMLHttp|innerHTML|insertAdjacentHTML|eval\(|https?:", script)


def test_without_script_the_figures_are_there(html: str):
    assert 'id="token-view" hidden' in html and "<noscript>" in html
    assert 'href="#figure-token_heat"' in html and 'id="figure-token_heat"' in html


@pytest.mark.usefixtures("unrendered")
def test_a_report_without_tokens_has_no_view_of_them(tmp_path: Path):
    page = build_report([new_trace(tmp_path / "run", Options(steps=3, batch=2, pairs=2)).path])
    html = page.read_text(encoding="utf-8")
    assert 'id="token-data"' not in html and 'id="tokens"' not in html


def test_the_view_holds_the_numbers(tmp_path: Path):
    heats = [label_heat(step, pair) for step in (0, 5) for pair in ("p0", "p1")]
    heats[0].cosine[2, 1] = np.nan
    view = token_view(trace_of(tmp_path / "run", heats))
    assert view is not None and [pair["pair_id"] for pair in view["pairs"]] == ["p0", "p1"]
    first = view["pairs"][0]["maps"][0]
    assert first["step"] == 0 and first["cosine"][2 * 8 + 1] is None
    assert first["inner"][9] == pytest.approx(heats[0].inner[1, 1], rel=1e-3)
    assert sum(first["parts"].values()) == pytest.approx(heats[0].total, rel=1e-3)
    assert view["significant"][0]["chosen"] == "Positive" and view["left_out"] == 0
    assert {row["chosen"] for row in view["insignificant"]} == set(SUFFIX)


def test_large_runs_are_thinned_and_said_so(tmp_path: Path):
    long = {name: [long_heat(100)] * 40 for name in "abcd"}
    kept = bounded(long, 200_000)
    assert sum(h.inner.size for group in kept.values() for h in group) <= 200_000
    assert list(kept) == list("abcd") and all(len(group) == 5 for group in kept.values())
    assert list(bounded({name: [long_heat(100)] * 3 for name in "abcd"}, 1)) == ["a"]
    few = {"a": [label_heat(s) for s in range(9)]}
    assert bounded(few) == few


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
var view = document.getElementById("token-view");
view.closest("details").open = true;
var find = function (n) { return view.querySelector("[data-part=" + n + "]"); };
var seen = [], canvas = find("map"), step = find("step");
function move(x, y) {
  var at = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent("mousemove", {clientX: at.left + x, clientY: at.top + y}));
  seen.push(find("said").textContent);
}
move(4, 1);
step.value = step.max; step.dispatchEvent(new Event("input"));
seen.push("step " + find("shown-step").textContent);
move(4, 1);
["rows", "columns"].forEach(function (name) {
  var labels = Array.from(find(name).children);
  var cut = labels.filter(function (l) { return name === "rows" ? l.offsetHeight < 11 : l.offsetWidth < 11; });
  var last = labels[labels.length - 1].textContent;
  seen.push(name + " " + labels.length + " labels, " + cut.length + " cut, last " + last);
});
document.body.textContent = "SEEN" + JSON.stringify(seen) + "NEES";
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize(("tokens", "labels"), [(5, 5), (200, 40)])
def test_a_browser_shows_labels_cells_and_steps(tokens, labels, tmp_path: Path):
    """Every shown label has room for a line of text, also where a cell is 3 pixels; pointer and slider answer."""
    heats = [replace(long_heat(tokens), step=step) for step in (0, 7)]
    html = build_report([trace_of(tmp_path / "run", heats).path]).read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", PROBE), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"SEEN(.*)NEES", done.stdout)
    assert found is not None, done.stderr[-500:]
    first, step, again, rows, columns = json.loads(html_module.unescape(found[1]))
    j = 1 if tokens == 200 else 0
    assert first.startswith(f"chosen 1 “␣w0” × rejected {j + 1} “␣w{j}”: inner") and again == first
    assert step == "step 7"
    for name, line in (("rows", rows), ("columns", columns)):
        assert line.startswith(f"{name} {labels} labels, 0 cut, last ␣")
