"""The two tables: names, options, needed terms, refusals, and the rows that ``describe`` prints."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from objective_terms import all_terms, bare

from dyn_probe.errors import BadInput
from dyn_probe.objectives import (
    CHANGES,
    OBJECTIVES,
    SHAPINGS,
    STAGES,
    Terms,
    check_terms,
    composes_with,
    describe,
    pair_loss,
    parse_objective,
    parse_shaping,
    pulls,
    resolve_hyper,
    shapings_of,
)
from dyn_probe.objectives.describe import KINDS
from dyn_probe.objectives.options import LIKELIHOOD, OPTIONS
from dyn_probe.objectives.pair_terms import MEANINGS
from dyn_probe.trace.schema import PAIRS
from dyn_probe.train.options.config import OPTIONS as CONFIG


def simple(**more: Any) -> Terms:
    one = torch.ones(2)
    return Terms(-one, -2 * one, one, one, **more)


REFERENCE = {"r_w": -torch.ones(2), "r_l": -torch.ones(2)}


def test_rows_are_listed_under_their_own_names() -> None:
    assert all(name == row.name for name, row in [*OBJECTIVES.items(), *SHAPINGS.items()])


def test_every_name_in_the_tables_is_known() -> None:
    for row in OBJECTIVES.values():
        assert set(shapings_of(row)) <= set(SHAPINGS)
        needed = {*row.terms, *(name for names in row.terms_if.values() for name in names)}
        assert needed <= set(MEANINGS) and set(row.terms_if) <= set(row.defaults)
    for shaping in SHAPINGS.values():
        assert set(shaping.needs) <= set(MEANINGS)
        assert set(shaping.columns) <= set(PAIRS.names)
        assert composes_with(shaping.name)


def test_every_option_has_a_meaning_and_an_allowed_default() -> None:
    for row in [*OBJECTIVES.values(), *SHAPINGS.values()]:
        for key in row.defaults:
            assert f"{row.name}.{key}" in OPTIONS or key in OPTIONS
    for name in OBJECTIVES:
        assert resolve_hyper(name, OBJECTIVES[name].defaults) == OBJECTIVES[name].options


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=5, deadline=None)
@given(terms=all_terms())
def test_all_shapings_that_compose_fill_their_columns_and_keep_pulls_finite(name: str, terms: Terms) -> None:
    """Also all at once: gate, ρ and token mask together, in either order."""
    for shaping in shapings_of(OBJECTIVES[name]):
        losses, columns = pair_loss(name, bare(terms, name), None, [shaping])
        filled = SHAPINGS[shaping].columns if SHAPINGS[shaping].apply else ()
        assert set(columns) == set(filled) and losses.shape == terms.a.shape
        assert all(c.shape == terms.a.shape and not c.requires_grad for c in columns.values())
    together: list[str] = []
    for shaping in shapings_of(OBJECTIVES[name]):  # as many as do not fill each other's columns
        filled = {column for one in together for column in SHAPINGS[one].columns}
        if SHAPINGS[shaping].apply and not filled & set(SHAPINGS[shaping].columns):
            together.append(shaping)
    there, back = (pair_loss(name, terms, None, order) for order in (together, together[::-1]))
    assert torch.equal(there[0], back[0]) and torch.isfinite(there[0]).all()
    assert all(torch.isfinite(d).all() for d in pulls(name, terms, None, together))


def test_unknown_names_are_answered_with_the_choices() -> None:
    choices = (
        f"{', '.join(name for name in OBJECTIVES if name not in STAGES)} (or a warm-up stage: {', '.join(STAGES)})"
    )
    with pytest.raises(BadInput, match=rf"unknown objective 'dopo'.*{re.escape(choices)}"):
        pair_loss("dopo", simple())
    with pytest.raises(BadInput, match=rf"unknown shaping 'gate'.*{', '.join(SHAPINGS)}"):
        parse_shaping("gate")
    with pytest.raises(
        BadInput, match=r"unknown option 'betta' \(did you mean beta\?\); dpo takes beta, label_smoothing"
    ):
        pair_loss("dpo", simple(**REFERENCE), {"betta": 0.1})
    with pytest.raises(BadInput, match="unknown option 'beta'; sft takes no options"):
        pair_loss("sft", simple(), {"beta": 0.1})


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        ("dpo", {"beta": 0}, "beta must be a number > 0; got 0"),
        ("dpo", {"beta": "x"}, "beta must be a number > 0; got 'x'"),
        ("dpo", {"beta": True}, "beta must be a number > 0; got True"),
        ("dpo", {"beta": float("nan")}, "got nan"),
        ("dpo", {"label_smoothing": 0.5}, r"in \[0, 0.5\); got 0.5"),
        ("dpo_shift", {"lambda": 1.5}, r"in \(0, 1\]; got 1.5"),
        ("cpo", {"lambda": -1}, "a number ≥ 0; got -1"),
        ("ipo", {"average": "maybe"}, "true or false; got 'maybe'"),
        ("ipo", {"beta": -1, "average": 3}, "beta must be.*average must be"),
    ],
)
def test_values_out_of_range_are_refused(name: str, hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        resolve_hyper(name, hyper)


def test_text_forms() -> None:
    name, hyper = parse_objective("ipo:beta=0.2,average=false")
    assert (name, hyper) == ("ipo", {"beta": 0.2, "average": False} | LIKELIHOOD)
    assert parse_objective("sft") == ("sft", {})
    gate = parse_shaping("gate-seq: form=gradient, alpha=10")
    assert gate.name == "gate-seq" and gate.options == {"form": "gradient", "alpha": 10.0, "tau": 0.10}
    assert parse_shaping(gate) is gate
    for text in ("dpo:beta", "dpo:=1", "dpo:beta=", "dpo:beta=1,beta=2"):
        with pytest.raises(BadInput, match="wanted NAME:KEY=VALUE"):
            parse_objective(text)
    with pytest.raises(BadInput, match="form must be value or gradient; got 'both'"):
        parse_shaping("gate-seq:form=both")


def test_missing_terms_are_all_listed() -> None:
    with pytest.raises(BadInput, match=r"kto needs terms that are missing: r_w .*; r_l .*; kl "):
        pair_loss("kto", simple())
    with pytest.raises(BadInput, match=r"dpo \+ gate-q10 needs.*token_logps.*response_mask"):
        check_terms("dpo", simple(**REFERENCE), None, ["gate-q10"])
    with pytest.raises(BadInput, match=r"win_w .*win_l "):
        pulls("sppo", simple(**REFERENCE), {"soft": True})
    with pytest.raises(BadInput, match="progress"):
        pulls("dpo_shift", simple(**REFERENCE), {"schedule": True})
    with pytest.raises(BadInput, match="term r_w is missing"):
        _ = simple().h_w


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_reference_must_fit_the_objective(name: str) -> None:
    needs = OBJECTIVES[name].needs_reference
    right = simple(kl=0.0, **(REFERENCE if needs else {}))
    check_terms(name, right)
    wrong = simple(kl=0.0, **({} if needs else REFERENCE))
    with pytest.raises(BadInput, match="r_w" if needs else "uses no reference policy"):
        check_terms(name, wrong)


def test_shapings_that_fill_the_same_columns_are_refused() -> None:
    with pytest.raises(BadInput, match="two shapings fill gate, gate_statistic"):
        pair_loss("dpo", simple(**REFERENCE), None, ["gate-seq", "gate-q10"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"r_w": torch.ones(2)}, "both reference terms"),
        ({"r_w": torch.ones(3), "r_l": torch.ones(2)}, r"r_w \(3,\)"),
        ({"progress": 1.5}, "progress between 0 and 1; got 1.5"),
        ({"token_logps": torch.zeros(2, 5)}, r"token_logps \(2, 5\)"),
        ({"token_logps": torch.zeros(4, 5), "response_mask": torch.zeros(4, 4)}, r"response_mask \(4, 4\)"),
    ],
)
def test_misshapen_terms_are_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        simple(**more)


def test_terms_from_rows() -> None:
    rows = torch.arange(4.0)
    terms = Terms.from_rows(rows, rows + 10, rows + 20, kl=1.0)
    read = [terms.a, terms.b, terms.n_w, terms.n_l, terms.r_w, terms.r_l]
    assert [x.tolist() for x in read if x is not None] == [
        [0, 1], [2, 3], [10, 11], [12, 13], [20, 21], [22, 23]
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"logps \[2B\].*got \(3,\)"):
        Terms.from_rows(rows[:3], rows[:3])


def test_float_terms_keep_the_precision_of_the_log_probabilities() -> None:
    double = replace(simple(**REFERENCE), a=-torch.ones(2, dtype=torch.float64), kl=0.1)
    assert double.need("kl").item() == 0.1
    whole = replace(double, n_w=torch.tensor([3, 3]), n_l=torch.tensor([3, 3]))
    assert (1 / whole.n_w).tolist() == (1 / whole.n_l).tolist() == [1 / 3, 1 / 3]
    half = replace(simple(), a=-torch.ones(2, dtype=torch.bfloat16), n_w=torch.tensor([257, 257]))
    assert half.n_w.tolist() == [257, 257]


def test_describe_says_everything_of_every_row() -> None:
    rows = describe()
    assert [(r.kind, r.name) for r in rows] == [
        *(("objective", name) for name in OBJECTIVES if name not in STAGES),
        *(("warm-up stage", name) for name in STAGES),
        *(("shaping", name) for name in SHAPINGS),
    ]
    assert set(KINDS) == {row.kind for row in rows}
    for row in rows:
        assert row.formula and row.paper and row.when.endswith(".") and row.dynamics.endswith(".")
        assert not row.notes or row.notes.endswith(".")
        table: Any = SHAPINGS if row.kind == "shaping" else OBJECTIVES
        assert [option.partition("=")[0] for option in row.options] == list(table[row.name].defaults)
        shared = LIKELIHOOD if row.kind == "objective" else {}
        assert [option.partition("=")[0] for option in row.common] == list(shared)
        assert [option.partition("=")[0] for option in row.defaults] == list(table[row.name].defaults)
        assert re.search(r"arXiv \d{4}\.\d{5}", row.paper)
    assert rows[0].defaults == ("beta=0.1", "label_smoothing=0")
    assert rows[0].options[0] == "beta=0.1: β, how strongly log-ratios are held near the reference, a number > 0"


def test_the_stages_are_those_of_the_loop_and_the_command_line() -> None:
    marked = tuple(name for name, row in OBJECTIVES.items() if row.stage)
    assert marked == STAGES == CONFIG["sft_objective"].choices
    assert not any(shapings_of(OBJECTIVES[name]) for name in STAGES)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in STAGES])
def test_a_likelihood_term_is_what_still_pulls_on_chosen_alone_far_beyond_the_margin(name: str) -> None:
    far = torch.full((2,), 1e4, dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    ordered = Terms(-0.1 * one, -far, one, one, r_w=-far, r_l=-0.1 * one, kl=torch.tensor(0.0))
    d_w, d_l = pulls(name, ordered)
    assert (d_w - d_l > 1e-6).tolist() == [OBJECTIVES[name].likelihood] * 2


@pytest.mark.parametrize("name", [row.name for row in OBJECTIVES.values() if row.changes])
def test_an_objective_changes_the_pulls_as_its_row_says(name: str) -> None:
    row = OBJECTIVES[name]
    assert set(row.changes) <= set(CHANGES)
    fallen = {"r_w": torch.tensor([0.5, -3.0]), "r_l": torch.tensor([-2.0, -2.0])}  # chosen below, and above
    d_w, d_l = pulls(name, simple(**fallen))
    if "length" in row.changes:
        longer = replace(simple(**fallen), n_w=torch.full((2,), 9.0))
        assert not torch.allclose(pulls(name, longer)[0], d_w)
    else:
        same_w, same_l = pulls("dpo", simple(**fallen))
        assert bool((d_w / d_l > 1.01 * same_w / same_l).any())


@pytest.mark.parametrize("name", [row.name for row in SHAPINGS.values() if row.changes])
def test_a_shaping_changes_the_pulls_as_its_row_says(name: str) -> None:
    row = SHAPINGS[name]
    assert set(row.changes) <= set(CHANGES)
    terms = all_terms_of_two()
    d_w, d_l = pulls("dpo", terms, shapings=[parse_shaping(name)])
    same_w, same_l = pulls("dpo", terms)
    assert bool((d_w > 1.01 * same_w).any()) if "chosen" in row.changes else bool((d_l < 0.99 * same_l).any())


def all_terms_of_two() -> Terms:
    """Two pairs, chosen ahead of a rejected response of three very improbable tokens."""
    tokens = torch.tensor([[-0.1] * 3, [-0.2] * 3, [-7.0] * 3, [-8.0] * 3])
    sums = tokens.sum(1)
    three = torch.full((2,), 3.0)
    return Terms(
        sums[:2], sums[2:], three, three, r_w=sums[:2] - 0.5, r_l=sums[2:] + 1.0, token_logps=tokens,
        response_mask=torch.ones(4, 3),
    )  # fmt: skip
