"""Paired tests between the methods of a grid: against enumeration and integration, with the pairing as it is said."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dyn_probe.train.grid import Outcome, mean_outcomes, outcome_data, outcome_lines
from dyn_probe.train.grids.paired_tests import paired_lines, paired_sentence, paired_test, paired_tests

GAPS = (0.9, -0.2, 1.4, 0.3, 0.7, 1.1, -0.4, 0.6)


def found(gaps: tuple[float, ...] = GAPS) -> list[Outcome]:
    """Two methods in two settings with seeds each, the second higher by the gaps; listed in another order."""
    cells = list(itertools.product(("lr=1", "lr=2"), range(len(gaps) // 2)))
    level = np.random.default_rng(0).normal(-3, 2, len(cells))
    first = [Outcome("a", seed, x, -5.0, 0.5, 0.6, "", s) for (s, seed), x in zip(cells, level, strict=True)]
    second = [
        Outcome("b", seed, x + gap, -5.0, 0.5, 0.6, "", s) for (s, seed), x, gap in zip(cells, level, gaps, strict=True)
    ]
    return [*first, *reversed(second)]


def wilcoxon_by_enumeration(gaps: tuple[float, ...]) -> float:
    """Two-sided p of the signed-rank sum over all signs, each equally probable."""
    ranks = np.argsort(np.argsort(np.abs(gaps))) + 1
    total = ranks.sum()
    seen = abs(ranks[np.array(gaps) > 0].sum() - total / 2)
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=len(gaps))
    ]
    return float(np.mean([abs(s - total / 2) >= seen for s in sums]))


def t_by_integration(gaps: tuple[float, ...]) -> float:
    """Two-sided p of t = mean/(s/√n) under Student's density with n − 1 degrees of freedom."""
    n = len(gaps)
    t = abs(np.mean(gaps) / (np.std(gaps, ddof=1) / math.sqrt(n)))
    x = np.linspace(-t, t, 200_001)
    density = (1 + x**2 / (n - 1)) ** (-n / 2) * math.gamma(n / 2)
    return float(1 - np.trapezoid(density, x) / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2)))


def test_the_tests_are_those_of_enumeration_and_integration() -> None:
    one = paired_test(found(), "a", "b", "chosen")
    assert one.wilcoxon == pytest.approx(wilcoxon_by_enumeration(GAPS))
    assert one.t_test == pytest.approx(t_by_integration(GAPS), rel=1e-6)
    assert (one.pairs, one.wins, one.ties) == (8, 0.75, 0.0)
    assert one.difference == pytest.approx(np.mean(GAPS))
    assert one.error == pytest.approx(np.std(GAPS, ddof=1) / math.sqrt(8))
    mirrored = paired_test(found(), "b", "a", "chosen")
    assert mirrored.difference == pytest.approx(-one.difference) and mirrored.wins == 0.25


def test_the_pairing_is_by_setting_and_seed() -> None:
    """Exchanging which seed a run belongs to changes the error, not the mean; runs without a partner do not count."""
    right = found()
    turned = [
        one if one.method == "a" else Outcome("b", 3 - one.seed, one.chosen, -5.0, 0.5, 0.6, "", one.setting)
        for one in right
    ]
    one, other = (paired_test(rows, "a", "b", "chosen") for rows in (right, turned))
    assert one.difference == pytest.approx(other.difference) and other.error > 2 * one.error
    assert paired_test([*right, Outcome("b", 9, 50.0, 0, 1)], "a", "b", "chosen").difference == pytest.approx(
        one.difference
    )


def test_sentences_say_share_size_error_and_pairing() -> None:
    lines = paired_lines(paired_tests(found()))
    assert lines[0].startswith(
        "b beats a by Δchosen in 75% of 8 combinations: +0.55 ± 0.22 nats/sequence (Wilcoxon p 0.0"
    )
    assert "(equal in 100%)" in lines[2] and "Wilcoxon p –" in lines[2]
    assert "Paired by setting and seed" in lines[-1] and "not corrected" in lines[-1]
    assert lines[0] in outcome_lines(found()) and lines[0] in outcome_data(found())["says"]


@pytest.mark.parametrize("gaps", [(), (0.5,)])
def test_without_two_combinations_nothing_is_claimed(gaps: tuple[float, ...]) -> None:
    rows = [Outcome("a", 0, 1.0, 0, 1), *(Outcome("b", 0, 1.0 + gap, 0, 1) for gap in gaps)]
    assert paired_lines(paired_tests(rows)) == []
    if gaps:
        one = paired_test(rows, "a", "b", "chosen")
        assert math.isnan(one.t_test) and math.isnan(one.error) and "p –" in paired_sentence(one)


def test_means_and_errors_are_by_setting_and_over_all() -> None:
    rows = {row.name: row for row in mean_outcomes(found())}
    assert list(rows)[:3] == ["a (lr=1)", "a (lr=2)", "a (all settings)"]
    own = [one.chosen for one in found() if one.method == "a"]
    assert rows["a (all settings)"].mean.chosen == pytest.approx(np.mean(own))
    assert rows["a (all settings)"].error("chosen") == pytest.approx(np.std(own, ddof=1) / math.sqrt(8))
    assert rows["a (lr=1)"].mean.chosen == pytest.approx(np.mean(own[:4]))
