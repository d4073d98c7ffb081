"""The laws of sides, over every verdict: exchanging chosen and rejected exchanges their numbers, and
what is called chosen's depends on chosen alone. The second is the anchor: a mistake that mixes up both sides at once
passes the first and fails it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sides import (
    OTHER,
    SIDES,
    Tables,
    disturbed,
    exchanged,
    other_side,
    trace_of,
    traces_of,
    two_sided_tables,
)

from dyn_probe.report.verdicts import VERDICTS, Verdict, percent, signed
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.trace.reader import Trace

STATEMENTS = {f"{topic}.{one.__name__}": one for topic, ones in VERDICTS.items() for one in ones}

RELATIONS: dict[str, Callable[[float], float]] = {
    "margin": lambda x: -x,
    "held_out_margin": lambda x: -x,
    "length_difference": lambda x: -x,
    "difference_log_ratio_margin": lambda x: -x,
    "higher_log_ratio_margin": lambda x: 1 - x,
    **{f"run_{place}_margin_growth": lambda x: -x for place in (1, 2)},
    "accuracy": lambda x: 1 - x,
    "accuracy_first": lambda x: 1 - x,
    "norm_ratio": lambda x: 1 / x,
    "negative_chosen": lambda x: 1 - x,
    "negative_rejected": lambda x: 1 - x,
}
"""Number → what it becomes where the sides are exchanged, if it does not stay or become that of the other side."""

ONE_SIDED = {
    "factor_chosen": "chosen", "fell_chosen": "chosen", "since_peak_chosen": "chosen", "last_change_chosen": "chosen",
    "largest_fall_chosen": "chosen", "carried": "chosen", "falls_own": "chosen", "falls_other_pairs": "chosen",
    "n_others": "chosen",
}  # fmt: skip
"""Numbers that a verdict gives for one side only, and the side."""

BOTH = {
    "hidden_fall", "condition_fails_chosen", "condition_fails_rejected", "falls_chosen", "rises_rejected", "weight",
    "weight_per_token", "factor", "case_1_then", "negative", "first_step", "longer_chosen", "gate", "gate_closed",
    "rho", "rho_largest", "balance", "balance_error", "balance_between",
    "run_1_harm", "run_2_harm", "between_error", "level_weight", "rho_at_largest", "uncancelled_factor",
    *(f"{name}{when}" for name in ("magnitude_ratio", "balance_token", "balance_ceiling", "balance_raw")
      for when in ("", "_first")),
}  # fmt: skip
"""Numbers whose formula is not symmetric and holds both sides (or, gate and ρ, none): their slow twins stand in
test_report_causes, test_report_verdicts, test_report_pushes, test_report_signs and test_report_differences."""


ASYMMETRIC = (
    "pushes.outweighed",
    "pushes.between",
    "cases.origin",
    "change.common_factor",
    "change.nll_weight",
)
"""Statements about chosen alone, or about rows with positive pulls alone: their numbers are in BOTH or ONE_SIDED."""

SILENT = {
    "zeros", "nll_weight", "mask", "fallbacks", "left_out", "tokens", "torn", "law1", "not_finite", "unmeasured",
    "damaged", "unwritten", "untrusted", "unheld", "lacking", "similarity", "after", "saturated", "stuck", "useless",
    "precision", "lost_rows",
}  # fmt: skip
"""Statements that have nothing to say of the run here: each has a test of its own."""


def by_key(found: list[Verdict]) -> dict[str, float]:
    return {number.key: number.value for verdict in found for number in verdict.numbers}


def mirrored(key: str) -> str:
    """The number of the other side, or of the case that this one becomes."""
    for a, b in (("case_1", "case_4"), ("case_4", "case_1")):
        if key == a or key == f"{a}_first":
            return key.replace(a, b)
    return other_side(key)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return two_sided_tables()


@pytest.fixture(scope="module")
def traces(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The runs that the laws compare."""
    return traces_of(tmp_path_factory.mktemp("runs"), tables)


def check_exchange(plain: dict[str, float], other: dict[str, float]) -> list[str]:
    """Keys whose numbers do not exchange as they should."""
    wrong = []
    for key, value in plain.items():
        twin = mirrored(key)
        if key in BOTH or key in ONE_SIDED or np.isnan(value):
            continue
        wanted = RELATIONS.get(key, lambda x: x)(value)
        if twin not in other or not np.isclose(other[twin], wanted, rtol=0.03 if key == "norm_ratio" else 1e-9):
            wrong.append(f"{key}: {value} became {twin}: {other.get(twin)}")
    return wrong


def check_anchor(
    plain: dict[str, float], own: dict[str, float], foreign: dict[str, float], keys: set[str]
) -> list[str]:
    """Of ``keys``, those that disturbing the other side changes, or that disturbing their own side leaves."""
    moved = {key for key in keys if key in own and own[key] != plain[key]}
    touched = {key for key in keys if foreign.get(key) != plain[key]}
    return [f"{key} does not follow its side" for key in keys - moved] + [f"{key} follows the other" for key in touched]


def keys_of(side: str, found: dict[str, float]) -> set[str]:
    """Numbers that are called those of the side; how many rows there are follows neither."""
    named = {key for key in found if key.endswith(f"_{side}") and not key.startswith("n_")}
    return (named | {key for key in found if ONE_SIDED.get(key) == side}) - BOTH


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name not in ASYMMETRIC])
def test_exchanged_sides_exchange_the_numbers_of_every_verdict(name: str, traces: dict[str, Trace]) -> None:
    plain, other = (by_key(STATEMENTS[name](traces[run])) for run in ("plain", "exchanged"))
    assert check_exchange(plain, other) == []


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", STATEMENTS)
def test_what_a_verdict_calls_one_sides_follows_that_side_alone(name: str, side: str, traces: dict[str, Trace]) -> None:
    plain, own, foreign = (by_key(STATEMENTS[name](traces[run])) for run in ("plain", side, OTHER[side]))
    assert check_anchor(plain, own, foreign, keys_of(side, plain)) == []


def test_the_laws_reach_every_number_of_the_verdicts(traces: dict[str, Trace]) -> None:
    found = {name: by_key(one(traces["plain"])) for name, one in STATEMENTS.items()}
    spoken = {name for name, values in found.items() if values}
    assert {name.partition(".")[2] for name in set(STATEMENTS) - spoken} <= SILENT
    named = {key for values in found.values() for key in values}
    for side in SIDES:
        assert {
            f"{key}_{side}"
            for key in ("change", "pull_left", "negative", "same_sign", "pearson", "push_total_on", "push_past_on")
        } <= named
    assert {name for name in RELATIONS if not name.startswith(("difference_", "higher_", "run_"))} <= named and set(
        ONE_SIDED
    ) <= named


def test_the_exchange_law_fails_where_sides_are_mixed_up_in_one_place(traces: dict[str, Trace]) -> None:
    plain, other = (by_key(STATEMENTS["movement.overall"](traces[run])) for run in ("plain", "exchanged"))
    assert check_exchange({"change_chosen": plain["change_rejected"]}, other)
    assert check_exchange({"change_rejected": plain["change_chosen"]}, other)


def test_the_anchor_fails_where_sides_are_mixed_up_everywhere(traces: dict[str, Trace]) -> None:
    values = {run: by_key(STATEMENTS["movement.overall"](traces[run])) for run in ("plain", *SIDES)}
    mixed = {run: {other_side(key): value for key, value in found.items()} for run, found in values.items()}
    wrong = check_anchor(mixed["plain"], mixed["chosen"], mixed["rejected"], {"change_chosen"})
    assert wrong == ["change_chosen does not follow its side", "change_chosen follows the other"]


PHRASES = {
    "movement.overall": {
        "change_chosen": lambda x: f"moved by {signed(x)} nats/token on chosen",
        "change_rejected": lambda x: f"and {signed(x)} on rejected",
    },
    "movement.distance": {
        "reference_chosen": lambda x: f"chosen {signed(x)} (",
        "reference_rejected": lambda x: f"and rejected {signed(x)} (",
    },
    "pushes.moved": {
        f"push_own_{own}_on_{side}": lambda x, own=own: f"this pair's {own} {signed(x)}"
        for own in SIDES
        for side in SIDES
    },
    "gradient.fading": {
        "pull_left_chosen": lambda x: f"{percent(x)} (chosen)",
        "pull_left_rejected": lambda x: f"{percent(x)} (rejected)",
    },
    "gradient.negative_pulls": {
        "negative_chosen": lambda x: f"pushes chosen down ({percent(x)})",
        "negative_rejected": lambda x: f"or rejected up ({percent(x)})",
    },
    "mass.went": {
        "delta_chosen": lambda x: f"Δ chosen {signed(x)}",
        "delta_rejected": lambda x: f"Δ rejected {signed(x)}",
    },
    **{
        f"prediction.{name}": {
            "same_sign_chosen": lambda x: f"realised change in {percent(x)} of 480 chosen rows",
            "same_sign_rejected": lambda x: f"and {percent(x)} of 480 rejected rows",
        }
        for name in ("alone", "batch", "update")
    },
}
"""Statement → how its sentence words the number of each side."""


@pytest.mark.parametrize("run", ["plain", "exchanged"])
@pytest.mark.parametrize("name", PHRASES)
def test_the_words_of_a_verdict_give_each_side_its_own_number(name: str, run: str, traces: dict[str, Trace]) -> None:
    (found,) = STATEMENTS[name](traces[run])
    values = by_key([found])
    assert values.keys() >= PHRASES[name].keys()
    for key, phrase in PHRASES[name].items():
        assert phrase(values[key]) in found.sentence


def test_the_headline_names_the_side_that_fell(tables: Tables, tmp_path: Path) -> None:
    pairs = tables["pairs"]
    late = pairs.step >= 30
    for side in SIDES:
        new = {**tables, "pairs": pairs.copy()}
        for one in SIDES:
            fall = -0.5 if one == side else 0.5
            new["pairs"][f"logp_{one}"] = pairs[f"ref_logp_{one}"] + fall * late * pairs[f"len_{one}"]
        (found,) = STATEMENTS["movement.overall"](trace_of(tmp_path / side, new))
        words = {"chosen": "Chosen fell and rejected rose", "rejected": "Chosen rose and rejected fell"}
        assert found.sentence.startswith(words[side])


def test_comparisons_exchange_and_are_anchored(tables: Tables, traces: dict[str, Trace], tmp_path: Path) -> None:
    second, draw = {name: frame.copy() for name, frame in tables.items()}, np.random.default_rng(3)
    for side in SIDES:
        second["pairs"][f"logp_{side}"] += draw.normal(0.2, 1.0, len(tables["pairs"]))
    runs = {"plain": second, "exchanged": exchanged(second), **{side: disturbed(second, side) for side in SIDES}}
    found = {
        run: by_key(
            comparison(
                {"a": traces["exchanged" if run == "exchanged" else "plain"], "b": trace_of(tmp_path / run, frames)}
            )
        )
        for run, frames in runs.items()
    }
    assert check_exchange(found["plain"], found["exchanged"]) == []
    assert {f"difference_logp_per_token_{side}" for side in SIDES} <= set(found["plain"])
    assert {f"run_2_{key}" for key in ("change_chosen", "change_rejected", "margin_growth", "held_out_chosen")} <= set(
        found["plain"]
    )
    for side in SIDES:
        keys = {key for key in keys_of(side, found["plain"]) if not key.startswith("run_1_")}
        assert check_anchor(found["plain"], found[side], found[OTHER[side]], keys) == []


def test_every_number_of_one_side_ends_in_its_name(traces: dict[str, Trace]) -> None:
    for name, one in STATEMENTS.items():
        for number in (n for verdict in one(traces["plain"]) for n in verdict.numbers):
            said = {side for side in SIDES if side in number.name}
            assert len(said) != 1 or number.key in BOTH | set(ONE_SIDED) or number.key.endswith(tuple(said)), (
                name,
                number,
            )
