"""The paper's theorems, numerically: formulas against autograd, signs under the assumptions, and a counterexample."""

from __future__ import annotations

import pytest
import torch

from dyn_probe.studies import theory
from dyn_probe.studies.theory import STATEMENTS, after_difference, assumption, logit_change, table


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", STATEMENTS)
def test_formulas_equal_autograd(name, seed):
    for one in STATEMENTS[name](seed=seed):
        assert one.error < 1e-9, one


@pytest.mark.parametrize("tokens", [2, 3, 8, 32])
def test_theorem_1_for_any_mass(tokens):
    inner, chosen, rejected = theory.theorem_1(tokens=tokens)
    assert inner.measured < 0 and inner.error < 1e-9
    assert chosen.measured == pytest.approx(rejected.measured) == pytest.approx(-(tokens - 1) * inner.measured)


@pytest.mark.parametrize("seed", range(5))
def test_signs(seed):
    up, down = theory.corollary_2(seed=seed)
    assert up.measured > 0 > down.measured
    before, at, after = theory.theorem_3(seed=seed)
    assert before.measured == 0 and at.measured >= 0 >= after.measured


@pytest.mark.parametrize("seed", range(20))
def test_after_the_difference_for_any_pair_of_contexts(seed):
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s_w, s_l = logits.softmax(1)
    measured, apart = logit_change(logits[0], logits[1], 4, 4)
    assert apart < 1e-12
    assert after_difference(s_w, s_l, 4) == pytest.approx(measured, abs=1e-12)
    if assumption(s_w, s_l, 4):
        assert measured <= 0


def test_without_the_assumption_the_sign_may_be_another():
    behind = torch.zeros(6, dtype=torch.float64)
    raised = behind.clone()
    raised[2] += 1.5
    assert not assumption(behind.softmax(0), raised.softmax(0), 2)
    assert logit_change(behind, raised, 2, 2)[0] > 0


def test_a_wrong_formula_is_seen(monkeypatch):
    monkeypatch.setattr(theory, "uniform_logits", lambda v, m: torch.linspace(0, 1, v).double())
    assert max(one.error for one in theory.theorem_1()) > 1e-3
    swapped = theory.Checked("Theorem 3, at m", "1 + s[j★] − s[k★]", 0.9, 1.1)
    assert swapped.error > 1e-3


def test_the_table_has_every_statement():
    text = table()
    assert all(name in text for name in STATEMENTS) and len(text.splitlines()) == 9
