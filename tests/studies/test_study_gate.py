"""The study of the gate: its arms, the start from a collapsed policy, its page; the claims table over all studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dyn_probe.data.model_folders import is_model
from dyn_probe.errors import BadInput
from dyn_probe.studies.arms import gate_arms, gate_page
from dyn_probe.studies.arms.arm import Arm, NoStart
from dyn_probe.studies.arms.arm_figures import FIGURES
from dyn_probe.studies.arms.arm_manifest import ArmManifest, figures_by_arm
from dyn_probe.studies.arms.arm_pages import PAGES, write_arms
from dyn_probe.studies.arms.arm_running import run_arms
from dyn_probe.studies.arms.claim_rows import Claim, arms_of, judge
from dyn_probe.studies.arms.claims_table import COLUMNS, STUDIES, cell, claims_table, command, theory_rows
from dyn_probe.studies.arms.method_table import method_table
from dyn_probe.studies.arms.objective_page import METHODS, shown
from dyn_probe.studies.arms.published_table import published_table
from dyn_probe.studies.claims import Estimate
from dyn_probe.studies.presets import PRESETS
from dyn_probe.studies.published import TRAINED
from dyn_probe.studies.squeezing_runs import study_data
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import RunConfig

SMALL = replace(
    PRESETS["tiny"], pairs=8, probes=4, vocabulary=300, width=16, layers=1, heads=2, reading_steps=2, epochs=1,
    sft_epochs=1, batch_size=4,
)  # fmt: skip


def estimate(value: float, error: float = 0.01) -> Estimate:
    return Estimate(value, error, value, value)


def manifest(study: str, arm: str, seed: int = 0, model: str = "built-in", data: str = "generated", **figures: float):
    curves = {name: [0.0, 1.0] for name in ("step", "cosine", "chosen", "rejected", "chosen_token", "rejected_token")}
    return ArmManifest(
        study, arm, seed, model, data, "c", {}, {"torch": "2", "transformers": "5"}, "cpu", 60.0, "now",
        {name: estimate(value) for name, value in figures.items()}, curves,
    )  # fmt: skip


def test_one_constant_is_changed_at_a_time(tmp_path: Path) -> None:
    names = gate_arms.settings()
    assert names["gate-seq"] == "gate-seq" and names["gate-q10 tau=0.003"] == "gate-q10:tau=0.003"
    assert "gate-seq tau=0.1" not in names and "gate-q10 q=0.25" in names and len(names) == 2 + 5 + 6
    arms = gate_arms.gate_arms(tmp_path, gate_arms.SIZE, tmp_path / "probes.jsonl", [])
    assert len(arms) == gate_arms.SIZE.seeds * (1 + len(names) + 4) == len({arm.key for arm in arms})
    for arm in arms:
        Method.of(arm.config)
        assert arm.config.model.endswith("collapsed") is arm.name.startswith("collapsed: ")
        assert arm.config.model.endswith("larger") is (arm.name == "larger: DPO")
    wide, size = gate_arms.larger(SMALL), gate_arms.LARGER
    assert (wide.width, wide.layers, wide.heads, wide.pairs) == (size.width, size.layers, size.heads, SMALL.pairs)
    assert set(arms_of(gate_page.CLAIMS)) <= {arm.name for arm in arms}


def test_a_policy_is_trained_until_it_collapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, texts, _ = study_data(tmp_path, SMALL, None)
    moved = iter([(-1.0, -1.0), (3.0, -1.0), (1.0, 5.0)])

    def figures(_: Any) -> SimpleNamespace:
        rose, fell = next(moved)
        return SimpleNamespace(token_delta_argmax=rose, delta_chosen=fell)

    monkeypatch.setattr(gate_arms, "run_figures", figures)
    monkeypatch.setattr(gate_arms, "SAME_RATE", 1)
    start, folder = tmp_path / "models" / "0", tmp_path / "models" / "0-collapsed"
    assert gate_arms.collapsed_model(folder, start, file, texts, SMALL, 0) == folder and is_model(folder)
    assert (folder.parent / "0-collapsed-1").is_dir() and not (folder.parent / "0-collapsed-2").exists()
    rates = [load_trace(folder.parent / f"0-collapsed-{k}").manifest["config"]["lr"] for k in (0, 1)]
    assert rates == [SMALL.lr, pytest.approx(3 * SMALL.lr)]
    assert gate_arms.collapsed_model(folder, start, file, texts, SMALL, 0) == folder  # nothing is trained again
    monkeypatch.setattr(gate_arms, "STRETCHES", 1)
    with pytest.raises(BadInput, match="no collapse to start from with seed 0"):
        gate_arms.collapsed_model(tmp_path / "other", start, file, texts, SMALL, 0)
    monkeypatch.setattr(gate_arms, "record", None)  # nothing is trained for it again
    with pytest.raises(NoStart, match="no collapse to start from with seed 0"):
        gate_arms.collapsed_model(tmp_path / "other", start, file, texts, SMALL, 0)


def test_a_study_goes_on_without_an_arm_that_has_no_start(tmp_path: Path) -> None:
    def fail() -> None:
        raise NoStart("nothing fell")

    arm = Arm("gate", "collapsed: DPO", 0, RunConfig(out=str(tmp_path / "arm")), begin=fail)
    said: list[str] = []
    assert run_arms([arm], tmp_path, said.append) == []
    assert said[-1] == "  not trained: nothing fell"


def gate_study(seed: int = 0) -> list[ArmManifest]:
    """Every arm of the gate's study with made-up numbers: DPO lowers chosen, gates raise it."""
    names = [gate_arms.DPO, *gate_arms.settings(), *(f"collapsed: {name}" for name in ("DPO", "gate-seq", "gate-q10"))]
    names.append(gate_arms.LARGER_DPO)
    rows = []
    for place, name in enumerate(names):
        up = -2.0 if name.endswith("DPO") else 1.0
        gated = {} if name.endswith("DPO") else {"gated": 0.1 + 0.05 * place}
        moved = {"delta_chosen": up, "delta_others": up - 1, "delta_rejected": -3.0, "delta_argmax": -up}
        rows.append(manifest("gate", name, seed, **moved, **gated))
    return rows


def test_the_page_of_the_gate(tmp_path: Path) -> None:
    page, judged = write_arms("gate", gate_study(), tmp_path, {"lr": "<b>"}, ["not run: <i>"])
    text = page.read_text(encoding="utf-8")
    assert all(one.verdict in ("holds", "does not hold") for one in judged)
    assert "gate-q10 helps with τ = 0.003: chosen" in text and "&lt;b&gt;" in text and "not run: &lt;i&gt;" in text
    assert {"sweeps.png", "after_collapse.png", "claims.csv"} <= {path.name for path in tmp_path.iterdir()}
    some = [one for one in gate_study() if one.arm in ("DPO", "gate-seq")]
    page, judged = write_arms("gate", some, tmp_path, {})
    assert {one.verdict for one in judged} == {"holds", "not run"}


def test_the_page_of_objectives_shows_every_method(tmp_path: Path) -> None:
    arms = [manifest("objectives", name, chosen=0.1, rejected=-0.1, held_chosen=-1.0) for name in METHODS]
    page, judged = write_arms("objectives", arms, tmp_path, {})
    text = page.read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in text for name in METHODS) and "−1.00 ± 0.01" in text
    verdicts = {one.claim: one.verdict for one in judged}
    assert verdicts["SPPO raises chosen (Fig. 2)"] == "holds"
    assert verdicts["DPO lowers chosen (Fig. 2)"] == "does not hold" and verdicts["DPO★ raises chosen"] == "holds"
    for draw, _ in PAGES["objectives"].figures.values():
        draw(arms).draw_without_rendering()


def test_claims_name_figures_that_there_are() -> None:
    for study in STUDIES:
        for row in study.claims:
            assert row.figure in FIGURES and (not row.less or row.less in FIGURES), row
    assert shown([]) == "–" and shown([estimate(-1.0), estimate(-1.2)]) == "−1.10 ± 0.10"


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Claim("c", "e", "A", "chosen"), "holds"),
        (Claim("c", "e", "A", "chosen", above=False), "does not hold"),
        (Claim("c", "e", "A", "chosen", limit=0.995), "cannot tell"),
        (Claim("c", "e", "A", "chosen", against="B"), "does not hold"),
        (Claim("c", "e", "B", "chosen", against="A"), "holds"),
        (Claim("c", "e", "A", "chosen", less="rejected"), "holds"),
        (Claim("c", "e", "C", "chosen"), "not run"),
        (Claim("c", "e", "A", "index"), "not run"),
        (Claim("c", "e", "A", "chosen", against="C"), "not run"),
    ],
)
def test_one_rule_judges_on_both_sides(row: Claim, verdict: str) -> None:
    arms = [manifest("s", "A", k, chosen=1.0, rejected=-1.0) for k in (0, 1)]
    arms += [manifest("s", "B", 0, chosen=2.0)]
    assert judge([row], figures_by_arm(arms))[0].verdict == verdict == cell(row, figures_by_arm(arms)).said


def test_the_table_has_every_claim_and_says_what_was_not_run() -> None:
    real = {"model": "smollm2", "data": "tweets.jsonl"}
    found = [
        manifest("objectives", "SPPO", chosen=-1.0, held_chosen=2.0, push_own_chosen=0.5, push_others=-3.0),
        manifest("objectives", "SPPO", **real, chosen=1.0),
        manifest("objectives", "CPO", **real, chosen=-1.0),
    ]
    text = claims_table(found, theory_rows([{"claim": "Theorem 1", "expected": "−‖h‖²/M", "verdict": "holds"}]))
    assert all(row.claim in text for study in STUDIES for row in study.claims)
    row = next(line for line in text.splitlines() if line.startswith("| SPPO raises chosen"))
    assert row.split(" | ")[2:] == [
        "−1.00 ± 0.010 (1): **does not hold**<br>held out +2.00 ± 0.010: holds", "not run",
        "+1.00 ± 0.010 (1): **holds** |",
    ]  # fmt: skip
    assert "- *SPPO raises chosen (Fig. 2)* (built-in, SPPO): pushes on chosen" in text
    assert "the pair's own chosen +0.500 ± 0.010, other pairs −3.00 ± 0.010." in text
    assert "- *CPO raises chosen (Fig. 2)* (pretrained, real, CPO): not known" in text
    assert "- `dyn-probe reproduce objectives --arm dpo-0`" in text and "--arm sppo-0`" in text
    assert "Of the 3 that were run, 3 are decided." in text and "| Theorem 1 | −‖h‖²/M | **holds** |" in text
    assert "| objectives | smollm2 | tweets.jsonl | cpu | 2 | 5 | 2 | 0 | 60 s |" in text


def test_commands_of_the_table_name_model_and_data() -> None:
    sentiment, gate = STUDIES[0], STUDIES[-1]
    said = [command(sentiment, column, "long-suffix") for column in COLUMNS]
    model = "--model models/smollm2-135m-instruct"
    assert said == [
        "dyn-probe reproduce sentiment --arm long-suffix-0",
        f"dyn-probe reproduce sentiment {model} --arm long-suffix-0",
        f"dyn-probe reproduce sentiment {model} --statements tweet_sentiment.jsonl --arm long-suffix-0",
    ]
    assert command(gate, COLUMNS[0], "collapsed: DPO", 2) == "dyn-probe reproduce gate --arm collapsed-dpo-2"


def test_the_methods_stand_side_by_side_on_both_kinds_of_pairs() -> None:
    sides = {"rejected": -9.0, "held_rejected": -8.0}
    found = [manifest("objectives", "KTO", seed, chosen=1.0 + seed, held_chosen=-0.5, **sides) for seed in (0, 1)]
    found += [manifest("objectives", "DPO", chosen=-3.0, **sides), manifest("squeezing", "DPO", chosen=99.0)]
    lines = {line.split(" | ")[0].strip("| "): line for line in method_table(found).splitlines()}
    assert set(METHODS) <= set(lines) and "99" not in "".join(lines.values())
    assert "+1.50 ± 0.50 (−0.50 ± 0.01) / −9.00 ± 0.01 (−8.00 ± 0.01)" in lines["KTO"]
    assert "−3.00 ± 0.01 (–) / −9.00 ± 0.01 (−8.00 ± 0.01)" in lines["DPO"] and lines["SPPO"].count("not run") == 1


def test_the_published_table_has_both_forms_of_two_methods() -> None:
    moved = {"delta_rejected": -9.0, "margin": 8.0, "delta_others": -7.0}
    found = [manifest("squeezing", "IPO", seed, delta_chosen=-1.0 - seed, **moved) for seed in (0, 1)]
    found += [manifest("squeezing", "IPO, per token", delta_chosen=-30.0, **moved)]
    lines = {line.split(" | ")[0].strip("| "): line for line in published_table(found).splitlines()}
    assert set(TRAINED) <= set(lines)
    assert "| average=false | −0.95 / −9.43 / +8.48 / −8.55 | −1.5 ± 0.5 / −9.0 ± 0.0" in lines["IPO"]
    assert "(2) | not run | not run |" in lines["IPO"] and "no row | −30.0 ± 0.0" in lines["IPO, per token"]
    assert "lambda=0.75, schedule=true" in lines["Gate-DPO-Shift q10"] and lines["DPO"].count("not run") == 3
