"""The squeezing study: tables and claims on given numbers, its data, and a small one that trains end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dyn_probe_cli.app import app
from mass_tables import mass_table, trace
from typer.testing import CliRunner

from dyn_probe.errors import BadInput
from dyn_probe.mass.squeezing import run_figures
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.claims import Estimate
from dyn_probe.studies.presets import ON_PRETRAINED, PRESETS, preset_named
from dyn_probe.studies.published import COLUMNS, PUBLISHED, TRAINED
from dyn_probe.studies.squeezing_figures import FIGURES, PRINTED
from dyn_probe.studies.squeezing_page import (
    ABOVE_DPO,
    agreement,
    beside,
    claim_rows,
    claims,
    complements,
    measured,
    nats,
    one_sign,
    spearman,
    study_lines,
    write_study,
)
from dyn_probe.studies.squeezing_runs import (
    KINDS,
    left_out,
    read_data,
    run_config,
    squeezing_arms,
    train_methods,
)
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.display import Display
from dyn_probe.train.objective import Method

SMALL = replace(
    PRESETS["tiny"], pairs=8, probes=4, vocabulary=300, width=16, layers=1, heads=2, reading_steps=2, epochs=2,
    sft_epochs=1, batch_size=4,
)  # fmt: skip


ALL = {method: [trace(mass_table())] for method in PUBLISHED}


def like_the_paper(seeds: int = 2) -> pd.DataFrame:
    """Measured exactly what was published, each seed a little more than the one before; argmax rises."""
    return pd.DataFrame(
        [
            {"method": name, "seed": seed, "delta_argmax": 1.0, "index": 0.2}
            | {column: getattr(row, column) * (1 + 0.01 * seed) for column in PRINTED}
            for name, row in PUBLISHED.items()
            for seed in range(seeds)
        ]
    )


def with_other_forms(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, and the forms that were not published: chosen falls far under IPO per token and rises with λ = 0.5."""
    rows = [
        frame[frame["method"] == "IPO"].assign(method=name, delta_chosen=chosen)
        for name, chosen in (("IPO, per token", -30.0), ("DPO-Shift, fixed", 12.0))
    ]
    return pd.concat([frame, *rows], ignore_index=True)


def as_figures(frame: pd.DataFrame) -> dict[str, dict[int, dict[str, Estimate]]]:
    """The rows as figures that are known to 0.01 nats."""
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for row in with_other_forms(frame).to_dict("records"):
        numbers = {name: float(value) for name, value in row.items() if name not in ("method", "seed")}
        own = {name: Estimate(value, 0.01, value, value) for name, value in numbers.items()}
        found.setdefault(str(row["method"]), {})[int(row["seed"])] = own
    return found


def edited(method: str, seed: int, **values: float) -> pd.DataFrame:
    frame = like_the_paper()
    for column, value in values.items():
        frame.loc[(frame["method"] == method) & (frame["seed"] == seed), column] = value
    return frame


def test_the_published_margins_are_the_differences_of_the_published_changes() -> None:
    for row in PUBLISHED.values():
        assert row.margin == pytest.approx(row.delta_chosen - row.delta_rejected, abs=0.011)


def test_spearman_by_hand() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 2, 2, 4]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert np.isnan(spearman(np.array([1.0, 1]), np.array([1.0, 2])))


def test_what_was_published_agrees_with_itself() -> None:
    found = agreement(like_the_paper())
    assert set(found["of"]) == {"mean", "seed 0", "seed 1"} and len(found) == 3 * len(PRINTED)
    assert (found["same_sign"] == 12).all() and (found["methods"] == 12).all()
    assert found["rho"].tolist() == pytest.approx([1.0] * len(found))


def test_disagreement_is_counted_per_seed_and_column() -> None:
    found = agreement(edited("DPO", 1, delta_chosen=2.0)).set_index(["of", "column"])
    assert found.loc[("seed 1", "delta_chosen"), "same_sign"] == 11
    assert found.loc[("seed 1", "delta_chosen"), "rho"] < 0.7
    assert found.loc[("seed 0", "delta_chosen"), "same_sign"] == 12
    assert found.loc[("seed 1", "delta_others"), "rho"] == pytest.approx(1)
    upside = like_the_paper()
    upside[list(PRINTED)] *= -1
    mirrored = agreement(upside)
    assert (mirrored["same_sign"] == 0).all() and mirrored["rho"].tolist() == pytest.approx([-1.0] * len(mirrored))


def test_the_table_holds_means_and_spreads() -> None:
    table = beside(like_the_paper()).set_index("method")
    assert list(table.index) == list(PUBLISHED)
    assert table.loc["DPO", "delta_chosen_published"] == -11.90
    assert table.loc["DPO", "delta_chosen_measured"] == pytest.approx(-11.90 * 1.005)
    assert table.loc["DPO", "delta_chosen_sd"] == pytest.approx(0.119 / np.sqrt(2))
    assert np.isnan(table.loc["DPO", "delta_argmax_published"])
    assert beside(like_the_paper(1))["margin_sd"].isna().all()


def test_a_study_like_the_published_one_holds() -> None:
    judged = claims(as_figures(like_the_paper()))
    assert len(judged) == 7 + 2 * len(ABOVE_DPO) + 2 * len(complements()) and all(one.holds for one in judged)
    assert judged[0].measured == "delta chosen -11.960 ± 0.059"
    assert judged[0].by_seed == "-11.900 ± 0.010; -12.019 ± 0.010"


def test_the_other_forms_of_two_methods_are_trained_with_their_hyper_parameters(tmp_path: Path) -> None:
    arms = {arm.name: arm for arm in squeezing_arms(tmp_path, SMALL, tmp_path / "probes.jsonl", [])}
    on = squeezing_arms(tmp_path, ON_PRETRAINED, tmp_path / "probes.jsonl", [], pretrained=Pretrained("m"))
    for found in (arms, {arm.name: arm for arm in on}):
        hyper = {name: Method.of(arm.config).hyper for name, arm in found.items()}
        assert hyper["IPO"]["average"] is hyper["Gate-IPO q10"]["average"] is False
        assert hyper["IPO"]["beta"] == 0.1 and hyper["IPO, per token"]["average"] is True
        assert (hyper["DPO-Shift"]["lambda"], hyper["DPO-Shift"]["schedule"]) == (0.75, True)
        assert (hyper["DPO-Shift, fixed"]["lambda"], hyper["DPO-Shift, fixed"]["schedule"]) == (0.5, False)


def test_a_gated_method_is_judged_against_its_own_objective() -> None:
    assert complements() == {
        f"Gate-{name} {kind}": name for name in ("DPO", "IPO", "Cal-DPO", "DPO-Shift") for kind in ("seq", "q10")
    }


@pytest.mark.parametrize(
    ("method", "values", "fails"),
    [
        ("DPO", {"delta_argmax": -2.0}, ["the argmax tokens rise under DPO"]),
        ("DPO", {"index": -0.3}, ["DPO squeezes"]),
        ("DPO", {"delta_chosen": 0.5}, ["chosen falls under DPO"]),
        ("Cal-DPO", {"delta_chosen": -0.5}, ["Cal-DPO prevents squeezing"]),
        (
            "Gate-DPO q10",
            {"delta_chosen": -13.0},
            [
                "Gate-DPO q10 keeps chosen above DPO's",
                "Gate-DPO q10 prevents squeezing",
                "Gate-DPO q10 complements DPO: Δ chosen",
            ],
        ),
        ("IPO", {"delta_chosen": 1.0}, ["Gate-IPO seq complements IPO: Δ chosen"]),
        ("Cal-DPO", {"delta_others": -1.5}, ["Gate-Cal-DPO q10 complements Cal-DPO: Δ others"]),
    ],
)
def test_each_statement_fails_on_its_own_by_one_seed(method: str, values: dict[str, float], fails: list[str]) -> None:
    judged = claims(as_figures(edited(method, 1, **values)))
    of = {row.claim: row.arms for row in claim_rows()}
    undecided = {one.claim for one in judged if one.verdict == "cannot tell"}
    assert set(fails) <= undecided and all(method in of[claim] for claim in undecided)
    both = edited(method, 1, **values)
    for column, value in values.items():
        both.loc[both["method"] == method, column] = value
    assert fails[0] in {one.claim for one in claims(as_figures(both)) if one.verdict == "does not hold"}


def test_a_claim_without_its_arms_was_not_run() -> None:
    assert {one.verdict for one in claims({})} == {"not run"}
    some = {method: seeds for method, seeds in as_figures(like_the_paper()).items() if method != "DPO"}
    of = {row.claim: row.arms for row in claim_rows()}
    assert {one.claim for one in claims(some) if one.verdict == "not run"} == {
        c for c, arms in of.items() if "DPO" in arms
    }


def test_measured_rows_are_run_figures() -> None:
    table = mass_table()
    frame = measured({"DPO": [trace(table), trace(mass_table(fall=2.0))]})
    assert frame["seed"].tolist() == [0, 1]
    assert frame.loc[0, "delta_chosen"] == run_figures(table).delta_chosen
    assert frame.loc[1, "delta_chosen"] == pytest.approx(2 * frame.loc[0, "delta_chosen"])


def test_figures_and_lines_show_every_method() -> None:
    frame = like_the_paper()
    for draw, _ in FIGURES.values():
        draw(frame).draw_without_rendering()
    lines = study_lines(frame, as_figures(frame))
    assert all(any(line.startswith(name) for line in lines) for name in PUBLISHED)
    assert any("−11.90 | −11.96" in line for line in lines) and sum(line.startswith("holds") for line in lines) == 33
    changed = edited("DPO", 1, delta_chosen=0.5)
    broken = study_lines(changed, as_figures(changed))
    assert any(line.startswith("cannot tell") and "chosen falls under DPO" in line for line in broken)
    assert (nats(-1.5), nats(2.0), nats(float("nan"))) == ("−1.50", "+2.00", "–")


def test_a_probe_file_is_cut_and_a_set_is_generated(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"start {i} " + "word " * 100 + "end?", "chosen": " good" * 90, "rejected": " bad", "irr_hum": "x y"}
        for i in range(9)
    ]
    file = tmp_path / "probes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    probes, texts = read_data(file, SMALL)
    assert len(probes.prompts) == 8 and all(p.prompt.endswith("word end?") for p in probes.prompts)
    assert all(len(p.prompt) <= 120 and len(p.responses["chosen"]) <= 200 for p in probes.prompts)
    assert any(text.startswith("start 8") and text.endswith("good") for text in texts) and "x y" in texts
    made, _ = read_data(None, SMALL)
    assert set(made.kinds) <= set(KINDS) and {"irr_train", "random_permute", "random_nonhum"} <= set(made.kinds)
    assert read_data(None, SMALL)[0] == made
    file.write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(BadInput, match="at least 4 prompts with chosen and rejected"):
        read_data(file, SMALL)


@pytest.mark.usefixtures("unrendered")
def test_what_a_probe_file_lacks_is_shown_and_listed_in_the_report(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    rows: list[Any] = [{"prompt": f"{i}?", "chosen": f" a{i} b{i}", "rejected": f" c{i}"} for i in range(8)]
    rows += [{"prompt": "x <i>?", "chosen": " a", "rejected": ""}, {"prompt": "y?", "chosen": 3, "rejected": " b"}, []]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = left_out(read_data(file, SMALL)[0])
    for start in (
        "pairs.jsonl:9 [rejected]: empty response", "pairs.jsonl:9: left out", "pairs.jsonl:10 [chosen]: wanted text",
        "pairs.jsonl:11: wanted a JSON object", "pairs.jsonl [irr_hum]: in none of 10 prompts",
    ):  # fmt: skip
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert not any("irr_train" in line or "gptformat" in line for line in lines)
    monkeypatch.setattr("dyn_probe.studies.squeezing_runs.TRAINED", {})
    monkeypatch.setattr("dyn_probe.studies.squeezing_runs.warm_model", lambda *_: tmp_path)
    train_methods(tmp_path / "study", SMALL, file, Display())
    shown = capsys.readouterr().err
    assert (
        f"{len(lines)} entries of the probe file are left out" in shown and "pairs.jsonl:9 [rejected]: empty" in shown
    )
    page, _ = write_study(ALL, tmp_path / "report", {}, left_out=["a <b> line"])
    text = page.read_text(encoding="utf-8")
    assert "Left out" in text and "a &lt;b&gt; line" in text
    page, _ = write_study(ALL, tmp_path / "report", {}, force=True)
    assert "Left out" not in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("unrendered")
def test_the_report_says_how_it_was_tuned_and_what_signs_are_worth(tmp_path: Path) -> None:
    page, _ = write_study(ALL, tmp_path / "report", {"preset": "cpu"})
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert (
        "was chosen under DPO alone, on pairs and a seed that are not in this table" in text and "five epochs" in text
    )
    assert PRESETS["cpu"].epochs == 1
    assert "For Δ rejected, margin, Δ others every published value has the same sign" in text
    page, _ = write_study(ALL, tmp_path / "tiny", {"preset": "tiny"})
    assert "was chosen under DPO alone" not in page.read_text(encoding="utf-8")
    assert one_sign() == ["delta_rejected", "margin", "delta_others"]
    assert any("(Δ rejected, margin, Δ others: every published" in line for line in study_lines(like_the_paper(), {}))


def test_a_plain_preference_file_gets_the_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": f" a{i} b{i}", "rejected": f" c{i}"} for i in range(8)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    probes, _ = read_data(file, SMALL)
    assert set(probes.kinds) == {"chosen", "rejected", "irr_train", "random_permute", "random_nonhum"}


def test_every_method_of_the_table_can_be_trained(tmp_path: Path) -> None:
    for preset in PRESETS.values():
        for row in PUBLISHED.values():
            config = run_config(tmp_path, tmp_path, tmp_path, row, preset, 0)
            assert Method.of(config).name == row.objective and config.steps >= preset.epochs
    assert preset_named("cpu", 7).seeds == 7
    with pytest.raises(BadInput, match="unknown preset 'huge'"):
        preset_named("huge")


def test_a_small_study_trains_every_method_from_one_model(tmp_path: Path) -> None:
    runs = train_methods(tmp_path / "study", SMALL)
    traces = {method: [load_trace(path) for path in paths] for method, paths in runs.items()}
    starts = [t[0].mass.query("step == 0")["logp"].tolist() for t in traces.values()]
    assert list(traces) == list(TRAINED) and all(start == starts[0] for start in starts)
    ends = [t[0].mass.query("step == 4")["logp"].tolist() for t in traces.values()]
    assert len({tuple(end) for end in ends}) == len(TRAINED)
    page, frame = write_study(traces, tmp_path / "study" / "report", {"probe file": "<b>"})
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in text and "<b>" not in text and "Gate-Cal-DPO q10" in text
    written = {path.name for path in page.parent.iterdir()}
    assert {"measured.csv", "table.csv", "agreement.csv", "claims.csv", "deltas.png", "ranks.png"} <= written
    with (page.parent / "measured.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: float(row["delta_chosen"]) for row in csv.DictReader(file)}
    assert rows["DPO"] == pytest.approx(frame.set_index("method").loc["DPO", "delta_chosen"])
    assert set(COLUMNS) <= set(frame)


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        return str(CliRunner().invoke(app, ["reproduce", *words]).exception)

    assert "squeezing has no option --statements" in said("squeezing", "--statements", "x.jsonl")
    assert "--preset (gpu, cpu) is for a pretrained model here" in said("sentiment", "--preset", "cpu")
    assert "unknown preset 'vast'" in said("squeezing", "--preset", "vast", "--out", str(tmp_path / "a"))
    missing = said("squeezing", "--probe-file", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "b"))
    assert "cannot read the probe file" in missing
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_text("")
    assert "--force" in said("squeezing", "--out", str(tmp_path / "c"))


@pytest.mark.slow
def test_the_tiny_preset_runs_by_command(tmp_path: Path) -> None:
    words = ["reproduce", "squeezing", "--preset", "tiny", "--out", str(tmp_path / "study")]
    result: Any = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "chosen falls under DPO" in result.output and (tmp_path / "study" / "report" / "report.html").is_file()
