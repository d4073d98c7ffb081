"""Remedies that are trained: the run's own configuration with one change, from the same start, measured by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loop_runs import run
from moved_runs import moved_run

from dyn_probe.errors import BadInput
from dyn_probe.report.first_screen.fix_table import Estimate, estimates, fix_table, recorded
from dyn_probe.report.first_screen.remedy_rows import REMEDIES
from dyn_probe.report.replay.kernels import kernels
from dyn_probe.studies import trying
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.objective import Method


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


def test_what_is_typed_is_what_is_trained(base: Trace, tmp_path: Path) -> None:
    """A remedy's fields are those that its options give on the command line."""
    from dyn_probe.train.options.config_file import make_config

    short = {"objective": "objective", "lr": "lr", "steps": "steps", "set": "set", "shaping": "shaping"}
    for row in rows_of(base):
        option, text = row.change.typed.split(" ", 1)
        value = [text] if option in ("--set", "--shaping") else text
        typed = Method.of(make_config(None, {short[option[2:]]: value}))
        there = Method.of(trying.changed(trying._config(base), base, row))
        assert typed.objective.name == (there.objective.name if option == "--objective" else "dpo")
        if option == "--set":
            name, number = text.split("=")
            assert there.hyper[name] == typed.hyper[name] == float(number)


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
    said = trying.commands(fix_table(foreign))
    assert any("DPOConfig(learning_rate=" in line for line in said) and any("not in TRL" in line for line in said)


def test_a_run_without_a_table_says_why(base: Trace, tmp_path: Path) -> None:
    if fix_table(base):
        pytest.skip("this run has one")
    with pytest.raises(BadInput, match="has no fix table"):
        trying.try_remedies(base.path, out=tmp_path / "tried", say=lambda _: None)
