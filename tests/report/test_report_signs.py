"""Verdicts about trouble: spikes and their cause, zeros, negative pulls, shaping, squeezing, trust in the trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_checks import value
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, new_trace, write_run, write_tables

from dyn_probe.report.run_facts import facts
from dyn_probe.report.verdicts import verdicts
from dyn_probe.report.verdicts.advice import KNOBS
from dyn_probe.report.verdicts.gradients import alignment, clipping, fading, negative_pulls
from dyn_probe.report.verdicts.mass_went import gated
from dyn_probe.report.verdicts.remedies import common_factor, nll_weight
from dyn_probe.report.verdicts.shaped import gate, mask, rho
from dyn_probe.report.verdicts.spikes import PARTS, spikes, zeros
from dyn_probe.trace.reader import Trace, load_trace

Tables = dict[str, pd.DataFrame]


def run_of(path: Path, edit: Callable[[Tables], None], **fields: object) -> Trace:
    tables = simulate(Options(steps=60))
    edit(tables)
    return load_trace(write_tables(path / "run", tables, {**manifest(DEFAULT), **fields}))


def scaled(column: str, factor: float) -> Callable[[Tables], None]:
    """Multiply a column of the strongest pair at step 40, whose step norm spikes."""

    def edit(tables: Tables) -> None:
        pairs = tables["pairs"]
        row = pairs[pairs.step == 40].index[3]
        for side in ("chosen", "rejected"):
            pairs.loc[row, f"{column}_{side}"] *= factor
        if column == "grad_norm":
            pairs.loc[row, "grad_inner"] *= factor**2

    return edit


@pytest.mark.parametrize(("column", "cause"), [("grad_norm", "norm"), ("pull", "pull")])
def test_a_spike_is_attributed_to_what_caused_it(column: str, cause: str, tmp_path: Path) -> None:
    trace = run_of(tmp_path, scaled(column, 30.0))
    found = spikes(trace)[0]
    assert "most strongly at step 40" in found.sentence and f"its {PARTS[cause][0]} is " in found.sentence
    assert trace.pairs[trace.pairs.step == 40].pair_id.iloc[3] in found.sentence
    assert value(found, f"{cause}_factor") > 15
    assert value(found, "spikes") == 1


def test_a_spike_by_lost_cancellation(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        pairs = tables["pairs"]
        pairs.loc[pairs.step == 40, ["grad_inner", "grad_cosine"]] *= -1

    assert PARTS["uncancelled"][0] in spikes(run_of(tmp_path, edit))[0].sentence


def test_a_spike_that_no_pair_shows_has_no_cause(tmp_path: Path) -> None:
    assert "the cause was not recorded" in spikes(run_of(tmp_path, lambda tables: None))[0].sentence


def test_a_calm_run_has_no_spike(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        tables["steps"].loc[tables["steps"].step == 40, "grad_norm"] = tables["steps"].grad_norm.median()

    found = spikes(run_of(tmp_path, edit))[0]
    assert found.level == "ok" and "no spikes" in found.sentence


def test_zeros_are_split_into_pulls_and_norms(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        pairs, steps = tables["pairs"], tables["steps"]
        pairs.loc[pairs.index < 48, ["pull_chosen", "pull_rejected"]] = 0.0
        steps.loc[steps.step < 6, "grad_norm"] = 0.0

    found = zeros(run_of(tmp_path, edit))[0]
    assert value(found, "zero_steps") == 6
    assert value(found, "zero_pulls") == pytest.approx(48 / 480)
    assert value(found, "zero_gradients") == 0
    assert zeros(new_trace(tmp_path / "calm", DEFAULT)) == []


def test_pulls_clipping_and_alignment(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        pairs, steps = tables["pairs"], tables["steps"]
        pairs.loc[pairs.step >= 30, ["pull_chosen", "pull_rejected"]] *= 0.01
        pairs.loc[pairs.index < 24, "pull_chosen"] *= -1
        steps["grad_norm_clipped"] = steps.grad_norm / np.where(steps.step < 45, 3.0, 1.0)

    trace = run_of(tmp_path, edit)
    faded = fading(trace)[0]
    assert faded.level == "note" and value(faded, "pull_left_rejected") < 0.02
    assert value(negative_pulls(trace)[0], "negative_chosen") == pytest.approx(24 / 480)
    clipped = clipping(trace)[0]
    assert value(clipped, "clipped") == pytest.approx(0.75)
    assert value(clipped, "clip_factor") == pytest.approx(3)
    last = trace.pairs[trace.pairs.step >= 54]
    assert value(alignment(trace)[0], "cosine") == pytest.approx(last.grad_cosine.median())


def test_gate_and_rho(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        pairs = tables["pairs"]
        pairs["gate"] = np.where(pairs.index % 4 == 0, 0.1, 0.9)
        pairs["rho"] = np.where(pairs.index % 2 == 0, 2.0, 1.2)

    trace = run_of(tmp_path, edit)
    assert value(gate(trace)[0], "gate_closed") == pytest.approx(0.25)
    assert value(rho(trace)[0], "rho_at_largest") == pytest.approx(0.5)
    assert "at its largest value, 2," in rho(trace)[0].sentence and "(α" not in gate(trace)[0].sentence


def shaped_as(name: str, **options: object) -> list[dict[str, object]]:
    """As run.json names a shaping with its options."""
    return [{"shaping": [{"name": name, "options": options}]}]


@pytest.mark.parametrize("objective", shaped_as("adadpo", space="auto", stable=True, ceiling=3.5))
def test_the_ceiling_of_rho_is_that_of_the_run(objective: dict[str, object], tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        tables["pairs"]["rho"] = np.where(tables["pairs"].index % 4 == 0, np.float32(3.5), 2.0)

    found = rho(run_of(tmp_path, edit, objective=objective))[0]
    assert "at its ceiling of 3.5 in 25% of 480 rows" in found.sentence
    assert value(found, "rho_largest") == 3.5 and value(found, "rho_at_largest") == 0.25


@pytest.mark.parametrize("objective", shaped_as("gate-seq", form="value", alpha=20.0, tau=0.25))
def test_the_constants_of_the_gate_are_those_of_the_run(objective: dict[str, object], tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        tables["pairs"]["gate"] = 0.7

    trace = run_of(tmp_path, edit, objective=objective, mass={"gating_rate": 0.4, "mean_gate": 0.7})
    assert "the gate (α = 20, τ = 0.25) was below ½ in 0% of 48 rows" in gate(trace)[0].sentence
    assert "below the gate's threshold (τ = 0.25)" in gated(trace)[0].sentence
    assert dict(facts(trace))["Shaping"] == "gate-seq:form=value,alpha=20,tau=0.25"


@pytest.mark.parametrize(
    ("config", "at", "means", "advised"),
    [
        ({"optimizer": "adamw", "max_grad_norm": 0.25}, "clipped at norm 0.25 in", "hardly shortens the step", False),
        ({"optimizer": "sgd", "max_grad_norm": 2.0}, "clipped at norm 2 in", "With sgd these steps are shorter", True),
        ({}, "was clipped in 75%", "(median).", True),
    ],
)
def test_what_clipping_means_depends_on_the_optimizer(
    config: dict[str, object], at: str, means: str, advised: bool, tmp_path: Path
) -> None:
    def edit(tables: Tables) -> None:
        steps = tables["steps"]
        steps["grad_norm_clipped"] = steps.grad_norm / np.where(steps.step < 45, 3.0, 1.0)

    found = clipping(run_of(tmp_path, edit, config=config))[0]
    assert at in found.sentence and means in found.sentence
    assert (KNOBS["clip"] in found.knobs) is advised


def test_masked_gradients_are_called_masked_and_no_remedy_is_read_from_them(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        tables["pairs"]["mask_chosen"], tables["pairs"]["mask_rejected"] = 0.75, 0.25
        without(tables)

    def without(tables: Tables) -> None:
        del tables["pushes"]

    trace, plain = run_of(tmp_path / "masked", edit), run_of(tmp_path / "plain", without)
    (said,) = mask(trace)
    assert value(said, "mask_chosen") == pytest.approx(0.75) and "masked log-probabilities" in said.sentence
    assert "0.750 on chosen and 0.250 on rejected" in said.sentence and mask(plain) == []
    assert common_factor(trace) == [] and nll_weight(trace) == []
    assert common_factor(plain) and nll_weight(plain)


def sentences(trace: Trace) -> str:
    return "\n".join(f"{verdict.level}: {verdict.sentence}" for verdict in verdicts(trace) if verdict.topic == "trust")


def test_an_unclosed_run_says_so(tmp_path: Path) -> None:
    assert "warning: The trace was not closed" in sentences(load_trace(write_run(tmp_path / "a", DEFAULT, "recording")))
    stopped = sentences(load_trace(write_run(tmp_path / "b", DEFAULT, "stopped")))
    assert "warning: The run stopped early (out of memory). The trace holds " in stopped


def test_an_empty_trace_has_only_trust_to_speak_of(tmp_path: Path) -> None:
    found = verdicts(load_trace(write_tables(tmp_path / "run", {}, {}, "recording")))
    assert {verdict.topic for verdict in found} == {"trust"}
    assert any("no pair rows" in verdict.sentence for verdict in found)


def test_doubts_about_the_recording_are_named(tmp_path: Path) -> None:
    def edit(tables: Tables) -> None:
        tables["pairs"].loc[tables["pairs"].index < 120, "separate_backward"] = True
        tables["steps"].loc[3, "law1_error"] = 0.5

    doubts = {
        "certificate": {"max_relative_error": 0.3, "tolerance": 1e-4},
        "skipped_rows": [{"source": "a:1", "reason": "too long"}, {"source": "a:2", "reason": "too long"}],
    }
    found = sentences(run_of(tmp_path, edit, **doubts))
    assert "warning: The recorder disagrees with plain autograd: largest relative error 0.30" in found
    assert "warning: The Gram disagrees" in found
    assert "The gradients of 120 pair rows (25%) come from a separate backward pass" in found
    assert "2 rows of the data were skipped: too long (2)" in found


def test_a_skipped_certificate_says_why(tmp_path: Path) -> None:
    found = sentences(run_of(tmp_path, lambda tables: None, certificate={"skipped": "parameters are sharded"}))
    assert "not compared with plain autograd: parameters are sharded" in found
