"""The report's token view: bounded, rounded, escaped for HTML, its one script named by the page's policy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_frames import Options
from report_runs import new_trace
from test_token_figures import trace_of
from token_samples import heat_of, label_heat, long_heat

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
    (data, text), (code, script) = scripts(html)
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
    assert sources is not None and sources[1] == script_hash(script)
    assert script_hash(script + " ") != sources[1]
    assert not re.search(r"fetch\(|XMLHttp|innerHTML|insertAdjacentHTML|eval\(|https?:", script)


def test_without_script_the_figures_are_there(html: str):
    assert 'id="token-view" hidden' in html and "<noscript>" in html
    assert 'href="#figure-token_heat"' in html and 'id="figure-token_heat"' in html


def test_a_report_without_tokens_has_no_script(tmp_path: Path):
    page = build_report([new_trace(tmp_path / "run", Options(steps=3, batch=2, pairs=2)).path])
    html = page.read_text(encoding="utf-8")
    assert scripts(html) == [] and "script-src 'none'" in html and 'id="tokens"' not in html


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


def test_large_runs_are_thinned_and_said_so(tmp_path: Path):
    long = {name: [long_heat(100)] * 40 for name in "abcd"}
    kept = bounded(long, 200_000)
    assert sum(h.inner.size for group in kept.values() for h in group) <= 200_000
    assert list(kept) == list("abcd") and all(len(group) == 5 for group in kept.values())
    assert list(bounded({name: [long_heat(100)] * 3 for name in "abcd"}, 1)) == ["a"]
    few = {"a": [label_heat(s) for s in range(9)]}
    assert bounded(few) == few
