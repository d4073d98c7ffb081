"""A grid of methods and seeds: one start for all methods of a seed, compared on the pairs that none trained on."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dyn_probe_cli.app import app
from tiny_runs import BARE, TINY
from typer.testing import CliRunner

from dyn_probe import load_trace
from dyn_probe.errors import BadInput
from dyn_probe.train import grid as grid_module
from dyn_probe.train.grid import (
    METHODS,
    Outcome,
    base_config,
    configurations,
    outcome_data,
    outcome_lines,
    outcomes,
    remedy_lines,
    train_grid,
)
from dyn_probe.train.grids.grid_cells import Cell
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import RunConfig

pytestmark = pytest.mark.usefixtures("short_reading")

SMALL: dict[str, Any] = TINY | BARE | {"max_pairs": 30, "eval_fraction": 0.2, "pretrain_steps": 3, "sft_steps": 2}


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
    alone = record(replace(runs[Cell("ipo+gate-seq:form=gradient", 0)], out=str(tmp_path / "alone")), progress=False)
    assert first_logps(alone) == starts[1]
    assert load_trace(alone).pairs["loss"].equals(load_trace(folders[1]).pairs["loss"])


def test_outcomes_are_end_minus_start_on_held_out_pairs(tmp_path):
    runs = configurations(RunConfig(**SMALL | {"eval_every": 1}), tmp_path, ["dpo"])
    train_grid(runs, str, progress=False)
    (found,) = outcomes(runs)
    trace = load_trace(tmp_path / "dpo-seed0")
    start, end = trace.steps["eval_logp_chosen"].iloc[0], trace.manifest["held_out"]["eval_logp_chosen"]
    assert found.chosen == pytest.approx(end - start) and found.chosen != 0


def test_the_table_says_whose_accuracy_it_is_and_has_a_common_one(tmp_path):
    runs = configurations(RunConfig(**SMALL), tmp_path, ["dpo", "simpo"])
    train_grid(runs, str, progress=False)
    found = outcomes(runs)
    for one in found:
        last = load_trace(tmp_path / f"{one.method}-seed0").manifest["held_out"]
        assert one.accuracy == last["eval_accuracy"] and one.log_ratio_accuracy == last["eval_log_ratio_accuracy"]
        assert one.margin == pytest.approx(last["eval_log_ratio_margin"], abs=1e-5)  # all start at the reference
    assert [one.score for one in found] == ["h_w, h_l", "ā, b̄"]
    head, dpo, simpo, note, *_ = outcome_lines(found)
    assert "log-ratio acc." in head and "own score" in head and "own score" in note
    assert dpo.endswith("  h_w, h_l") and simpo.endswith("  ā, b̄")


@pytest.mark.parametrize(
    ("plain", "shaped", "said"),
    [(-2.0, 1.5, "As predicted"), (0.5, 1.5, "nothing for"), (-2.0, -0.5, "does not rise")],
)
def test_the_table_says_what_normalised_updates_did(plain, shaped, said):
    found = [Outcome("dpo", seed, plain + seed - 0.5, -5.0, 1.0) for seed in range(2)] + [
        Outcome("dpo+pairwise-normalised", 0, shaped, -3.0, 0.9)
    ]
    lines = outcome_lines(found)
    assert said in lines[-1] and f"{shaped:+.2f} against {plain:+.2f}" in lines[-1]
    told = ["dpo", f"{plain:+.2f}", "±", "0.50", "-5.00", "±", "0.00", f"{plain + 5:+.2f}", "±", "0.50"]
    assert lines[1].split()[:10] == told and lines[2].split()[:3] == [
        "dpo+pairwise-normalised",
        f"{shaped:+.2f}",
        "-3.00",
    ]
    assert not any("theory" in line for line in outcome_lines(found[:2]))
    data = outcome_data(found)
    assert data["says"] == lines[-1:] and [row["runs"] for row in data["rows"]] == [2, 1]
    assert [row["seeds"] for row in data["rows"]] == [2, 1]
    assert data["rows"][0]["chosen"] == pytest.approx(plain) and data["rows"][1]["margin"] == shaped + 3.0


def test_every_method_that_was_trained_both_ways_has_its_line():
    names = ["dpo", "dpo+pairwise-normalised", "dpo:beta=0.5", "dpo:beta=0.5+pairwise-normalised",
             "dpop", "dpop+pairwise-normalised", "dpo:beta=1+pairwise-normalised"]  # fmt: skip
    lines = remedy_lines({name: Outcome(name, 0, 1.0 if "+" in name else -1.0, -2.0, 1.0) for name in names})
    assert [line.partition("falls under ")[2].partition(" without")[0] for line in lines] == [
        "dpo",
        "dpo:beta=0.5",
        "dpop",
    ]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["dppo"], "did you mean|unknown objective"),
        (["dpo", "dpo"], "once"),
        (["cpo+token-mask"], "does not compose"),
    ],
)
def test_methods_that_cannot_be_trained_are_refused_before_any_is(methods, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        configurations(RunConfig(), tmp_path, methods)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("beta: 0.05", "beta"),
        ("objective: dpo", "objective"),
        ("shaping: [gate-seq]\nset: {lambda: 0.5}", "shaping, set"),
        ("objective: ipo\nsteps: 2\nbeta: 0.1", "objective, beta"),
    ],
)
def test_options_of_a_method_are_refused_in_the_common_ones(text, named, tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        base_config(file, {})
    said = str(caught.value)
    assert said.startswith(f"{file}: {named}: set separately by every method of a grid") and "\n" not in said
    assert "--methods dpo:beta=0.05" in said


def test_what_is_written_instead_of_them_works(tmp_path):
    runs = configurations(RunConfig(), tmp_path, ["dpo:beta=0.05+gate-seq:form=gradient", "simpo"])
    assert [(c.objective, c.shaping) for c in runs.values()] == [
        ("dpo:beta=0.05", ("gate-seq:form=gradient",)), ("simpo", ())
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given", [{"beta": 0.05}, {"hyper": {"beta": 0.05}}, {"objective": "ipo"}, {"shaping": ("gate-seq",)}]
)
def test_a_base_configuration_with_them_is_refused_too(given, tmp_path):
    with pytest.raises(BadInput, match="set separately by every method of a grid"):
        configurations(RunConfig(**given), tmp_path)


def test_folders_of_single_runs_are_refused_and_other_options_taken(tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text("out: runs/one\nresume: true")
    with pytest.raises(BadInput, match="out, resume: the grid names"):
        base_config(file, {})
    file.write_text("steps: 9\nbatch-size: 4\nseed: 3")
    config = base_config(file, {"steps": 5})
    assert (config.steps, config.batch_size, config.seed) == (5, 4, 3)
    assert base_config(None, {"steps": 5}) == RunConfig(steps=5)


def test_the_default_methods_all_compose(tmp_path):
    assert len(configurations(RunConfig(), tmp_path, METHODS, 3)) == 30


@pytest.mark.usefixtures("unrendered")
def test_the_command_trains_and_compares(tmp_path):
    options = tmp_path / "options.yaml"
    options.write_text("\n".join(f"{k}: {v}" for k, v in SMALL.items() if k != "steps"))
    arguments = ["grid", "--methods", "dpo", "--methods", "dpo+pairwise-normalised", "--steps", "1"]
    arguments += ["--out", str(tmp_path / "grid"), "--config", str(options)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "grid" / "report" / "report.html").is_file()
    assert "dpo+pairwise-normalised" in done.output and "Next: dyn-probe summary" in done.output
    report = tmp_path / "grid" / "report"
    data = json.loads((report / "report.json").read_text(encoding="utf-8"))["data"]["held_out"]
    page = html.unescape((report / "report.html").read_text(encoding="utf-8"))
    (sentence,) = data["says"]
    assert sentence in done.output and f"<p>{sentence}</p>" in page
    assert [row["method"] for row in data["rows"]] == ["dpo", "dpo+pairwise-normalised"]
    assert "dpo+pairwise-normalised" in (report / "tables" / "held_out.csv").read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="--force"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_methods_and_settings_set_options_of_the_training(tmp_path):
    runs = configurations(
        RunConfig(), tmp_path, ["dpo:lr=1e-4,beta=0.05", "ipo:batch-size=4+gate-seq"], 1, ["weight-decay=0,0.1"]
    )
    assert [(c.objective, c.shaping, c.lr, c.batch_size, c.weight_decay) for c in runs.values()] == [
        ("dpo:beta=0.05", (), 1e-4, 8, 0.0), ("dpo:beta=0.05", (), 1e-4, 8, 0.1),
        ("ipo", ("gate-seq",), None, 4, 0.0), ("ipo", ("gate-seq",), None, 4, 0.1),
    ]  # fmt: skip
    assert len({config.out for config in runs.values()}) == 4
    assert [cell.name for cell in runs][:2] == [
        "dpo:lr=1e-4,beta=0.05 (weight-decay=0)", "dpo:lr=1e-4,beta=0.05 (weight-decay=0.1)"
    ]  # fmt: skip
    runs = configurations(RunConfig(), tmp_path, ["dpo", "ipo"], 2, ["beta=0.1,0.2", "lr=1e-4,2e-4"])
    assert len(runs) == 16 and {Cell("ipo", 1, "beta=0.2,lr=1e-4")} <= set(runs)


@pytest.mark.parametrize(
    ("methods", "vary", "said"),
    [
        (["dpo:lr=fast"], [], "lr must be a number"),
        (["dpo:model=x"], [], "model"),
        (["dpo:beta=0.1"], ["beta=0.1,0.2"], "leave out one of them"),
        (["dpo"], ["beta"], "KEY=VALUE,VALUE"),
        (["dpo"], ["beta=0.1,0.1"], "each value once"),
        (["dpo"], ["beta=0.1", "beta=0.2"], "each key"),
        (["dpo"], ["sigma=0.1"], "sigma"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(methods, vary, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        configurations(RunConfig(), tmp_path, methods, 1, vary)


def test_a_grid_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    runs = configurations(RunConfig(**SMALL), tmp_path, ["dpo", "ipo"], 1, ["lr=1e-3,2e-3"])
    cells, trained = list(runs), []
    real = grid_module.record

    def stopping(config, **more):
        trained.append(config.folder.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(config, **more)

    monkeypatch.setattr(grid_module, "record", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_grid(runs, str, progress=False)
    (tmp_path / cells[2].folder).mkdir()  # what a run that was killed leaves
    (tmp_path / cells[2].folder / "run.json").write_text(
        '{"schema_version": 2, "dyn_probe_version": "0.1.0", "status": "recording"}'
    )
    said = []
    folders = train_grid(runs, said.append, progress=False, resume=True)
    assert trained[3:] == [cell.folder for cell in cells[2:]]
    assert said[1].endswith("recorded before") and not said[2].endswith("recorded before")
    assert len({tuple(first_logps(folder)) for folder in folders}) == 1  # the same start
    assert [(one.method, one.setting) for one in outcomes(runs)] == [(cell.method, cell.setting) for cell in cells]
    other = configurations(RunConfig(**SMALL | {"eval_every": 3}), tmp_path, ["dpo"], 1, ["lr=1e-3"])
    with pytest.raises(BadInput, match="eval-every was 20, now 3"):
        train_grid(other, str, progress=False, resume=True)


@pytest.mark.slow
def test_normalised_updates_keep_chosen_above_dpos_and_the_line_says_what_the_numbers_say(tmp_path):
    runs = configurations(RunConfig(), tmp_path, ["dpo", "dpo+pairwise-normalised"], seeds=2)
    train_grid(runs, str, progress=False)
    found = outcomes(runs)
    plain, normalised = ([one.chosen for one in found if ("normalised" in one.method) == own] for own in (False, True))
    assert all(n > p + 1 for n, p in zip(normalised, plain, strict=True)) and max(plain) < 0
    line = outcome_lines(found)[-1]
    assert line.startswith("As predicted" if sum(normalised) > 0 else "Chosen does not rise under pairwise-normalised")
