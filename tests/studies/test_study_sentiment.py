"""The sentiment study: claims are judged by the numbers, the page says so, and a small one trains end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dyn_probe_cli.app import app
from report_frames import Options, simulate
from report_runs import manifest, write_tables
from token_samples import heat_of, table_rows
from typer.testing import CliRunner

from dyn_probe import BadInput, load_trace
from dyn_probe.data.generated.styles import STYLES
from dyn_probe.studies.arms.arm_running import run_arms
from dyn_probe.studies.arms.step_means import at_end, change, cosine, token_cosines
from dyn_probe.studies.claims import Estimate, claim_lines, pooled, verdict
from dyn_probe.studies.sentiment_page import FIGURES, claims, write_study
from dyn_probe.studies.sentiment_runs import Study, run_config, sentiment_arms
from dyn_probe.trace.reader import Trace

RISE = {"single-token": 0.4, "short-suffix": -0.5, "long-suffix": -2.0, "prefix-suffix": -1.0}
COSINE = {"single-token": -0.3, "short-suffix": 0.2, "long-suffix": 0.5, "prefix-suffix": 0.5}
TAIL = (" sentiment", ".")


def synthetic(folder: Path, style: str, seed: int, rise: dict[str, float] = RISE) -> Trace:
    """A run in which chosen ends at the style's change and the gradients have its cosine."""
    tables = simulate(Options(steps=20, batch=2, pairs=4, seed=seed))
    pairs = tables["pairs"]
    part = np.minimum(1, pairs["step"].to_numpy() / 15)
    pairs["logp_chosen"] = pairs["ref_logp_chosen"] + part * (rise[style] + 0.01 * seed)
    pairs["grad_cosine"] = COSINE[style] + 0.01 * np.cos(np.arange(len(pairs)))
    labels = (f" {name}" for name in ("positive", "negative"))
    heat = heat_of(*((" a", label, *TAIL) for label in labels))
    heat.cosine[1, 1] = -0.9
    heats = [replace(heat, pair_id=f"p{k}", cosine=heat.cosine - 0.01 * k) for k in range(3)]
    ends = pairs.drop_duplicates("pair_id")
    draw = np.random.default_rng(seed)
    for side, by in (("chosen", rise[style] + 0.01 * seed), ("rejected", -1.0)):
        start = ends[f"ref_logp_{side}"].to_numpy()
        ends = ends.assign(**{f"logp_{side}": start + by + 0.001 * draw.standard_normal(len(ends))})
    tables["final"] = ends[["pair_id", "logp_chosen", "logp_rejected", "len_chosen", "len_rejected"]]
    tables["tokens"] = pd.DataFrame([row for one in heats for row in table_rows(one)])
    return load_trace(write_tables(folder / f"{style}-{seed}", tables, manifest(Options())))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return {style: [synthetic(folder, style, seed) for seed in range(3)] for style in STYLES}


def verdicts(runs) -> dict[str, str]:
    return {one.claim: one.verdict for one in claims(runs) if not one.holds}


def test_a_study_like_the_papers_holds(runs):
    judged = claims(runs)
    assert all(one.holds and one.verdict == "holds" for one in judged), [one for one in judged if not one.holds]
    rise = judged[0]
    assert rise.measured.startswith("chosen +0.41")
    values = [float(text.split(" ± ")[0]) for text in rise.by_seed.split("; ")]
    np.testing.assert_allclose(values, [0.40, 0.41, 0.42], atol=2e-3)
    np.testing.assert_allclose([one.value for one in at_end(runs["long-suffix"], change("chosen"))], [-2, -1.99, -1.98])
    assert "least" in judged[-1].by_seed and "most" in judged[-2].by_seed


def test_each_claim_fails_on_its_own(runs, tmp_path):
    fallen = {**RISE, "single-token": -0.1}
    worse = {**runs, "single-token": [*runs["single-token"][:2], synthetic(tmp_path / "a", "single-token", 2, fallen)]}
    assert verdicts(worse) == {"chosen rises for single-token (Fig. 3)": "cannot tell"}
    alone = {**runs, "single-token": [synthetic(tmp_path / "d", "single-token", 0, fallen)]}
    assert verdicts(alone)["chosen rises for single-token (Fig. 3)"] == "does not hold"
    swapped = {**runs, "short-suffix": runs["long-suffix"], "long-suffix": runs["short-suffix"]}
    assert set(verdicts(swapped)) == {
        "chosen falls more with the long suffix than the short (Fig. 3)",
        "and larger still with a longer one (Fig. 4a)",
    }
    risen = {**runs, "prefix-suffix": [synthetic(tmp_path / "c", "prefix-suffix", 0, {**RISE, "prefix-suffix": 0.3})]}
    assert verdicts(risen) == {"chosen falls with prefix and suffix (Fig. 3)": "does not hold"}
    mixed = {**runs, "prefix-suffix": [synthetic(tmp_path / "b", "prefix-suffix", 0)]}
    tokens = mixed["prefix-suffix"][0].tokens
    tokens["cosine"] = [-np.asarray(values) for values in tokens["cosine"]]
    assert set(verdicts(mixed)) == {
        "differing tokens have a negative cosine (Fig. 4b)",
        "identical tokens after them have a positive one (Fig. 4b)",
    }


def test_tokens_before_the_first_difference_do_not_count(tmp_path):
    run = synthetic(tmp_path, "prefix-suffix", 0)
    for value, wanted in ((0.0, 0.2), (0.99, 0.2)):
        cosines = np.full((4, 4), 0.2)
        cosines[0, 0] = value
        run.tokens["cosine"] = [cosines.ravel()] * len(run.tokens)
        (found,) = token_cosines([run], same=True)
        assert found.value == pytest.approx(wanted) and found.least == pytest.approx(0.2)


def estimates(*pairs: tuple[float, float]) -> list[Estimate]:
    return [Estimate(value, error, value, value) for value, error in pairs]


@pytest.mark.parametrize(
    ("seeds", "above", "limit", "wanted"),
    [
        (((0.3, 0.1), (0.2, 0.1)), True, 0, "holds"),
        (((0.3, 0.1), (0.19, 0.1)), True, 0, "holds"),
        (((0.3, 0.1), (-0.2, 0.1)), True, 0, "cannot tell"),
        (((-0.3, 0.1), (-0.2, 0.1)), True, 0, "does not hold"),
        (((-0.3, 0.1),), False, 0, "holds"),
        (((0.19, 0.1),), True, 0, "cannot tell"),
        (((0.6, 0.1),), True, 0.5, "cannot tell"),
        (((0.3, 0.1),), True, 0.5, "does not hold"),
        (((9.0, float("nan")),), True, 0, "cannot tell"),
        (((9.0, float("nan")), (8.0, float("nan"))), True, 0, "holds"),
        (((0.0, 0.0),), True, 0, "cannot tell"),
        ((), True, 0, "not run"),
    ],
)
def test_verdicts(seeds, above, limit, wanted):
    assert verdict(estimates(*seeds), above, limit) == wanted


def test_the_larger_of_the_two_errors_counts():
    alike = pooled(estimates((1.0, 0.3), (1.0, 0.4)))
    assert (alike.value, alike.error) == (1.0, pytest.approx(0.25))
    apart = pooled(estimates((0.0, 0.3), (2.0, 0.4)))
    assert apart.error == pytest.approx(1.0)


def test_a_pairs_tokens_count_as_one():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert Estimate.of(values).error == pytest.approx(0.25)
    one = Estimate.of(values, ["a", "a", "a", "b"])
    assert (one.value, one.least, one.most) == (0.5, 0, 1) and one.error == pytest.approx(0.5)
    assert np.isnan(Estimate.of(values, ["a"] * 4).error)
    assert (one - one).error == pytest.approx(0.5 * 2**0.5)


@pytest.mark.usefixtures("unrendered")
def test_a_style_that_was_not_run_is_said(runs, tmp_path):
    some = {style: runs[style] for style in STYLES if style != "prefix-suffix"}
    page, judged = write_study({**some, "prefix-suffix": []}, tmp_path / "report", {}, missing=["not run: <p>"])
    html = page.read_text(encoding="utf-8")
    assert {one.claim for one in judged if one.verdict == "not run"} == {
        "chosen falls with prefix and suffix (Fig. 3)",
        "differing tokens have a negative cosine (Fig. 4b)",
        "identical tokens after them have a positive one (Fig. 4b)",
    }
    assert "not run: &lt;p&gt;" in html and "Figure 4b:" not in html


def test_figures_show_every_style(runs):
    left, right = FIGURES["figure_3"][0](runs).axes
    assert all(len([line for line in ax.lines if len(line.get_xdata()) > 2]) == 4 for ax in (left, right))
    words = [text.get_text() for text in left.texts]
    assert set(STYLES) <= set(words)
    for draw, _ in FIGURES.values():
        draw(runs).draw_without_rendering()
    assert cosine(runs["single-token"][0])[0] == pytest.approx(-0.29)


@pytest.mark.usefixtures("unrendered")
def test_the_page_says_what_does_not_hold(runs, tmp_path):
    swapped = {**runs, "single-token": runs["long-suffix"]}
    page, judged = write_study(swapped, tmp_path / "report", {"lr": "<b>1</b>"})
    html = page.read_text(encoding="utf-8")
    assert html.count("does not hold</span>") == sum(one.verdict == "does not hold" for one in judged) > 0
    assert "&lt;b&gt;1" in html and "<script" not in html
    assert {"figure_3.png", "figure_4a.png", "figure_4b.png", "claims.csv"} <= {p.name for p in page.parent.iterdir()}
    lines = claim_lines(judged)
    assert len(lines) == len(judged) and lines[0].startswith("does not hold")


def test_settings_and_refusals(tmp_path):
    study = Study(seeds=1, statements="")
    config = run_config(tmp_path / "x", tmp_path / "model", "sentiment:long-suffix", study, 4)
    assert (config.seed, config.lr, config.data, config.tokens_every) == (
        4,
        study.lr,
        "sentiment:long-suffix",
        study.tokens_every,
    )
    (tmp_path / "s.jsonl").write_text('{"text": "x", "sentiment": "odd"}\n')
    with pytest.raises(BadInput, match="label_text positive or negative"):
        Study(statements=str(tmp_path / "s.jsonl"))
    with pytest.raises(BadInput, match="--seeds"):
        Study(seeds=0)
    call = CliRunner().invoke
    assert "choose one of: sentiment" in str(call(app, ["reproduce", "nothing"]).exception)
    assert "--force" in str(call(app, ["reproduce", "sentiment", "--out", str(tmp_path)]).exception)


@pytest.mark.slow
def test_a_small_study_trains_and_is_judged(tmp_path):
    arms = sentiment_arms(tmp_path, Study(seeds=1))
    run_arms(arms, tmp_path)
    traces = {arm.name: [load_trace(arm.folder)] for arm in arms}
    page, judged = write_study(traces, tmp_path / "report", {})
    assert page.is_file()
    open_here = {
        "chosen rises for single-token (Fig. 3)",
        "and stays so (Fig. 4a)",
        "differing tokens have a negative cosine (Fig. 4b)",
    }
    assert {one.claim for one in judged if not one.holds} <= open_here, judged
    assert len(judged) == 12
