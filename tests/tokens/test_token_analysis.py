"""Decompositions add up, counterparts are the right tokens, and groups are ranked by what they carry."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_samples import LABELS, SUFFIX, heat_of, label_heat, table_rows

from dyn_probe import BadInput
from dyn_probe.token_analysis import (
    REGIONS,
    TokenHeat,
    align,
    counterparts,
    first_difference,
    insignificant_tokens,
    recorded_heats,
    region_inner,
    region_shares,
    region_sums,
    significant_tokens,
    token_groups,
    visible,
)

TOKENS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(tuple)


@settings(max_examples=60, deadline=None)
@given(TOKENS, TOKENS)
def test_regions_add_up_to_the_inner_product(chosen, rejected):
    heat = heat_of(chosen, rejected)
    assert region_sums(heat).sum() == pytest.approx(heat.total)
    assert sum(region_inner(heat).values()) == pytest.approx(heat.total)
    assert sum(region_shares(heat).values()) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(TOKENS, TOKENS)
def test_every_token_is_aligned_once_and_in_order(chosen, rejected):
    places = align(chosen, rejected)
    assert [i for i, _ in places if i is not None] == list(range(len(chosen)))
    assert [j for _, j in places if j is not None] == list(range(len(rejected)))


def test_regions_by_hand():
    inner = np.arange(12.0).reshape(3, 4)
    heat = TokenHeat(0, "p", ("a", "b", "c"), ("a", "x", "c", "d"), inner, inner)
    assert first_difference(heat.tokens_chosen, heat.tokens_rejected) == 1
    np.testing.assert_array_equal(region_sums(heat), [[0, 1, 5], [4, 5, 13], [8, 9, 21]])
    assert region_inner(heat) == {"before": 0, "at": 10, "after": 56}
    assert region_shares(heat)["at"] == pytest.approx(10 / 66)


def test_an_inserted_token_moves_the_counterparts_behind_it():
    places = align(("It", "is", "good", "."), ("It", "is", "not", "very", "good", "."))
    assert places == [(0, 0), (1, 1), (None, 2), (None, 3), (2, 4), (3, 5)]
    assert align(("a", "b", "c"), ("a", "x", "c")) == [(0, 0), (1, 1), (2, 2)]
    assert align(("a", "b", "c", "d"), ("a", "x", "d")) == [(0, 0), (1, 1), (2, None), (3, 2)]


def test_counterparts_carry_their_entry():
    heat = label_heat()
    found = counterparts(heat)
    assert [(one.i, one.j) for one in found] == [(k, k) for k in range(1 + len(SUFFIX))]
    assert found[0].significant and not found[0].same and not found[1].significant and found[1].same
    assert found[3].inner == heat.inner[3, 3] and found[3].cosine == heat.cosine[3, 3]
    assert found[3].share == pytest.approx(heat.inner[3, 3] / heat.inner.sum())


def test_groups_over_a_run():
    heats = [label_heat(step, pair) for step in (0, 5) for pair in ("p0", "p1")]
    groups = token_groups(heats)
    assert {group.count for group in groups} == {4}
    assert [group.share for group in groups] == sorted((group.share for group in groups), reverse=True)
    (label,) = significant_tokens(heats)
    assert (label.chosen, label.rejected) == LABELS and label.negative == 1
    assert label.cosine == pytest.approx(np.mean([heat.cosine[0, 0] for heat in heats]))
    assert {(g.chosen, g.rejected) for g in insignificant_tokens(heats)} == {(t, t) for t in SUFFIX}
    total = sum(heat.inner.sum() for heat in heats)
    assert label.share == pytest.approx(sum(heat.inner[0, 0] for heat in heats) / total)


def test_shares_of_a_sum_that_is_rounding_are_no_numbers():
    inner = np.array([[1.0, -1.0], [1e-12, 0.0]])
    heat = TokenHeat(0, "p", ("a", "b"), ("a", "c"), inner, inner)
    assert all(np.isnan(value) for value in region_shares(heat).values())
    assert list(region_inner(heat)) == list(REGIONS)
    assert token_groups([]) == []


def test_a_table_reads_back():
    heats = [label_heat(step, pair) for step in (0, 5) for pair in ("p0", "p1")]
    rows = [row for heat in reversed(heats) for row in table_rows(heat)]
    rows += [{**row, "side": "chosen"} for row in rows]
    table = pd.DataFrame(rows)
    found = recorded_heats(table, "p1")
    assert [heat.step for heat in found] == [0, 5] and len(recorded_heats(table)) == 4
    np.testing.assert_array_equal(found[1].inner, heats[3].inner)
    with pytest.raises(BadInput, match=r"no token rows of pair 'nobody'; recorded: p"):
        recorded_heats(table, "nobody")
    broken = pd.DataFrame([{**rows[0], "inner": [1.0]}])
    with pytest.raises(BadInput, match="wanted 8 × 8 numbers, got 1"):
        recorded_heats(broken)
    with pytest.raises(BadInput, match="heat map of 1 × 1"):
        TokenHeat(0, "p", ("a",), ("b",), np.zeros((1, 2)), np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" good", "␣good"),
        ("\n\n", "⏎⏎"),
        ("\t", "⇥"),
        ("", "∅"),
        ("</s>", "</s>"),
        ("\x00", "\\u0000"),
        ("\u202e", "\\u202e"),
        ("é", "é"),
        ("x" * 40, "x" * 15 + "…"),
    ],
)
def test_tokens_are_visible(token, shown):
    assert visible(token) == shown
