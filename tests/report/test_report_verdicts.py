"""Verdicts: their numbers against an independent computation, and nothing said that was not measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_checks import only, value
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, new_trace, with_manifest, write_tables

from dyn_probe.report.verdicts import TOPICS, VERDICTS, Verdict, advice, percent, sig, signed, verdicts
from dyn_probe.report.verdicts.advice import IN_USE, KNOBS
from dyn_probe.report.verdicts.cases import shares, turning
from dyn_probe.report.verdicts.data_read import left_out, tokens
from dyn_probe.report.verdicts.movement import hidden, overall
from dyn_probe.report.verdicts.reference import turn
from dyn_probe.trace.manifest import typed
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def falling(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A run in case 2 from start to end."""
    return new_trace(tmp_path_factory.mktemp("falling") / "run", DEFAULT)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A run that goes from case 1 to case 2 at step 36 of 120."""
    return new_trace(tmp_path_factory.mktemp("turned") / "run", Options(turn=0.3, realised=False, update=False))


def test_both_fall_and_how_far(falling: Trace) -> None:
    verdict = only(overall(falling))
    pairs = falling.pairs.assign(per=lambda f: f.logp_chosen / f.len_chosen)
    early = pairs[pairs.step <= 11].groupby("pair_id").per.mean()
    late = pairs[pairs.step >= 108].groupby("pair_id").per.mean()
    moved = (late - early).dropna()
    assert value(verdict, "change_chosen") == pytest.approx(moved.median())
    assert value(verdict, "fell_chosen") == pytest.approx((moved < 0).mean())
    assert value(verdict, "factor_chosen") == pytest.approx(math.exp(moved.median()))
    assert value(verdict, "n") == len(moved)
    assert verdict.sentence.startswith("Chosen and rejected both fell")
    assert "not measured" in verdict.sentence and "harmless" in verdict.sentence
    assert verdict.level == "note" and verdict.knobs


def test_a_large_fall_is_a_warning(falling: Trace, tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    late = tables["pairs"].step >= 60
    tables["pairs"].loc[late, "logp_chosen"] -= 0.5 * tables["pairs"].len_chosen
    verdict = only(overall(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert verdict.level == "warning"
    assert value(verdict, "change_chosen") < -0.4


def test_the_margin_hides_falling_chosen(falling: Trace) -> None:
    verdict = only(hidden(falling))
    assert value(verdict, "hidden_fall") > 0.5
    assert "do not show" in verdict.sentence and verdict.level == "warning"
    rising = only(hidden(new_like(falling, "case1")))
    assert "do not show" not in rising.sentence and rising.level == "ok"


def new_like(trace: Trace, regime: str) -> Trace:
    return new_trace(trace.path.parent / regime, replace(DEFAULT, regime=regime))


def test_chosen_turns_where_it_was_highest(falling: Trace, tmp_path: Path) -> None:
    assert "since the start" in only(turn(falling)).sentence
    tables = simulate(DEFAULT)
    pairs = tables["pairs"]
    rise = np.where(pairs.step < 60, pairs.step, 120 - pairs.step) / 100  # up to +0.6 nats/token at step 60
    pairs["logp_chosen"] = pairs.ref_logp_chosen + rise * pairs.len_chosen
    found = only(turn(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    tenth = [rise[(pairs.step >= 12 * k) & (pairs.step < 12 * k + 12)] for k in range(10)]
    medians = [float(np.median(part)) for part in tenth]
    assert value(found, "since_peak_chosen") == pytest.approx(medians[-1] - max(medians))
    assert "its peak in steps 48–59" in found.sentence or "its peak in steps 60–71" in found.sentence
    assert "still falling" in found.sentence and found.level == "warning"


def test_the_turning_point_and_its_reason(turned: Trace) -> None:
    verdict = only(turning(turned))
    pairs, first = turned.pairs, value(verdict, "first_step")
    assert first == 36
    after = pairs[pairs.step >= first]
    outweighed = after.grad_inner > after.pull_chosen / after.pull_rejected * after.grad_norm_chosen**2
    assert value(verdict, "case_2") == pytest.approx((after.case_plain == 2).mean())
    assert value(verdict, "condition_fails_chosen") == pytest.approx(outweighed.mean())
    assert verdict.sentence.startswith(
        f"From step 36 on, {percent((after.case_plain == 2).mean())} of the pair rows are"
    )
    assert verdict.level == "warning"


def test_no_turning_point_without_a_lasting_majority(tmp_path: Path) -> None:
    tables = simulate(Options(realised=False, update=False))
    tables["pairs"]["case_plain"] = np.where(tables["pairs"].step % 12 < 6, 1, 2)
    trace = load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))
    assert turning(trace) == []
    assert only(shares(trace)).sentence.startswith(
        "Cases by a plain gradient step on the pair alone in steps 108–119: 50% in case "
    )


def test_case_shares_of_both_tenths(turned: Trace) -> None:
    verdict, pairs = only(shares(turned)), turned.pairs
    for number in (1, 2, 3, 4):
        assert value(verdict, f"case_{number}") == pytest.approx((pairs[pairs.step >= 108].case_plain == number).mean())
        early = (pairs[pairs.step <= 11].case_plain == number).mean()
        assert value(verdict, f"case_{number}_first") == pytest.approx(early)


def test_what_was_not_measured_is_not_spoken_of(tmp_path: Path) -> None:
    tables = simulate(Options(reference=False, realised=False, pushes=False, gram=False))
    keep = ["step", "pair_id", "rank", "logp_chosen", "logp_rejected", "len_chosen", "len_rejected"]
    tables["pairs"] = tables["pairs"][keep]
    tables["steps"] = tables["steps"][["step", "rank", "pairs"]]
    tables["layers"] = tables["layers"].head(0)
    found = verdicts(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT))))
    assert {verdict.topic for verdict in found} == {"movement", "pushes", "pairs", "trust"}
    assert "--metric-every" in next(verdict.sentence for verdict in found if verdict.topic == "pushes")
    for word in ("cosine", "case ", "pull", "realised change in", "Measured across", "layers", "Relative to"):
        assert not any(word in verdict.sentence for verdict in found if verdict.topic != "trust")
    missing = next(verdict for verdict in found if verdict.sentence.startswith("Not measured"))
    assert "--realised" in missing.sentence and "reference policy" in missing.sentence


@pytest.mark.parametrize(
    "options",
    [
        DEFAULT,
        Options(steps=1, batch=1, pairs=1),
        Options(steps=2, batch=2),
        Options(regime="case3", gate=True, mass=True),
    ],
    ids=["full", "one row", "two steps", "shaped"],
)
def test_every_verdict_is_whole(options: Options, tmp_path: Path) -> None:
    found = verdicts(new_trace(tmp_path / "run", options))
    assert found
    for verdict in found:
        assert verdict.topic in TOPICS and verdict.formula
        assert verdict.sentence.endswith(".") and "nan" not in verdict.sentence
        assert all(
            math.isfinite(number.value)
            for number in verdict.numbers
            if not number.key.startswith(("pearson", "spearman"))
        )
        keys = [number.key for number in verdict.numbers]
        assert len(set(keys)) == len(keys) and all(key.isidentifier() for key in keys)


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ({"name": "dpo", "shaping": [{"name": "pairwise-normalised", "options": {}}]}, "normalise"),
        ({"name": "dpo", "shaping": [{"name": "rc", "options": {"per": "pair"}}]}, "normalise"),
        ({"name": "cpo", "shaping": []}, "sft"),
        ({"name": "dpo", "hyper": {"nll": 0.5}, "shaping": []}, "sft"),
        ({"name": "dpop", "shaping": []}, "chosen"),
        ({"name": "cal_dpo", "shaping": []}, "chosen"),
        ({"name": "dpo", "shaping": [{"name": "adadpo", "options": {}}]}, "chosen"),
        ({"name": "dpo_shift", "shaping": []}, "rejected"),
        ({"name": "dpo", "shaping": [{"name": "gate-seq", "options": {}}]}, "rejected"),
        ({"name": "dpo", "shaping": [{"name": "gate-q10", "options": {}}]}, "rejected"),
    ],
)
def test_advice_that_the_run_follows_already_is_not_given(objective: dict, key: str, tmp_path: Path) -> None:
    plain = verdicts(new_trace(tmp_path / "plain", DEFAULT))
    shaped = verdicts(new_trace(tmp_path / "shaped", DEFAULT, objective=objective))
    assert any(KNOBS[key] in verdict.knobs for verdict in plain)
    assert not any(KNOBS[key] in verdict.knobs for verdict in shaped)
    in_use = objective.get("hyper", {}).get("nll", 0.0)  # a weight is said together with what the run has already
    assert [without_weights(verdict, in_use) for verdict in shaped] == [
        without_weights(verdict, 0) for verdict in plain
    ]


def without_weights(verdict: Verdict, in_use: float) -> str:
    """The sentence with each likelihood weight that it recommends as what it adds to the weight in use."""
    added = r"(--set nll=|loss_weights=\[1\.0, )([0-9.e−-]+)"
    return re.sub(added, lambda found: f"{found[1]}{float(found[2]) - in_use:.4f}", verdict.sentence)


def test_advice_that_the_run_does_not_follow_is_given(tmp_path: Path) -> None:
    objective = {"name": "dpo", "hyper": {"nll": 0.0}, "shaping": ["rc: {'per': 'batch'}", "unknown: {}"]}
    found = verdicts(new_trace(tmp_path / "run", DEFAULT, objective=objective))
    given = {knob for verdict in found for knob in verdict.knobs}
    assert {KNOBS[key] for key in IN_USE if key != "length"} <= given  # lengths do not matter in this trace


def test_all_advice_is_used_and_names_methods_that_exist() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(advice.__file__).parent.glob("*.py"))
    assert all(source.count(f'"{key}"') > 1 for key in KNOBS)
    assert set(IN_USE) <= set(KNOBS)
    assert not any(follows(typed({})) for follows in IN_USE.values())


def test_topics_and_statements_are_the_same_table() -> None:
    assert list(TOPICS) == list(VERDICTS)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.01234, "0.0123"), (-1234.5, "−1,234"), (48.0, "48"), (3.1e-7, "3.1e−7"), (0.0, "0"), (float("inf"), "∞")],
)
def test_numbers_are_written_shortly(number: float, text: str) -> None:
    assert sig(number) == text


def test_signs_and_shares_are_written_honestly() -> None:
    assert (signed(0.5), signed(-0.5), signed(0.0)) == ("+0.500", "−0.500", "0")
    assert (percent(1.0), percent(0.999), percent(0.0), percent(0.001), percent(0.634)) == (
        "100%",
        "over 99%",
        "0%",
        "under 1%",
        "63%",
    )


@pytest.mark.parametrize(("bad", "level"), [(10, "note"), (11, "warning")])
def test_rows_left_out_are_counted_by_reason_and_a_tenth_is_a_warning(falling: Trace, bad: int, level: str) -> None:
    rows = [{"source": f"f:{i}", "reason": "chosen empty" if i else "identical"} for i in range(bad)]
    verdict = only(left_out(with_manifest(falling, skipped_rows=rows, data={"rows": 100})))
    assert verdict.level == level and f"chosen empty ({bad - 1}); identical (1)" in verdict.sentence
    assert value(verdict, "skipped") == bad and value(verdict, "skipped_share") == bad / 100
    designed = only(left_out(with_manifest(falling, skipped_rows=rows, data={"rows": 100, "left_out_by_design": bad})))
    assert designed.level == "note"
    old = only(left_out(with_manifest(falling, skipped_rows=rows)))
    assert old.level == "note" and left_out(falling) == []


def test_what_was_found_in_the_tokens_is_said_where_the_trace_is_judged(falling: Trace) -> None:
    cut = {"count": 3, "of": 4, "sentence": "3 of 4 pairs are longer than 9 tokens", "level": "warning"}
    note = {"count": 1, "of": 4, "sentence": "the prompt of 1 of 4 pairs merges", "level": "note"}
    trace = with_manifest(falling, data={"facts": {"cut": cut, "merged": note, "broken": {"count": "x"}, "odd": 3}})
    first, second = tokens(trace)
    assert (first.level, first.sentence) == ("warning", "3 of 4 pairs are longer than 9 tokens.")
    assert value(first, "pairs_share") == 0.75
    assert (second.level, second.sentence) == ("note", "The prompt of 1 of 4 pairs merges.")
    assert [
        v.sentence for v in verdicts(trace) if v.topic == "trust" and v.sentence in (first.sentence, second.sentence)
    ]
    assert tokens(falling) == [] and tokens(with_manifest(falling, data={"facts": [1]})) == []
