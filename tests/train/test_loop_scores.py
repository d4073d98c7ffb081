"""Margin and accuracy of a run are those of what its objective compares; held-out pairs have a common measure too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import SCORES
from reference.gradients import logp
from tiny_runs import BARE, TRAINED, run, tiny, uneven

from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.collating import collate
from dyn_probe.objectives import OBJECTIVES
from dyn_probe.report.pair_columns import margin
from dyn_probe.train.checkpoints import newest_checkpoint
from dyn_probe.train.display import live_numbers
from dyn_probe.train.setup import prepare

HELD_OUT = BARE | dict(dtype="float64", eval_fraction=0.4, max_pairs=10, batch_size=2)


@pytest.mark.parametrize("objective", TRAINED)
def test_rows_have_the_scores_that_the_objective_compares(objective: str, tmp_path: Path) -> None:
    options = BARE | dict(objective=objective, dtype="float64", steps=2, lr=1e-2, data=uneven(tmp_path))
    trace = run(tmp_path / "run", **options)
    pairs, hyper = trace.pairs, trace.manifest["objective"]["hyper"]
    for side in ("chosen", "rejected"):
        logp, n, reference = (pairs[f"{name}_{side}"] for name in ("logp", "len", "ref_logp"))
        wanted = SCORES[objective](logp, n, reference, hyper)
        np.testing.assert_allclose(pairs[f"score_{side}"], wanted, rtol=1e-9, atol=1e-9)
    own = pairs["score_chosen"] - pairs["score_rejected"]
    np.testing.assert_array_equal(margin(pairs), own)
    by_step = own.groupby(pairs["step"])
    np.testing.assert_allclose(trace.steps["margin"], by_step.mean(), rtol=1e-12)
    np.testing.assert_allclose(trace.steps["accuracy"], by_step.agg(lambda values: (values > 0).mean()))
    assert trace.manifest["objective"]["score"] == OBJECTIVES[objective].score_of(hyper).as_manifest


def test_a_pair_that_the_objective_has_right_is_not_called_wrong() -> None:
    """A long chosen response: its sum is lower than the short rejected one's, its mean higher."""
    row = {"logp_chosen": -20.0, "len_chosen": 20, "logp_rejected": -10.0, "len_rejected": 2, "loss": 0.1,
           "grad_cosine": 0.0}  # fmt: skip
    assert "margin -10.00 acc 0%" in live_numbers([row], {})
    assert "margin +4.00 acc 100%" in live_numbers([row | {"score_chosen": -1.0, "score_rejected": -5.0}], {})


def held_out_logps(config: Any, weights: dict[str, torch.Tensor] | None) -> Any:
    """``[2, pairs]`` chosen and rejected log-probabilities of the held-out pairs by plain autograd, and lengths."""
    setup = prepare(config)
    model = built_in_model(config.seed).double().eval()
    if weights is not None:
        model.load_state_dict(weights)
    batch = collate(setup.held_out)
    rows = zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True)
    values = np.array([float(logp(model, *row).detach()) for row in rows])
    return values.reshape(2, -1), batch.lengths.numpy().reshape(2, -1)


@pytest.mark.parametrize("objective", ["dpo", "simpo", "ipo"])
def test_held_out_pairs_by_own_score_and_by_log_ratios(objective: str, tmp_path: Path) -> None:
    """Against the model evaluated apart, at the start and at the end; the reference is the start."""
    options = HELD_OUT | dict(
        data=uneven(tmp_path), objective=objective, steps=2, eval_every=1, lr=1e-2, checkpoint_every=2
    )
    trace = run(tmp_path / "run", **options)
    config = tiny(tmp_path / "other", **options)
    start, n = held_out_logps(config, None)
    assert (n[0] != n[1]).any()
    end, _ = held_out_logps(config, newest_checkpoint(tmp_path / "run")["model"])
    ratio = (end - start)[0] - (end - start)[1]
    own = {"dpo": end - start, "ipo": (end - start) / n, "simpo": end / n}[objective]
    found = trace.manifest["held_out"]
    assert found["eval_margin"] == pytest.approx((own[0] - own[1]).mean(), rel=1e-9)
    assert found["eval_accuracy"] == pytest.approx((own[0] > own[1]).mean())
    assert found["eval_log_ratio_margin"] == pytest.approx(ratio.mean(), rel=1e-9)
    assert found["eval_log_ratio_accuracy"] == pytest.approx((ratio > 0).mean())
    first = trace.steps.sort_values("step").iloc[0]
    assert first["eval_log_ratio_margin"] == pytest.approx(0, abs=1e-12)
