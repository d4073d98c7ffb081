"""Scores: what every objective compares of a response, against closed forms and against TRL's logged rewards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import SCORES
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.errors import BadInput
from dyn_probe.objectives import OBJECTIVES, Terms, pair_loss, resolve_hyper
from dyn_probe.objectives.scores import LOG_RATIO, Score


def test_every_objective_has_a_closed_form() -> None:
    assert set(SCORES) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_scores_equal_the_closed_form(name: str, data: st.DataObject, terms: Terms) -> None:
    hyper = resolve_hyper(name, data.draw(hypers(name)))
    score, row = OBJECTIVES[name].score_of(hyper), OBJECTIVES[name]
    for logps, lengths, reference in ((terms.a, terms.n_w, terms.r_w), (terms.b, terms.n_l, terms.r_l)):
        assert reference is not None
        ours = score.of(logps, lengths, reference if row.needs_reference else None)
        wanted = SCORES[name](logps.numpy(), lengths.numpy(), reference.numpy(), hyper)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name, row in OBJECTIVES.items() if not row.stage])
@settings(max_examples=25, deadline=None)
@given(terms=all_terms())
def test_the_loss_falls_where_the_score_of_chosen_grows(name: str, terms: Terms) -> None:
    """The score is the direction of the pull on chosen at a pair that is ordered wrong, likelihood term aside."""
    hyper = resolve_hyper(name, {"lambda": 0.0} if name in ("cpo", "rrhf", "slic_hf") else None)
    wrong = replace(terms, a=terms.a - 20, kl=0.0)
    better = replace(wrong, a=wrong.a + 1e-3)
    assert (pair_loss(name, better, hyper)[0] <= pair_loss(name, wrong, hyper)[0]).all()
    score = OBJECTIVES[name].score_of(hyper)
    before, after = (score.of(t.a, t.n_w, t.r_w) for t in (wrong, better))
    assert (after > before).all()


def test_a_log_ratio_without_a_reference_is_refused() -> None:
    with pytest.raises(BadInput, match="needs reference log-probabilities; got none"):
        LOG_RATIO.of(torch.zeros(2), torch.ones(2))


def test_scores_carry_no_gradient() -> None:
    live = torch.zeros(2, requires_grad=True)
    assert not LOG_RATIO.of(live, torch.ones(2), torch.zeros(2)).requires_grad


def test_a_wrong_score_is_seen() -> None:
    wrong = Score(lambda logps, lengths, reference: logps * 1.001, "a, b", "nats/sequence", "a wrong one")
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong.of(torch.ones(2), torch.ones(2)).numpy(), 1.0, rtol=1e-9)
