"""A likelihood term on any objective: in loss, pulls, TRL's own sums, and a run's updates; 0 is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closed_forms import nll, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers
from reference.gradients import logp
from tiny_runs import TRAINED, run, tiny, uneven

from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.collating import collate
from dyn_probe.entanglement import counterfactual
from dyn_probe.errors import BadInput
from dyn_probe.objectives import OBJECTIVES, SHAPINGS, Terms, pair_loss, pulls, resolve_hyper, shapings_of
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import newest_checkpoint
from dyn_probe.train.setup import prepare

MEANS = ("batch", "pair", "sum")


def assert_adds(name: str, terms: Terms, hyper: dict[str, Any], weight: float, mean: str, shapings: Any = ()) -> None:
    """Loss and d_w grow by the closed form of the term, d_l stays."""
    likely = hyper | {"nll": weight, "nll_mean": mean}
    with_it, without = (pair_loss(name, terms, h, shapings)[0] for h in (likely, hyper))
    (d_w, d_l), (bare_w, bare_l) = (pulls(name, terms, h, shapings) for h in (likely, hyper))
    loss, pull = nll(numbers(terms), likely)
    np.testing.assert_allclose((with_it - without).numpy(), loss, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((d_w - bare_w).numpy(), np.broadcast_to(pull, d_w.shape), rtol=1e-9, atol=1e-9)
    assert torch.equal(d_l, bare_l)


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms(), weight=st.floats(0.01, 3), mean=st.sampled_from(MEANS))
def test_it_adds_to_the_loss_and_to_the_pull_on_chosen(
    name: str, data: st.DataObject, terms: Terms, weight: float, mean: str
) -> None:
    assert_adds(name, terms, data.draw(hypers(name)), weight, mean)


@pytest.mark.parametrize("mean", MEANS)
@settings(max_examples=15, deadline=None)
@given(terms=all_terms())
def test_no_shaping_of_the_pair_term_touches_it(mean: str, terms: Terms) -> None:
    for shaping in shapings_of(OBJECTIVES["dpo"]):
        if SHAPINGS[shaping].apply and not SHAPINGS[shaping].rows:
            assert_adds("dpo", terms, {"beta": 0.3}, 0.7, mean, [shaping])


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=10, deadline=None)
@given(terms=all_terms(), mean=st.sampled_from(MEANS))
def test_a_weight_of_0_is_exactly_the_objective_without_it(name: str, terms: Terms, mean: str) -> None:
    none = {"nll": 0, "nll_mean": mean}
    assert torch.equal(pair_loss(name, terms, none)[0], pair_loss(name, terms)[0])
    for ours, plain in zip(pulls(name, terms, none), pulls(name, terms), strict=True):
        assert torch.equal(ours, plain)


@settings(max_examples=20, deadline=None)
@given(terms=all_terms(), seed=st.integers(0, 1000), mean=st.sampled_from(MEANS))
def test_law_1_and_the_pulls_are_the_derivative(terms: Terms, seed: int, mean: str) -> None:
    """cᵀKc = ‖∇ mean loss‖² with c = (−d_w, d_l)/B, against autograd through random row gradients."""
    hyper = {"nll": 0.4, "nll_mean": mean}
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(2 * len(terms.a), 5)))
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    moved_a, moved_b = (rows @ theta).chunk(2)
    live = replace(terms, a=terms.a + moved_a, b=terms.b + moved_b)
    (gradient,) = torch.autograd.grad(pair_loss("dpo", live, hyper)[0].mean(), theta)
    d_w, d_l = pulls("dpo", terms, hyper)
    c = torch.cat([-d_w, d_l]) / len(d_w)
    torch.testing.assert_close(c @ (rows @ rows.T) @ c, gradient @ gradient)


def test_the_batch_is_that_of_the_step_where_it_is_given() -> None:
    one = torch.ones(2, dtype=torch.float64)
    terms = Terms(-one, -one, 4 * one, one, r_w=-one, r_l=-one)
    for tokens, pull in ((None, 1 / 4), (10.0, 1 / 10)):
        d_w, _ = pulls("dpo", replace(terms, batch_tokens=tokens), {"nll": 1.0})
        torch.testing.assert_close(d_w, 0.05 + pull * one)


@pytest.mark.parametrize("seed", range(4))
def test_trl_sums_it_so(seed: int) -> None:
    """``loss_type=["sigmoid", "sft"]`` with ``loss_weights``, and ``CPOTrainer``'s ``cpo_alpha``, on uneven lengths."""
    trl_losses = pytest.importorskip("trl_losses", reason="needs trl", exc_type=ImportError)
    from test_objectives_trl import assert_same, assert_same_pulls, random_batch, random_rows, terms_of

    rows = random_rows(seed)
    assert len(set(rows.said[: len(rows.said) // 2].sum(1).tolist())) > 1
    for name, loss_type in (("dpo", "sigmoid"), ("ipo", "ipo"), ("sppo", "sppo_hard")):
        hyper = {"beta": 0.3, "nll": 0.7}
        theirs, _ = trl_losses.dpo_step({loss_type: 1.0, "sft": 0.7}, rows, 0.3)
        assert_same(pair_loss(name, terms_of(rows), hyper)[0].mean(), theirs)
        assert_same_pulls(name, terms_of(rows), hyper, rows, theirs)
    ids, said, logits, _ = random_batch(seed, 2)
    said[0, -1] = False  # chosen of two lengths
    from dyn_probe.pairs import PairBatch, token_logps

    batch = PairBatch(ids, (ids != 0).long(), said.long())
    terms = Terms.from_rows(token_logps(logits, batch).sum(1), batch.lengths)
    theirs = trl_losses.cpo_loss("sigmoid", ids, said, logits, beta=0.2, cpo_alpha=0.6)
    assert_same(pair_loss("cpo", terms, {"beta": 0.2, "lambda": 0.0, "nll": 0.6})[0].mean(), theirs)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_of_the_loop_is_the_slow_twins(mean: str, parts: int, tmp_path: Path) -> None:
    """One plain gradient step on the written-out loss of the step's 4 pairs, in one batch or in two."""
    options: dict[str, Any] = dict(
        data=uneven(tmp_path), hyper={"nll": 0.5, "nll_mean": mean}, dtype="float64", optimizer="sgd", steps=1, lr=0.1,
        batch_size=4 // parts, gradient_accumulation=parts, checkpoint_every=1, max_grad_norm=0.0, max_pairs=4,
    )  # fmt: skip
    setup = prepare(tiny(tmp_path / "other", **options))
    batch = collate([setup.pairs[i] for i in step_order(4, 4, 0, 0)])
    model = built_in_model(0).double().eval()
    inputs = zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True)
    rows = torch.stack([logp(model, *row) for row in inputs])
    a, b, n = rows[:4], rows[4:], batch.lengths[:4]
    assert len(set(n.tolist())) > 2
    likely = {"batch": -a.sum() / n.sum(), "pair": -(a / n).mean(), "sum": -a.mean()}[mean]
    ratio = (a - a.detach()) - (b - b.detach())
    (-F.logsigmoid(0.1 * ratio).mean() + 0.5 * likely).backward()
    run(tmp_path / "run", **options)
    after = newest_checkpoint(tmp_path / "run")["model"]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        moved = (parameter.detach() - after[name]) / 0.1
        torch.testing.assert_close(moved, parameter.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("objective", TRAINED)
def test_every_objective_trains_with_it(objective: str, tmp_path: Path) -> None:
    data = uneven(tmp_path)
    trace = run(tmp_path / "run", objective=f"{objective}:nll=0.3", gram_every=1, data=data)
    assert (trace.steps["law1_error"] < 1e-4).all() and trace.manifest["objective"]["hyper"]["nll"] == 0.3
    plain = run(tmp_path / "plain", objective=objective, data=data)
    first = [t.pairs.query("step == 0") for t in (trace, plain)]
    added = 0.3 / first[0]["len_chosen"].mean()
    np.testing.assert_allclose(first[0]["pull_chosen"] - first[1]["pull_chosen"], added, rtol=1e-3)
    np.testing.assert_array_equal(first[0]["pull_rejected"], first[1]["pull_rejected"])


def test_the_counterfactual_of_a_recorded_run_is_the_run_that_has_it(tmp_path: Path) -> None:
    """The first step of a DPO run, asked what DPO with the term would have done, against a run of just that."""
    options: dict[str, Any] = dict(dtype="float64", steps=1, data=uneven(tmp_path))
    plain, likely = (run(tmp_path / str(weight), hyper={"nll": weight}, **options).pairs for weight in (0.0, 0.6))
    rows = {name: torch.tensor(plain[name].to_numpy(float)) for name in plain if plain[name].dtype.kind in "fi"}
    terms = Terms(
        a=rows["logp_chosen"], b=rows["logp_rejected"], n_w=rows["len_chosen"], n_l=rows["len_rejected"],
        r_w=rows["ref_logp_chosen"], r_l=rows["ref_logp_rejected"],
    )  # fmt: skip
    entries = tuple(plain[name] for name in ("grad_norm_chosen", "grad_norm_rejected", "grad_inner"))
    d_w, d_l = pulls("dpo", terms, {"nll": 0.6})
    up, down, case = counterfactual(entries, (d_w.numpy(), d_l.numpy()), 1e-3)
    np.testing.assert_allclose(up, likely["predicted_delta_chosen"], rtol=1e-8)
    np.testing.assert_allclose(down, likely["predicted_delta_rejected"], rtol=1e-8)
    assert list(case) == list(likely["case"])


def test_a_weight_of_0_leaves_a_run_as_it_is_bit_for_bit(tmp_path: Path) -> None:
    none = run(tmp_path / "none", hyper={"nll": 0.0, "nll_mean": "sum"}, steps=3)
    for column in ("loss", "logp_chosen", "pull_chosen"):
        assert list(none.pairs[column]) == list(run(tmp_path / column, steps=3).pairs[column])


def test_what_it_cannot_go_with_is_refused_by_name() -> None:
    one = torch.ones(1)
    with pytest.raises(BadInput, match=r"token-mask trains other log-probabilities .* leave nll off"):
        pair_loss("dpo", Terms(-one, -one, one, one), {"nll": 0.1}, ["token-mask"])
    with pytest.raises(BadInput, match="unknown option 'nll'; sft takes no options"):
        resolve_hyper("sft", {"nll": 0.1})
    with pytest.raises(BadInput, match="nll_mean must be batch or pair or sum; got 'all'"):
        resolve_hyper("dpo", {"nll_mean": "all"})
    with pytest.raises(BadInput, match="nll must be a number ≥ 0; got -1"):
        resolve_hyper("dpo", {"nll": -1})
