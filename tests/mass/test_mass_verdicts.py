"""Where the mass went, in words: each judgement from its numbers, and nothing where nothing was measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from mass_tables import mass_table, trace
from report_checks import value
from report_frames import Options
from report_runs import new_trace
from tiny_runs import run

from dyn_probe.mass.squeezing import run_figures
from dyn_probe.report.verdicts import verdicts
from dyn_probe.report.verdicts.mass_went import FLAT, gated, went

KINDS = ("chosen", "rejected", "irr_train")


def moved(chosen: float, others: float, argmax: float) -> pd.DataFrame:
    """Ten tokens each; the last probe minus the first, in nats/sequence."""
    table = mass_table(steps=(0, 10), kinds=KINDS)
    changes = {"chosen": chosen, "rejected": -3.0, "irr_train": others}
    for kind, change in changes.items():
        rows = table["kind"] == kind
        table.loc[rows, "logp"] = [-20.0 + change * (step > 0) for step in table.loc[rows, "step"]]
        table.loc[rows, "argmax_logp"] = [-5.0 + argmax * (step > 0) for step in table.loc[rows, "step"]]
    return table


@pytest.mark.parametrize(
    ("chosen", "others", "argmax", "level", "words"),
    [
        (-1.0, -2.0, 1.0, "warning", "Probability mass was squeezed onto the most probable tokens"),
        (-1.0, -2.0, -0.5, "note", "Chosen lost probability mass, but the most probable tokens did not gain it"),
        (1.0, 2.0, 0.5, "ok", "Probability mass went to chosen; squeezing was prevented"),
        (1.0, -2.0, 2.0, "ok", "Probability mass went to chosen and to the most probable tokens, away from everything"),
    ],
)
def test_the_judgement_follows_the_numbers(chosen: float, others: float, argmax: float, level: str, words: str) -> None:
    table = moved(chosen, others, argmax)
    (said,) = went(trace(table))
    assert said.level == level and said.sentence.startswith(words)
    figures = run_figures(table)
    assert value(said, "delta_chosen") == pytest.approx(chosen)
    assert value(said, "delta_rejected") == pytest.approx(-3) and value(said, "margin") == pytest.approx(chosen + 3)
    assert value(said, "delta_others") == pytest.approx(others)
    assert value(said, "delta_argmax") == pytest.approx(argmax)
    assert value(said, "squeezing_index") == pytest.approx(figures.index) and value(said, "n") == 3
    assert bool(said.knobs) == (level != "ok")
    assert ("no squeezing" in said.sentence) == (argmax < 0 < figures.index)
    assert ("squeezing index" in said.sentence) == ("no squeezing" not in said.sentence)


@pytest.mark.parametrize(
    ("rejected", "others", "rise", "words"),
    [
        (0.5, -2.0, 1.0, "it went to rejected"),
        (-3.0, 2.0, 1.0, "it went to other responses"),
        (-3.0, -2.0, 1.2 * FLAT, "the model flattened: entropy 0.60 → 0.66 nats/token"),
        (-3.0, -2.0, 0.9 * FLAT, "it went to responses that were not measured"),
    ],
)
def test_where_the_mass_went_is_named(rejected: float, others: float, rise: float, words: str) -> None:
    table = moved(-1.0, others, -0.5)
    rows = (table["kind"] == "rejected") & (table["step"] > 0)
    table.loc[rows, "logp"] = -20.0 + rejected
    table["entropy"] = 0.6 + rise * (table["step"] > 0)
    (said,) = went(trace(table))
    assert words in said.sentence and "did not gain it" in said.sentence and "squeezing index" not in said.sentence
    assert value(said, "entropy_last") - value(said, "entropy_first") == pytest.approx(rise)


def test_groups_without_responses_are_left_out() -> None:
    (said,) = went(trace(mass_table(kinds=("chosen",))))
    assert "Δ rejected" not in said.sentence and "nan" not in said.sentence.lower().replace("nats", "")


def test_nothing_is_said_without_two_probes() -> None:
    assert went(trace()) == went(trace(mass_table(steps=(0,)))) == gated(trace(mass_table())) == []


def test_a_recorded_run_says_it_in_its_report(tmp_path: Path) -> None:
    probed = verdicts(run(tmp_path / "a", mass_every=1, shaping=("gate-seq",), gram_every=0))
    said = {verdict.topic: verdict.sentence for verdict in probed if verdict.topic == "mass"}
    assert "Gating rate" in said["mass"] and any("squeezing index" in verdict.sentence for verdict in probed)
    assert "threshold (τ = 0.1)" in said["mass"]
    assert not any("probe responses" in v.sentence for v in probed if v.sentence.startswith("Not measured"))
    plain = verdicts(run(tmp_path / "b", gram_every=0))
    assert any("probe responses" in v.sentence for v in plain if v.sentence.startswith("Not measured"))


def test_a_squeezed_run_is_warned_of(tmp_path: Path) -> None:
    (said,) = went(new_trace(tmp_path / "run", Options(mass=True)))
    assert said.level == "warning" and "repetition" in said.sentence
