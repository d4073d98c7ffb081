"""The reference loop: what it trains, what it records, and that recording changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_runs import run, small
from tiny_runs import BARE

from dyn_probe.errors import DynProbeError
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import RunConfig


def test_a_run_records_every_pair_of_every_step_with_its_text(tmp_path: Path) -> None:
    trace = run(tmp_path / "run")
    assert trace.closed and trace.manifest["status"] == "closed"
    assert trace.pairs.groupby("step").size().tolist() == [4] * 4
    assert trace.steps["step"].tolist() == [0, 1, 2, 3] and trace.steps["pairs"].tolist() == [4] * 4
    assert not trace.pairs[["realised_delta_chosen", "ref_logp_chosen", "loss", "grad_cosine"]].isna().any(axis=None)
    assert set(trace.pairs["pair_id"]) <= set(trace.examples["pair_id"])
    assert trace.examples["chosen"].str.contains("sentiment based on my judgement").all()
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-4
    data = trace.manifest["data"]
    assert (data["name"], data["pairs"], data["held_out"], data["rows"]) == ("sentiment:long-suffix", 54, 6, 60)


def test_steps_hold_the_means_of_their_pairs_and_both_gradient_norms(tmp_path: Path) -> None:
    trace = run(tmp_path / "run", max_grad_norm=0.01)
    means = trace.pairs.groupby("step")[["loss", "logp_chosen", "logp_rejected"]].mean()
    steps = trace.steps.set_index("step")
    for column in means:
        np.testing.assert_allclose(steps[column], means[column], rtol=1e-6)
    assert (steps["grad_norm"] > 0.01).all() and np.allclose(steps["grad_norm_clipped"], 0.01)
    assert (steps["law1_error"].dropna() < 1e-4).all() and steps["law1_error"].notna().sum() == 2


def test_at_the_first_step_policy_and_reference_agree(tmp_path: Path) -> None:
    first = run(tmp_path / "run", steps=1).pairs
    np.testing.assert_allclose(first["logp_chosen"], first["ref_logp_chosen"], rtol=1e-5)
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-4)
    np.testing.assert_allclose(first[["pull_chosen", "pull_rejected"]], 0.05, rtol=1e-4)


def test_recording_does_not_change_training(tmp_path: Path) -> None:
    often = run(tmp_path / "often", every=1, gram_every=1, realised=True)
    never = run(tmp_path / "never", every=4, gram_every=0, realised=False)
    assert len(often.pairs) == 16 and len(never.pairs) == 4
    assert often.manifest["held_out"] == never.manifest["held_out"]
    assert often.steps["loss"].tolist() == never.steps["loss"].tolist()


def test_a_plain_gradient_step_does_what_the_full_gram_predicts(tmp_path: Path) -> None:
    options = {
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "warmup_steps": 0,
        "lr": 1e-5,
        "gram_every": 1,
        "dtype": "float64",
    }
    pairs = run(tmp_path / "run", **options).pairs
    for side in ("chosen", "rejected"):
        predicted, realised = pairs[f"batch_delta_{side}"], pairs[f"realised_delta_{side}"]
        assert np.abs(predicted - realised).max() < 0.02 * np.abs(realised).max()


def test_accumulation_trains_as_one_large_batch_and_records_every_micro_batch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", batch_size=8, steps=3)
    parts = run(tmp_path / "parts", batch_size=4, gradient_accumulation=2, steps=3)
    assert parts.pairs.groupby("step").size().tolist() == [8] * 3
    key = ["step", "pair_id"]
    left, right = (t.pairs.sort_values(key, ignore_index=True) for t in (whole, parts))
    assert left[key].equals(right[key])
    for column in ("logp_chosen", "grad_norm_rejected", "grad_inner", "pull_chosen", "predicted_delta_chosen"):
        np.testing.assert_allclose(left[column], right[column], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(whole.steps["grad_norm"], parts.steps["grad_norm"], rtol=1e-3)


def test_a_live_reference_gives_what_a_precomputed_one_gives(tmp_path: Path) -> None:
    table, live = run(tmp_path / "table"), run(tmp_path / "live", precompute_reference=False)
    for column in ("ref_logp_chosen", "ref_logp_rejected", "loss"):
        np.testing.assert_allclose(table.pairs[column], live.pairs[column], rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 2},
        {"dtype": "bfloat16"},
        {"dtype": "autocast"},
        {"gradient_checkpointing": True},
        {"eval_fraction": 0.0},
        {"optimizer": "rmsprop", "schedule": "cosine"},
        {"optimizer": "sgd", "schedule": "linear"},
        {"truncation": "keep_end", "max_length": 24},
        {"sft_steps": 0},
        {"sft_objective": "extended_sft"},
        {"objective": "dpo_shift", "hyper": {"schedule": "true"}},
        {"every": 2},
    ],
    ids=str,
)
def test_options_train_to_the_end(options: dict[str, Any], tmp_path: Path) -> None:
    trace = run(tmp_path / "run", **options)
    assert trace.closed and np.isfinite(trace.pairs["loss"]).all()


def test_hyper_parameters_reach_the_loss(tmp_path: Path) -> None:
    pulls = [
        run(tmp_path / str(i), steps=1, **options).pairs["pull_chosen"].mean()
        for i, options in enumerate(({"beta": 0.4}, {"hyper": {"beta": "0.4"}}, {}))
    ]
    np.testing.assert_allclose(pulls, [0.2, 0.2, 0.05], rtol=1e-3)


def test_learning_rates_follow_the_schedule(tmp_path: Path) -> None:
    rates = run(tmp_path / "run", warmup_steps=2, schedule="linear", lr=1e-4, steps=6).steps["learning_rate"]
    assert rates.is_monotonic_increasing is False and rates.idxmax() == 2 and np.isclose(rates.max(), 1e-4)


def test_supervised_warm_up_raises_chosen_and_both_sides_if_asked(tmp_path: Path) -> None:
    first = {
        name: run(tmp_path / name, **BARE | dict(steps=1, sft_steps=steps, sft_objective=objective)).pairs
        for name, steps, objective in (("none", 0, "sft"), ("sft", 20, "sft"), ("both", 20, "extended_sft"))
    }
    means = {name: rows[["logp_chosen", "logp_rejected"]].mean() for name, rows in first.items()}
    assert means["sft"]["logp_chosen"] > means["none"]["logp_chosen"] + 1
    assert means["both"]["logp_rejected"] > means["none"]["logp_rejected"] + 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "dppo"}, "unknown objective 'dppo'"),
        ({"objective": "cpo", "shaping": ("token-mask",)}, "does not compose"),
        ({"hyper": {"lambda": 1}}, "unknown option 'lambda'"),
        ({"shaping": ("gait",)}, "unknown shaping 'gait'"),
        ({"data": "sentiment:none"}, "unknown sentiment style"),
        ({"model": "./nothing"}, "no such model folder"),
        ({"batch_size": 100}, "a step takes 100 pairs"),
        ({"objective": "sppo", "hyper": {"soft": True}}, "reads a win_probability"),
        ({"objective": "kto", "batch_size": 1}, "--batch-size 2"),
        ({"max_length": 4}, "leaves no room for a response"),
        ({"device": "abacus"}, "cannot use device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DynProbeError) as caught:
        record(small(tmp_path / "run", **options), progress=False)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_be_used_are_listed_in_the_manifest(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "" if i == 3 else f" b{i}", "rejected": " c"} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = run(tmp_path / "run", data=str(tmp_path / "data.jsonl"), steps=1)
    assert trace.manifest["skipped_rows"] == [{"source": f"{tmp_path / 'data.jsonl'}:4", "reason": "chosen empty"}]
    assert trace.manifest["data"]["left_out"] == {"chosen empty": 1}
    assert trace.examples["source"].str.startswith(str(tmp_path)).all()
    with pytest.raises(DynProbeError, match="--strict-data leaves none out"):
        record(small(tmp_path / "strict", data=str(tmp_path / "data.jsonl"), strict_data=True), progress=False)


def test_what_is_cut_is_counted_and_shown_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tick", "tock", "bell", "chime"]
    rows = [{"frage": f"{i}?", "gut": " tick" * (30 + i), "schlecht": f" {words[i % 4]}" * 2} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"columns": "prompt=frage,chosen=gut,rejected=schlecht", "max_length": 40, "steps": 1}
    trace = load_trace(record(small(tmp_path / "run", data=str(tmp_path / "data.jsonl"), **options), progress=True))
    fact = trace.manifest["data"]["facts"]["cut"]
    assert (fact["count"], fact["of"], fact["level"]) == (12, 12, "warning")
    said = capsys.readouterr().err
    assert f"warning: {fact['sentence']}" in said and "lose the end of 12 responses" in fact["sentence"]
    assert (
        "data: 12 pairs from 12 rows, read as named by --columns (prompt ← frage, chosen ← gut, rejected ← schlecht);"
        in said
    )
    assert trace.examples["chosen"].str.endswith("⟨cut at 40 tokens⟩").all()
    assert not trace.examples["rejected"].str.contains("cut").any()


@pytest.mark.slow
def test_the_paper_on_the_built_in_model(tmp_path: Path) -> None:
    """Yuan et al. 2024, Fig. 3 and 4a: the longer the shared suffix, the more aligned, and the further chosen falls."""
    change, cosine = {}, {}
    for style in ("single-token", "short-suffix", "long-suffix"):
        trace = load_trace(record(RunConfig(out=str(tmp_path / style), data=f"sentiment:{style}"), progress=False))
        change[style] = trace.manifest["held_out"]["eval_logp_chosen"] - trace.steps["eval_logp_chosen"].iloc[0]
        cosine[style] = trace.pairs.query("step == 0")["grad_cosine"].mean()
    assert cosine["single-token"] < cosine["short-suffix"] < cosine["long-suffix"] and cosine["single-token"] < 0
    assert change["long-suffix"] < change["short-suffix"] < change["single-token"] and change["long-suffix"] < -0.5
