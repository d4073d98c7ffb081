"""Every objective and every shaping it composes with trains in the reference loop, and its rows keep the laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import COMPOSED, TRAINED, pulls_seen, run

from dyn_probe.objectives import SHAPINGS
from dyn_probe.train.builtin import built_in_model
from dyn_probe.train.checkpoints import newest_checkpoint


def check_rows(trace, seen, normalised=False, masked=False) -> None:
    """Pulls are the objective's; predictions keep the law; the recorder is certified."""
    pairs = trace.pairs
    d_w, d_l = (torch.cat([step[side] for step in seen]).double().numpy() for side in (0, 1))
    if normalised:
        d_w, d_l = d_w * pairs["normaliser_chosen"], d_l * pairs["normaliser_rejected"]
    np.testing.assert_allclose(pairs["pull_chosen"], d_w, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(pairs["pull_rejected"], d_l, rtol=1e-5, atol=1e-9)
    certificate = trace.manifest["certificate"]
    assert certificate["max_relative_error"] < certificate["tolerance"]
    if not masked:
        gain = d_w * pairs["predicted_delta_chosen"] - d_l * pairs["predicted_delta_rejected"]
        scale = (d_w * pairs["grad_norm_chosen"]) ** 2 + (d_l * pairs["grad_norm_rejected"]) ** 2
        assert (gain >= -1e-6 * trace.steps["learning_rate"].iloc[0] * scale).all()


@pytest.mark.parametrize("objective", TRAINED)
def test_every_objective_trains(objective, tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        trace = run(tmp_path / "run", objective=objective, steps=3)
    assert trace.closed and list(trace.steps["step"]) == [0, 1, 2] and len(trace.pairs) == 9
    assert trace.steps["loss"].notna().all() and (trace.steps["grad_norm"] > 0).all()
    assert (trace.pairs["realised_delta_chosen"] != 0).all()
    assert trace.steps["law1_error"].iloc[0] < 1e-4
    check_rows(trace, seen)


@pytest.mark.parametrize(("objective", "shaping"), COMPOSED)
def test_every_composition_trains(objective, shaping, tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        trace = run(tmp_path / "run", objective=objective, shaping=(shaping,), realised=False, gram_every=0)
    assert len(trace.pairs) == 6
    for column in SHAPINGS[shaping].columns:
        assert trace.pairs[column].notna().all()
    check_rows(trace, seen, shaping == "pairwise-normalised", shaping == "token-mask")


def test_wrong_pulls_are_seen(tmp_path, monkeypatch):
    with pulls_seen(monkeypatch) as seen:
        trace = run(tmp_path / "run")
    with pytest.raises(AssertionError):
        check_rows(trace, [(1.01 * d_w, d_l) for d_w, d_l in seen])
    trace.pairs["predicted_delta_chosen"] *= -1
    with pytest.raises(AssertionError):
        check_rows(trace, seen)


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_an_open_gate_is_no_gate(objective, tmp_path):
    """g → 1 leaves losses and parameters as they are, bit for bit."""
    plain = run(tmp_path / "plain", objective=objective, steps=3)
    gated = run(tmp_path / "gated", objective=objective, steps=3, shaping=("gate-seq:tau=0,alpha=1e8",))
    assert (gated.pairs["gate"] == 1.0).all()
    for column in ("loss", "logp_chosen", "logp_rejected", "pull_rejected"):
        assert list(plain.pairs[column]) == list(gated.pairs[column])
    shut = run(tmp_path / "shut", objective=objective, steps=3, shaping=("gate-seq:tau=0.5",))
    assert list(plain.pairs["loss"]) != list(shut.pairs["loss"])


def test_a_normalised_run_meets_both_conditions_for_every_pair(tmp_path):
    """cpo pulls chosen so much harder that plain updates lift both sides; normalised, the pulls weigh the same."""
    trace = run(tmp_path / "run", objective="cpo", shaping=("pairwise-normalised",), steps=4, lr=1e-5)
    assert (trace.pairs["case"] == 1).all()
    assert (trace.pairs["predicted_delta_chosen"] > 0).all() and (trace.pairs["predicted_delta_rejected"] < 0).all()
    plain = run(tmp_path / "plain", objective="cpo", steps=4, lr=1e-5)
    assert (plain.pairs["case"] == 3).any()


def test_a_token_mask_learns(tmp_path):
    trace = run(tmp_path / "run", shaping=("token-mask:penalty=0.5",), steps=4, lr=1e-2)
    masks = trace.pairs.groupby("step")["mask_chosen"].mean()
    assert masks.iloc[0] == pytest.approx(0.5) and masks.iloc[-1] < masks.iloc[0]
    assert trace.pairs["case"].isna().all() and trace.pairs["predicted_delta_chosen"].isna().all()


@pytest.mark.parametrize("shaping", [(), ("pairwise-normalised",), ("token-mask",)])
def test_accumulated_batches_make_the_update_of_one_large_batch(shaping, tmp_path):
    options = dict(shaping=shaping, dtype="float64", optimizer="sgd", lr=0.1, steps=1, checkpoint_every=1)
    weights = []
    for size, parts in ((8, 1), (4, 2)):
        folder = tmp_path / str(size)
        run(folder, **options, max_pairs=8, batch_size=size, gradient_accumulation=parts, realised=False)
        weights.append(newest_checkpoint(folder)["model"])
    start = built_in_model(0).double().state_dict()
    moved = max(float((weights[0][n] - start[n]).abs().max()) for n in start)
    assert moved > 1e-5
    assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in start) < 1e-6 * moved


def test_clipping_is_written_down_and_kept(tmp_path):
    steps = run(tmp_path / "run", max_grad_norm=1e-3, optimizer="sgd", lr=1.0).steps
    assert (steps["grad_norm"] > 1e-2).all() and np.allclose(steps["grad_norm_clipped"], 1e-3)
    free = run(tmp_path / "free", max_grad_norm=0.0, optimizer="sgd", lr=1e-6).steps
    assert (free["grad_norm"] == free["grad_norm_clipped"]).all()
