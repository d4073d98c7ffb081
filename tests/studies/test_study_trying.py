"""Remedies that are trained: the run's own configuration with one change, from the same start, measured by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_runs import run
from moved_runs import moved_run

from dyn_probe.errors import BadInput
from dyn_probe.report.first_screen.fix_table import Estimate, estimates, fix_table, recorded
from dyn_probe.report.first_screen.remedy_rows import REMEDIES
from dyn_probe.report.replay.kernels import kernels
from dyn_probe.report.verdicts.what_moved import likelihood_weight
from dyn_probe.studies import trying
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.mass_rows import check_measuring
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config_file import make_config
from dyn_probe.train.options.unasked import PROBING, probed_unasked
from dyn_probe.train.setup import check_batch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return run(tmp_path_factory.mktemp("runs") / "run", beta=0.2, shaping=("gate-seq:tau=0.2",), weight_decay=0.01)


def rows_of(trace: Trace) -> list[Estimate]:
    """Every remedy of the run, whatever it is estimated to do."""
    known = kernels(trace)
    assert known is not None
    start = replace(recorded(trace, known), weight=0.03)
    found = {key: row.change(start) for key, row in REMEDIES.items()}
    return [
        Estimate(key, key, change, -0.1, -0.2, 0.01, 0.0, 0.3, 0.1, True)
        for key, change in found.items()
        if change is not None
    ]


def test_every_remedy_is_the_runs_own_configuration_with_one_change(base: Trace) -> None:
    config, rows = trying._config(base), rows_of(base)
    assert {"likelihood", "beta", "rate", "early", "dpop", "adadpo", "normalise"} <= {row.key for row in rows}
    for row in rows:
        there = trying.changed(config, base, row)
        name, hyper = Method.of(there).objective.name, Method.of(there).hyper
        assert (there.seed, there.data, there.weight_decay) == (config.seed, config.data, 0.01)
        if row.key in ("likelihood", "beta", "rate", "early", "adadpo", "normalise"):
            assert name == "dpo" and there.shaping[0] == "gate-seq:tau=0.2"
            assert hyper["beta"] == (1.0 if row.key == "beta" else 0.2)
            assert hyper["nll"] == (0.03 if row.key == "likelihood" else 0.0)
            assert there.lr == (config.lr if row.key != "rate" else pytest.approx(config.lr / 2))
            assert there.steps == (2 if row.key == "early" else 4)
        else:
            assert name == row.key and there.shaping == () and hyper["beta"] != 0.2


GIVEN: dict[str, dict[str, Any]] = {
    "beta, shaping": {"beta": 0.2, "shaping": ["gate-seq:tau=0.2"]},
    "set": {"set": ["label_smoothing=0.1", "beta=0.2"], "lr": 1e-3, "steps": 6},
    "inline": {"objective": "dpo:beta=0.2,nll=0.01"},
    "ipo": {"objective": "ipo", "beta": 0.3},
}
"""Options that a run was typed with."""


@pytest.mark.parametrize("how", GIVEN)
def test_what_is_typed_is_what_is_trained(base: Trace, how: str) -> None:
    """A run's own options with what its remedy says to type, in the place of those of the same name, give the
    configuration that is trained."""
    given = GIVEN[how]
    config = make_config(None, given)
    method = Method.of(config)
    shapings = [{"name": one.shaping.name, "options": one.options} for one in method.shapings]
    told = {"name": method.name, "hyper": method.hyper, "shaping": shapings}
    manifest = base.manifest | {"objective": told, "config": base.about.config | asdict(config)}
    trace = replace(base, manifest=manifest)
    rows = rows_of(trace)
    assert len(rows) > 6
    for row in rows:
        text, _, left = row.change.typed.partition(" (leave out ")
        option, value = text.removeprefix("--").split(" ", 1)
        options = {name: own for name, own in given.items() if f"--{name}" not in left.rstrip(")").split(", ")}
        if option in ("set", "shaping"):
            options[option] = [*options.get(option, []), value]
        else:
            options[option] = value
        typed, there = make_config(None, options), trying.changed(config, trace, row)
        assert (typed.lr, typed.steps) == (there.lr, there.steps), row.key
        one, other = Method.of(typed), Method.of(there)
        assert (one.name, one.hyper) == (other.name, other.hyper), row.key
        assert [(s.shaping.name, s.options) for s in one.shapings] == [
            (s.shaping.name, s.options) for s in other.shapings
        ]


def attached(base: Trace, trainer: str, name: str, **hyper: Any) -> list[str]:
    """What to change in a run of this trainer of TRL."""
    trace = replace(
        base, manifest=base.manifest | {"trainer": {"name": trainer}, "objective": {"name": name, "hyper": hyper}}
    )
    return trying.commands(trace, rows_of(trace))


def test_settings_are_those_of_the_runs_own_trainer(base: Trace) -> None:
    said = attached(base, "CPOTrainer", "cpo", loss_type=["sigmoid"], loss_weights=[1.0], beta=0.1, cpo_alpha=1.0)
    assert "likelihood: CPOConfig(cpo_alpha=0.03)" in said and any(": CPOConfig(learning_rate=" in one for one in said)
    assert 'ipo: DPOTrainer, DPOConfig(loss_type="ipo", beta=0.1)' in said
    said = attached(base, "ORPOTrainer", "orpo", loss_type=["log-odds"], loss_weights=[-1.0], beta=0.1)
    assert any(one.startswith("rate: ORPOConfig(learning_rate=") for one in said)
    assert any(one.startswith("likelihood: not in TRL") for one in said)


@pytest.mark.parametrize(
    ("name", "terms", "expected"),
    [
        ("dpo", {"sigmoid": 1.0}, 'loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.03]'),
        ("ipo", {"ipo": 1.0}, 'loss_type=["ipo", "sft"], loss_weights=[1.0, 0.03]'),
        ("0.8 hinge + 0.2 sft", {"hinge": 0.8, "sft": 0.2}, 'loss_type=["hinge", "sft"], loss_weights=[0.8, 0.03]'),
    ],
)
def test_every_loss_of_dpo_trainer_can_have_a_likelihood_term(
    base: Trace, name: str, terms: dict[str, float], expected: str
) -> None:
    said = attached(base, "DPOTrainer", name, loss_type=list(terms), loss_weights=list(terms.values()), beta=0.2)
    assert f"likelihood: DPOConfig({expected})" in said


def test_a_likelihood_term_that_the_run_has_is_counted(base: Trace) -> None:
    assert likelihood_weight({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}) == 0.3
    assert likelihood_weight({"cpo_alpha": 0.5}) == 0.5 and likelihood_weight({"nll": 0.1}) == 0.1
    assert likelihood_weight({"beta": 0.1}) == 0.0
    told = {"name": "hinge + 0.01 sft", "hyper": {"loss_type": ["hinge", "sft"], "loss_weights": [1.0, 0.01]}}
    row = next(
        one for one in rows_of(replace(base, manifest=base.manifest | {"objective": told})) if one.key == "likelihood"
    )
    assert row.change.method.hyper["nll"] == pytest.approx(0.02)  # beside the recorded pulls, which have the 0.01


def test_a_remedy_is_measured_from_the_start_of_the_run(base: Trace, tmp_path: Path) -> None:
    row = next(one for one in rows_of(base) if one.key == "rate")
    config = replace(trying.changed(trying._config(base), base, row), out=str(tmp_path / "rate"), **trying.QUIET)
    there = load_trace(record(replace(config, every=4), progress=False))
    found = trying.measured(base, there, row)
    first = base.pairs.drop_duplicates("pair_id").set_index("pair_id")
    end = there.final.set_index("pair_id")
    for side in ("chosen", "rejected"):
        slow = [
            (end.loc[one, f"logp_{side}"] - first.loc[one, f"ref_logp_{side}"]) / first.loc[one, f"len_{side}"]
            for one in first.index
            if one in end.index
        ]
        assert len(slow) > 5 and getattr(found, side) == pytest.approx(np.median(slow), abs=1e-6)
    trying.save(tmp_path / "tried.json", base, [found])
    saved = json.loads((tmp_path / "tried.json").read_text(encoding="utf-8"))["tried"][0]
    assert saved["remedy"] == "rate" and saved["chosen"] == found.chosen and saved["estimated_chosen"] == -0.1


def test_estimated_stands_beside_measured(tmp_path: Path) -> None:
    run = moved_run(tmp_path / "run", -0.38, -1.9)
    tried = [trying.Tried(row, row.chosen + 0.01, row.rejected) for row in estimates(run)]
    lines = trying.tried_lines(run, tried)
    assert "−0.38" in lines[1].replace("-", "−") and len(lines) == len(tried) + 4
    assert trying.agreement(run, tried) == pytest.approx(1) and "1.00" in lines[-1]
    mixed = [replace(one, chosen=-one.chosen) for one in tried]
    assert trying.agreement(run, mixed) == pytest.approx(-1)


def test_somebody_elses_training_is_not_started_again(tmp_path: Path) -> None:
    foreign = moved_run(tmp_path / "run", -0.38, -1.9)
    assert trying.attached(foreign)
    with pytest.raises(BadInput, match="another loop"):
        trying.try_remedies(foreign.path)
    said = trying.commands(foreign, fix_table(foreign))
    assert any("DPOConfig(learning_rate=" in line for line in said) and any("not in TRL" in line for line in said)


def test_a_run_without_a_table_says_why(base: Trace, tmp_path: Path) -> None:
    if fix_table(base):
        pytest.skip("this run has one")
    with pytest.raises(BadInput, match="has no fix table"):
        trying.try_remedies(base.path, out=tmp_path / "tried", say=lambda _: None)


def test_a_tried_run_measures_no_probe_responses_whatever_its_run_did(base: Trace) -> None:
    """A plain run probes a few prompts unasked and says so in its configuration; without them, no option of theirs is
    left."""
    probed = replace(trying._config(base), mass_every=4, probe_size=5)
    check_measuring(probed)
    quiet = replace(probed, **trying.QUIET)
    check_measuring(quiet)
    assert quiet.mass_every == 0 and probed_unasked(quiet) == 0
    without = {name: value for name, value in trying.QUIET.items() if name not in PROBING}
    with pytest.raises(BadInput, match="--probe-size needs --mass-every"):
        check_measuring(replace(probed, **without))


def test_a_tried_run_is_not_refused_for_the_metric_of_its_run(base: Trace) -> None:
    """Pushes in the last step's metric go with no shaping whose rows are other log-probabilities."""
    config = replace(trying._config(base), metric="previous", shaping=("token-mask",))
    with pytest.raises(BadInput, match="leave out --metric previous"):
        check_batch(config, Method.of(config))
    quiet = replace(config, **trying.QUIET)
    check_batch(quiet, Method.of(quiet))
    assert quiet.metric == "applied"
