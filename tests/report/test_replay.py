"""The walk behind the fix table: pulls against the library's own, kernels against pandas, the order of the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moved_runs import moved_run
from report_frames import DEFAULT, Options, simulate
from report_runs import with_manifest

import dyn_probe.report.replay.walk as walking
from dyn_probe.objectives import OBJECTIVES, Terms, normalised_pulls, parse_shaping, pulls, resolve_hyper
from dyn_probe.report.changes import run_change
from dyn_probe.report.first_screen.fix_table import LEAST_COST, estimates, fix_table, recorded, why_none
from dyn_probe.report.first_screen.fix_texts import fixes
from dyn_probe.report.first_screen.remedy_rows import REMEDIES
from dyn_probe.report.replay.kernels import Kernels, kernels
from dyn_probe.report.replay.pull_forms import FORMS, PairState
from dyn_probe.report.replay.shape_forms import FITS, normalised
from dyn_probe.report.replay.walk import Method, pulls_of, walk
from dyn_probe.trace.reader import Trace

PAIRS = 7


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return moved_run(tmp_path_factory.mktemp("runs") / "fallen", -0.38, -1.9)


def drawn(seed: int = 0) -> PairState:
    """Pairs in any state: above and below the reference, ordered right and wrong."""
    draw = np.random.default_rng(seed)
    n_w, n_l = draw.integers(3, 20, (2, PAIRS)).astype(np.float64)
    a, b = -draw.uniform(0.2, 2.5, (2, PAIRS)) * [n_w, n_l]
    return PairState(a, b, a + draw.normal(0, 2, PAIRS), b + draw.normal(0, 2, PAIRS), n_w, n_l, 0.25)


def in_torch(state: PairState, name: str) -> Terms:
    own = {"a": state.a, "b": state.b, "n_w": state.n_w, "n_l": state.n_l}
    if OBJECTIVES[name].needs_reference:
        own |= {"r_w": state.r_w, "r_l": state.r_l}
    return Terms(**{key: torch.tensor(value) for key, value in own.items()}, progress=state.progress)


def known(state: PairState) -> Kernels:
    ones = np.ones((1, 1))
    return Kernels(
        1, 1.0, {}, {}, {}, {"w": ones, "l": ones}, {"w": ones / 3.0, "l": ones / 5.0}, {}, state, ones / PAIRS
    )


@pytest.mark.parametrize("nll", [{}, *({"nll": 0.3, "nll_mean": mean} for mean in ("batch", "pair", "sum"))])
@pytest.mark.parametrize("name", FORMS)
def test_pulls_in_closed_form_are_those_of_the_library(name: str, nll: dict) -> None:
    state, hyper = drawn(), resolve_hyper(name, {**nll, **({"schedule": True} if name == "dpo_shift" else {})})
    found = pulls_of(Method(name, hyper), known(state), state, 0)
    for mine, theirs in zip(found, pulls(name, in_torch(state, name), hyper), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shaping", ["gate-seq", "adadpo"])
@pytest.mark.parametrize("name", FORMS)
def test_shaped_pulls_are_those_of_the_library(name: str, shaping: str) -> None:
    chosen, state = parse_shaping(shaping), drawn(1)
    if not chosen.shaping.fits(OBJECTIVES[name]) or not FITS[shaping](name, chosen.options):
        pytest.skip("not composed here")
    hyper = resolve_hyper(name)
    found = pulls_of(Method(name, hyper, {shaping: chosen.options}), known(state), state, 0)
    for mine, theirs in zip(found, pulls(name, in_torch(state, name), hyper, [shaping]), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-9, atol=1e-12)


def test_normalised_pulls_are_those_of_the_library() -> None:
    draw = np.random.default_rng(2)
    d_w, d_l = draw.normal(0, 1, (2, PAIRS))
    norms = draw.uniform(0.5, 2, (2, PAIRS))
    theirs = normalised_pulls(*map(torch.tensor, (d_w, d_l, *norms)))
    for mine, wanted in zip(normalised((d_w, d_l), *norms), theirs[:2], strict=True):
        np.testing.assert_allclose(mine, wanted.numpy())


def test_kernels_are_means_of_the_rows_by_position(fallen: Trace) -> None:
    found = kernels(fallen)
    assert found is not None and found.steps == 120 and found.stride == 3
    rows = fallen.pushes[fallen.pushes.side == "chosen"]
    place = (rows.step / 120 * 40).astype(int)
    for source, letter in (("chosen", "w"), ("rejected", "l")):
        others = (rows[f"all_{source}"] - rows[f"own_{source}"]).groupby(place).mean()
        np.testing.assert_allclose(found.others["w", letter][0][others.index], others)
        own = rows[f"own_{source}"].groupby(place).mean()
        np.testing.assert_allclose(found.own["w", letter][0][own.index], own)
    pull = fallen.pairs.pull_rejected.groupby((fallen.pairs.step / 120 * 40).astype(int)).mean()
    np.testing.assert_allclose(found.pull["l"][0][pull.index], pull)
    np.testing.assert_allclose(found.picks.sum(1), 1)
    assert np.std(found.others["w", "l"][1:, 0]) > 0


def test_the_run_as_recorded_walks_along_its_own_pushes(fallen: Trace) -> None:
    """With the recorded pulls and nothing that fades, the walk adds up the pushes of other pairs."""
    found = kernels(fallen)
    assert found is not None
    one = replace(found, certain={s: np.full_like(v, np.nan) for s, v in found.certain.items()})
    pushes = sum(found.others["w", q] for q in "wl") + found.rest["w"]
    wanted = (pushes * found.stride).sum(1)[0] * (found.picks[0] / found.state.n_w).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walking, "_softened", np.ones_like)
        assert walk(one, Method(None)).chosen[0] == pytest.approx(wanted)
        assert walk(one, Method(None), adaptive=False).chosen[0] == pytest.approx(wanted)


def test_a_walk_does_not_depend_on_the_length_of_its_strides_where_pushes_cancel(
    fallen: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushes of 5 nats a step that cancel, chosen close to certain: with a quarter less push on rejected chosen has
    nowhere to go, and the pushes go on cancelling on rejected."""
    found = kernels(fallen)
    assert found is not None
    strong = {(s, q): v + (5.0 if q == "w" else -5.0) for (s, q), v in found.others.items()}
    certain = {**found.certain, "w": np.full_like(found.certain["w"], 1 - np.exp(-0.1))}
    stiff = replace(found, others=strong, certain=certain, state=replace(found.state, a=-0.1 * found.state.n_w))
    ends = {}
    for fine, parts in ((walking.FINE, walking.PARTS), (walking.FINE / 10, 4000), (np.inf, 1)):
        monkeypatch.setattr(walking, "FINE", fine)
        monkeypatch.setattr(walking, "PARTS", parts)
        there = walk(stiff, Method("dpo_shift", resolve_hyper("dpo_shift")))
        ends[parts] = (float(there.chosen[0]), float(there.rejected[0]))
    own, exact, coarse = ends.values()
    assert own == pytest.approx(exact, abs=0.05)
    assert coarse[1] < exact[1] - 1  # a stride at a time leaves rejected without its counterweight


def test_the_balance_of_a_walk_is_that_of_its_pulls(fallen: Trace) -> None:
    found = kernels(fallen)
    assert found is not None
    shifted = Method("dpo_shift", resolve_hyper("dpo_shift", {"lambda": 0.8}))
    assert walk(found, shifted).balance == pytest.approx(
        walk(found, Method("dpo", resolve_hyper("dpo"))).balance + 0.25
    )


def test_a_common_factor_on_the_pulls_changes_nothing_under_an_adaptive_optimizer(fallen: Trace) -> None:
    found = kernels(fallen)
    assert found is not None
    doubled = Method("dpo", resolve_hyper("dpo", {"beta": 0.2}))
    plain = Method("dpo", resolve_hyper("dpo"))
    short = replace(found, pull={q: np.ones_like(v) for q, v in found.pull.items()})
    small = [replace(method, length=1 / 40) for method in (plain, doubled)]  # a step: the pulls are still β/2
    adaptive = [walk(short, method).chosen[0] for method in small]
    scaled = [walk(short, method, adaptive=False).chosen[0] for method in small]
    at_start = short.state
    assert adaptive[0] == pytest.approx(adaptive[1], rel=0.02) and np.isfinite(at_start.a).all()
    assert scaled[1] / scaled[0] == pytest.approx(2, rel=0.1)


def test_half_the_rate_is_half_the_path(fallen: Trace) -> None:
    found = kernels(fallen)
    assert found is not None
    half, short = walk(found, Method(None, rate=0.5)), walk(found, Method(None, length=0.5))
    assert half.chosen[0] == pytest.approx(short.chosen[0], rel=0.15, abs=0.02)


def test_the_table_is_ordered_by_gain_per_margin_lost_and_anchored_in_what_was_measured(fallen: Trace) -> None:
    every, table = estimates(fallen), fix_table(fallen)
    assert len(every) >= 8 and all(one.gain > 0 for one in table)
    told = [one.worth for one in table if one.told]
    assert told == sorted(told, reverse=True) and [one.told for one in table] == sorted(
        (one.told for one in table), reverse=True
    )
    for one in every:
        assert one.chosen - one.gain == pytest.approx(-0.38)
        assert one.margin - one.cost == pytest.approx(one.chosen - one.rejected)
        assert one.worth == pytest.approx(one.gain / max(one.cost, LEAST_COST * 1.52))


def test_the_error_of_a_margin_is_of_the_pairs_of_the_walk_and_of_first_order(fallen: Trace) -> None:
    found, moved = kernels(fallen), run_change(fallen)
    assert found is not None and moved is not None
    run = recorded(fallen, found)
    base = walk(found, run.method)
    missed = (base.chosen[0] - moved.chosen.mean()) - (base.rejected[0] - moved.rejected.mean())
    for one in estimates(fallen):
        there = walk(found, one.change.method)
        margins = (there.chosen - base.chosen) - (there.rejected - base.rejected)
        wanted = margins[1:].var(ddof=1) + missed**2 + (0.2 * 1.52) ** 2
        assert one.margin_error**2 == pytest.approx(wanted)


def test_where_pushes_nearly_cancel_nothing_is_told_of_what_acts_through_them(tmp_path: Path) -> None:
    rows = simulate(DEFAULT)["pushes"]
    chosen = rows.all_chosen - rows.own_chosen
    close = moved_run(tmp_path / "close", -0.38, -1.9, all_rejected=rows.own_rejected - 1.002 * chosen)
    told = {one.key for one in estimates(close) if one.told and REMEDIES[one.key].by_balance}
    assert "beta" not in told  # leaves the balance of pulls as it is
    assert "dpo_shift" in told  # a quarter less push on rejected is a hundred times what was left
    apart = moved_run(tmp_path / "apart", -0.38, -1.9, all_rejected=rows.own_rejected - 1.02 * chosen)
    assert any(one.told and REMEDIES[one.key].by_balance for one in estimates(apart))


def test_a_rise_of_rejected_has_its_own_order(tmp_path: Path) -> None:
    run = moved_run(tmp_path / "risen", 0.4, 0.3, Options(regime="case3"))
    for one in estimates(run):
        assert one.gain == pytest.approx(0.3 - one.rejected)
    errors = [one.error for one in fix_table(run)]
    assert min(errors) > 0.4  # more than anything moved: nothing is told, in one sentence
    assert not any(one.told for one in estimates(run)) and "No remedy can be told from this run" in why_none(run)
    assert fixes(run)["rows"] == []


@pytest.mark.parametrize(
    ("about", "closed"),
    [
        ({"name": "dpo", "hyper": {"beta": 0.2, "loss_type": ["sigmoid"]}}, True),
        ({"name": "kto", "hyper": {}}, False),
        ({"name": "sigmoid + 0.1 sft", "hyper": {}}, False),
        ({"name": "dpo", "shaping": [{"name": "gate-q10", "options": {}}]}, False),
        ({"name": "dpo", "shaping": [{"name": "gate-seq", "options": {"tau": 0.2}}]}, True),
    ],
)
def test_pulls_that_are_not_known_in_closed_form_are_taken_as_recorded(
    about: dict, closed: bool, fallen: Trace
) -> None:
    trace = with_manifest(fallen, objective=about)
    found = kernels(trace)
    assert found is not None
    run = recorded(trace, found)
    assert (run.method.objective is not None) == closed
    assert not closed or run.method.hyper["beta"] == about.get("hyper", {}).get("beta", 0.1)
    assert {"early", "rate"} <= {one.key for one in estimates(trace)}


def test_pulls_that_change_sign_are_not_scaled(fallen: Trace) -> None:
    turned = replace(fallen)
    turned.pairs["pull_rejected"] = np.where(turned.pairs.step > 60, -0.1, 0.1)
    assert kernels(turned) is None and "pulls that stay above 0" in why_none(turned)
