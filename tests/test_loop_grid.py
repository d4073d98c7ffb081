"""A grid of methods and seeds: one start for all methods of a seed, compared on the pairs that none trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dyn_probe_cli.app import app
from tiny_runs import TINY
from typer.testing import CliRunner

from dyn_probe import load_trace
from dyn_probe.errors import BadInput
from dyn_probe.train.config import RunConfig
from dyn_probe.train.grid import METHODS, Outcome, configurations, outcome_lines, outcomes, train_grid
from dyn_probe.train.loop import record

SMALL: dict[str, Any] = TINY | {"max_pairs": 30, "eval_fraction": 0.2, "pretrain_steps": 3, "sft_steps": 2}


def first_logps(folder: Path) -> list[float]:
    pairs = load_trace(folder).pairs
    return sorted(pairs[pairs["step"] == 0]["logp_chosen"])


def test_methods_of_one_seed_share_their_start(tmp_path):
    runs = configurations(RunConfig(**SMALL), tmp_path, ["dpo", "ipo+gate-seq:form=gradient"], seeds=2)
    said: list[str] = []
    folders = train_grid(runs, said.append, progress=False)
    assert [folder.name for folder in folders] == [
        "dpo-seed0", "ipo-gate-seq-form-gradient-seed0", "dpo-seed1", "ipo-gate-seq-form-gradient-seed1",
    ]  # fmt: skip
    assert said[3] == "4 of 4: ipo+gate-seq:form=gradient, seed 1"
    starts = [first_logps(folder) for folder in folders]
    assert starts[0] == starts[1] and starts[2] == starts[3] and starts[0] != starts[2]
    assert load_trace(folders[0]).manifest["warmup"] == load_trace(folders[1]).manifest["warmup"] != {}
    alone = record(replace(runs["ipo+gate-seq:form=gradient", 0], out=str(tmp_path / "alone")), progress=False)
    assert first_logps(alone) == starts[1]
    assert load_trace(alone).pairs["loss"].equals(load_trace(folders[1]).pairs["loss"])


def test_outcomes_are_end_minus_start_on_held_out_pairs(tmp_path):
    runs = configurations(RunConfig(**SMALL | {"eval_every": 1}), tmp_path, ["dpo"])
    train_grid(runs, str, progress=False)
    (found,) = outcomes(runs)
    trace = load_trace(tmp_path / "dpo-seed0")
    start, end = trace.steps["eval_logp_chosen"].iloc[0], trace.manifest["held_out"]["eval_logp_chosen"]
    assert found.chosen == pytest.approx(end - start) and found.chosen != 0


@pytest.mark.parametrize(
    ("plain", "shaped", "said"),
    [(-2.0, 1.5, "As theory says"), (0.5, 1.5, "nothing for"), (-2.0, -0.5, "Against what theory says")],
)
def test_the_table_says_what_normalised_updates_did(plain, shaped, said):
    found = [Outcome("dpo", seed, plain + seed - 0.5, -5.0, 1.0) for seed in range(2)] + [
        Outcome("dpo+pairwise-normalised", 0, shaped, -3.0, 0.9)
    ]
    lines = outcome_lines(found)
    assert said in lines[-1] and f"{shaped:+.2f} against {plain:+.2f}" in lines[-1]
    assert lines[1].split()[:4] == ["dpo", f"{plain:+.2f}", "-5.00", f"{plain + 5:+.2f}"]
    assert not any("theory" in line for line in outcome_lines(found[:2]))


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["dppo"], "did you mean|unknown objective"),
        (["dpo", "dpo"], "once"),
        (["simpo+token-mask"], "does not compose"),
    ],
)
def test_methods_that_cannot_be_trained_are_refused_before_any_is(methods, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        configurations(RunConfig(), tmp_path, methods)


def test_the_default_methods_all_compose(tmp_path):
    assert len(configurations(RunConfig(), tmp_path, METHODS, 3)) == 30


def test_the_command_trains_and_compares(tmp_path):
    options = tmp_path / "options.yaml"
    options.write_text("\n".join(f"{k}: {v}" for k, v in SMALL.items() if k != "steps"))
    arguments = ["grid", "--methods", "dpo", "--methods", "dpo+pairwise-normalised", "--steps", "1"]
    arguments += ["--out", str(tmp_path / "grid"), "--config", str(options)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "grid" / "report" / "report.html").is_file()
    assert "dpo+pairwise-normalised" in done.output and "Next: dyn-probe summary" in done.output
    with pytest.raises(BadInput, match="--force"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.slow
def test_chosen_rises_under_normalised_updates_where_dpo_lowers_it(tmp_path):
    runs = configurations(RunConfig(), tmp_path, ["dpo", "dpo+pairwise-normalised"], seeds=2)
    train_grid(runs, str, progress=False)
    assert outcome_lines(outcomes(runs))[-1].startswith("As theory says")
